"""Evaluation of any policy on problem sets, for `reval eval`. Training runs evaluate in `reval_core.stages`."""
