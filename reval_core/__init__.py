"""The core of reval: everything that a run does, independent of Prefect and MLflow."""

import os

# Must be set before torch is imported. By default a waiting OpenMP thread spins and competes with other processes
# on the same cores: a step on two busy cores took 0.60 s, with this bound 0.08 s.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
