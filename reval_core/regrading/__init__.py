"""Judging the stored responses of a run or an evaluation again, under other rules."""
