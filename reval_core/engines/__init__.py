"""Engines generate responses to prompts. One module per backend, behind the interface in `engine`."""
