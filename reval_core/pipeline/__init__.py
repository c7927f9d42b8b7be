"""What the stages of a run share: the run context, its environment, and reconstruction of its policies."""
