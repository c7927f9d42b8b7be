"""Small-scale reproduction of the paper's figures: their runs, their measurements, and the verdicts."""
