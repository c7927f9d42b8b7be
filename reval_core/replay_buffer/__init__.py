"""The replay buffer: the index over the published tables, and how updates are drawn from it."""
