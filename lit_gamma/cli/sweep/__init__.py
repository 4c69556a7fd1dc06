"""A grid of ordinary runs, each a process of its own."""
