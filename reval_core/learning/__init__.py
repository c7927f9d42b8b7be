"""The learner, its checkpoints and what supports them: from drawn trajectories to the next policy."""
