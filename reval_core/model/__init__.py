"""A model's files: what they hold, and whether that is a causal language model that can be trained."""
