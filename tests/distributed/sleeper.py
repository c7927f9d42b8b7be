"""Started by torchrun: notes its process id, sleeps, and notes that it was told to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from reval_core import launch


def main(directory: Path) -> None:
    """Sleep until SIGTERM."""
    rank = os.environ["RANK"]

    def stop(*_: object) -> None:
        (directory / f"stopped-{rank}").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    partial = directory / f"partial-{rank}"
    partial.write_text(f"{os.getpid()} {launch.count()} {os.environ.get('PREFECT__FLOW_RUN_ID')}")
    partial.rename(directory / f"started-{rank}")
    time.sleep(1000)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
