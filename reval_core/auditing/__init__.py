"""Auditing golds and rules: what a gold accepts in other words, and what it must refuse."""
