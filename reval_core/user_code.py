"""User functions that a config names by import path: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reval_core.atomic_files import digest


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `module:function` names; modules in the working directory are found as well.

    Raises:
        ValueError: If the module or the function cannot be found; the message says which.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"{name!r} is not of the form package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script has its own directory on the path instead
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything on import
        raise ValueError(f"{name}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{name}: {module_name} has no function {function_name}")
    return function


def check_call(name: str, given: int, settings: dict[str, Any]) -> None:
    """Raise ValueError unless the function accepts `given` positional arguments and these settings by name."""
    function = load_function(name)
    try:
        inspect.signature(function).bind(*[None] * given, **settings)
    except TypeError as error:
        raise ValueError(f"{name}: does not take these settings ({error})") from error


def code_identity(name: str | None) -> str | None:
    """`code_digest` of an optional function."""
    return None if name is None else code_digest(name)


def code_digest(name: str) -> str:
    """A digest of the source file that defines the function, so that any change to it is detected."""
    return digest(inspect.getsource(inspect.getmodule(load_function(name)) or load_function(name)))
