"""Reading of user-provided row files (problems, responses, claims): file formats, columns and cell values."""

from reval_core.rows.columns import Fields, choose_columns, column_options, value_at
from reval_core.rows.files import Row, numbered, read_as, read_rows, within
from reval_core.rows.values import (
    Unusable,
    json_list,
    last_turn,
    number_of,
    plain_text,
    text_of,
    turns_of,
    whole_text,
)

__all__ = [
    "Fields",
    "Row",
    "Unusable",
    "choose_columns",
    "column_options",
    "json_list",
    "last_turn",
    "number_of",
    "numbered",
    "plain_text",
    "read_as",
    "read_rows",
    "text_of",
    "turns_of",
    "value_at",
    "whole_text",
    "within",
]
