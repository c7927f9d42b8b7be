"""Estimates of the sizes and the GPU memory of a run."""
