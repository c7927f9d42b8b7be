"""The work of reval: everything that a run does, without Prefect or MLflow."""

import os

# Read when torch is loaded. By default a thread that waits for the others spins, and where anything else runs on
# the same cores it spins against them: a step on two busy cores took 0.60 s, with this bound 0.08 s.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
