"""Checking and pruning finished runs."""
