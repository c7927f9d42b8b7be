"""The replay buffer: the index over the published tables, and the sampling of updates from it."""
