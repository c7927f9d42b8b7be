"""The order of the stages, as Prefect flows, and the command line.

- The flows: `train.py`, `evaluate.py`, `reproduce.py`. The order of their stages: `rounds.py`.
- Before a flow: `preparation.py` checks everything; `plan.py` and `other_machine.py` show it for `--dry-run`.
- Around a flow: `foreground.py` starts it in this process, `server.py` and `demo.py` in a worker's.
- `cli/` defines the commands, one file each. Those that act elsewhere: `import` (`importing.py`), `problems audit`
  (`auditing.py`), `sql` (`querying.py`), and `check`, `reindex`, `export-model`, `prune` (`upkeep.py`).
"""

import os

# Neither Prefect nor its server sends telemetry.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
