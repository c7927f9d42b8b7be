"""Engines: what turns prompts into responses. One module a backend behind the interface in `base`."""
