"""Causal language models: loading and validation, scoring, and their low-precision copy."""
