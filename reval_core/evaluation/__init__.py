"""Evaluation of any policy on sets of problems: what `reval eval` does, apart from a training run's own."""
