"""On-disk layout of a run: its directory and the schemas of its tables."""
