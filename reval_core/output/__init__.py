"""Output for people and programs: text that is safe to print on a terminal, and strictly valid JSON."""
