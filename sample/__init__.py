"""A small made-up world, and a walk through it with every script: `make run`."""
