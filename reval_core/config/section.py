"""What every part of the settings has in common."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from reval_core.config.places import local

MOST_THREADS = 1024
"""torch starts as many as it is told to."""


class Section(BaseModel):
    """A part of the settings. Unknown keys are errors, and true is not 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            inner = value if isinstance(value, list) else [value]
            switch = field is not None and bool in (field.annotation, *get_args(field.annotation))
            if field is not None and not switch and any(isinstance(one, bool) for one in inner):
                raise ValueError(f"{name}: true and false are no values here")
            # torch, DuckDB and Parquet hold 64 bits.
            if any(isinstance(one, int) and abs(one) >= 2**63 for one in inner):
                raise ValueError(f"{name}: must be less than 2^63")
        return values


LocalPath = Annotated[str, AfterValidator(local)]
"""The path of a file or a directory on this machine."""


def not_given(value: Any) -> bool:
    """Leaves an optional key out of what is written and digested, so that runs without it keep their keys."""
    return value is None
