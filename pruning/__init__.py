"""What the scripts share: everything that must be the same for two records to be comparable."""
