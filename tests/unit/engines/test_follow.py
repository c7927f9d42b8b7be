"""The end of an engine's processes."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from reval_core.engines.follow import kill_group

SERVER = """
import subprocess, sys, time
from multiprocessing import shared_memory
shared = shared_memory.SharedMemory(create=True, size=64)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(shared.name, flush=True)
time.sleep(600)
"""


def test_a_group_ends_and_leaves_no_shared_memory():
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    shared = Path("/dev/shm") / server.stdout.readline().strip()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        started = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert shared.is_file()
        assert len(started) == 3, "the server, its child, and the tracker of shared memory"
        kill_group(server.pid)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive
        deadline = time.monotonic() + 30
        while shared.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not shared.exists()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        server.stdout.close()
