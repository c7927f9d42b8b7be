"""`reval --version`, and the completion of commands and options in a shell."""

import os
import subprocess
import sys

import reval

REVAL = [sys.executable, "-c", "import sys; sys.argv[0] = 'reval'; from reval.flows.cli import main; main()"]


def _reval(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [*REVAL, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_version_is_the_packages():
    assert _reval("--version") == f"reval {reval.__version__}\n"


def test_a_shell_gets_a_script_that_completes():
    for shell in ("bash", "zsh", "fish"):
        assert "_REVAL_COMPLETE" in _reval(_REVAL_COMPLETE=f"{shell}_source")


def test_commands_and_options_are_completed():
    completed = _reval(_REVAL_COMPLETE="bash_complete", COMP_WORDS="reval tr", COMP_CWORD="1")
    assert completed == "plain,train\n"
    options = _reval(_REVAL_COMPLETE="bash_complete", COMP_WORDS="reval train --dr", COMP_CWORD="2")
    assert options == "plain,--dry-run\n"
