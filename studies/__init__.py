"""What the repository measured, and the pages that show it: `python -m studies.<name>`."""
