"""What turns drawn trajectories into the next policy."""
