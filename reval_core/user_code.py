"""Functions that a config names by where they are imported from: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reval_core.atomic_files import digest


def load_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules in the working directory are found as well.

    Raises ValueError, saying what is missing.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"{name!r} is not of the form package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:  # `reval` is a script of its own folder
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's file does when it is imported
        raise ValueError(f"{name}: cannot import {module_name} ({type(error).__name__}: {error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{name}: {module_name} has no function {function_name}")
    return function


def check_call(name: str, given: int, settings: dict[str, Any]) -> None:
    """See that the function takes `given` values and then these settings by name. Raises ValueError."""
    function = load_function(name)
    try:
        inspect.signature(function).bind(*[None] * given, **settings)
    except TypeError as error:
        raise ValueError(f"{name}: does not take these settings ({error})") from error


def code_identity(name: str | None) -> str | None:
    """`code_digest` of a function that may not be given."""
    return None if name is None else code_digest(name)


def code_digest(name: str) -> str:
    """A digest of the source of the file that the function stands in, so that a change of it is noticed."""
    return digest(inspect.getsource(inspect.getmodule(load_function(name)) or load_function(name)))
