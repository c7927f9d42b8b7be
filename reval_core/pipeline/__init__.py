"""State shared by the stages of a run: the run context, its environment, and the reconstruction of policies."""
