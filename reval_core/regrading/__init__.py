"""Regrading of the stored responses of a run or an evaluation under other rules."""
