"""The base of all sections of the settings."""

from __future__ import annotations

import logging
from functools import cache
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from reval_core.config.places import local

log = logging.getLogger("reval")

MOST_THREADS = 1024
"""Limit of `threads`: torch itself sets none."""


class Section(BaseModel):
    """A section of the settings. Rejects unknown keys, and booleans where a number is expected."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    earlier_names: ClassVar[dict[str, str]] = {}
    """Keys by their earlier names, which configs may still use."""

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            inner = value if isinstance(value, list) else [value]
            switch = field is not None and bool in (field.annotation, *get_args(field.annotation))
            if field is not None and not switch and any(isinstance(one, bool) for one in inner):
                raise ValueError(f"{name}: must not be true or false")
            # torch, DuckDB and Parquet store 64 bits.
            if any(isinstance(one, int) and abs(one) >= 2**63 for one in inner):
                raise ValueError(f"{name}: must be less than 2^63")
        return values

    @model_validator(mode="before")  # the last one is the first to run: the checks see present names
    @classmethod
    def _rename(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not cls.earlier_names.keys() & values.keys():
            return values
        for earlier, name in cls.earlier_names.items():
            if earlier in values and name in values:
                raise ValueError(f"{earlier}: is the earlier name of {name}; give only {name}")
            if earlier in values:
                _notice(earlier, name)
        return {cls.earlier_names.get(name, name): value for name, value in values.items()}


@cache  # once per process
def _notice(earlier: str, name: str) -> None:
    log.warning("config: %s is now called %s; the earlier name still works", earlier, name)


LocalPath = Annotated[str, AfterValidator(local)]
"""The path of a file or a directory on this machine."""


def not_given(value: Any) -> bool:
    """Exclude an unset optional key from dumps and digests, so that the digests of runs without it do not
    change."""
    return value is None
