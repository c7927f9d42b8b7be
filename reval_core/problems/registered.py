"""The registered problem sets: their names, origins and file names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reval_core.config import GoldMode, Hub, ProblemField, SetName

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".arrow")
"""The supported file extensions, in the order in which a set is searched for."""

VARIABLE = "REVAL_DATA"
"""The environment variable with the directories in which registered sets are searched for."""


@dataclass(frozen=True)
class RegisteredSet:
    """A problem set that a config can name."""

    title: str
    split: Literal["train", "test"]
    files: tuple[str, ...]
    """The recognised file names, without extensions."""
    hub: Hub
    """The dataset on the Hugging Face hub."""
    sizes: tuple[int, ...]
    """The numbers of problems of its known copies; empty if unknown. A test set with another number is not the
    whole set."""
    origin: str
    """The authors, and the licence of the hub's copy."""
    gold_mode: GoldMode = "all"
    columns: Mapping[ProblemField, str] = field(default_factory=dict)
    """Columns that take precedence over the recognised names, if a file has them."""


REGISTERED: dict[SetName, RegisteredSet] = {
    "deepscaler": RegisteredSet(
        title="DeepScaleR",
        split="train",
        files=("deepscaler", "deepscaler_all", "deepscaler_train"),
        hub=Hub(name="agentica-org/DeepScaleR-Preview-Dataset"),
        sizes=(),
        origin="Agentica, from AIME, AMC, Omni-MATH and STILL; about 40,000 problems",
    ),
    "gsm8k_train": RegisteredSet(
        title="GSM8K, training split",
        split="train",
        files=("gsm8k_train",),
        hub=Hub(name="openai/gsm8k", config="main", split="train"),
        sizes=(7473,),
        origin="OpenAI, MIT",
    ),
    "gsm8k": RegisteredSet(
        title="GSM8K",
        split="test",
        files=("gsm8k_test", "gsm8k"),
        hub=Hub(name="openai/gsm8k", config="main", split="test"),
        sizes=(1319,),
        origin="OpenAI, MIT",
    ),
    "aime24": RegisteredSet(
        title="AIME 2024",
        split="test",
        files=("aime24", "aime_2024", "aime2024"),
        hub=Hub(name="HuggingFaceH4/aime_2024"),
        sizes=(30,),
        origin="Mathematical Association of America",
    ),
    "aime25": RegisteredSet(
        title="AIME 2025",
        split="test",
        files=("aime25", "aime_2025", "aime2025"),
        hub=Hub(name="math-ai/aime25", split="test"),
        sizes=(30,),
        origin="Mathematical Association of America",
    ),
    "amc": RegisteredSet(
        title="AMC 12 of 2022 and 2023",
        split="test",
        files=("amc", "amc_83", "deepscaler_amc"),
        hub=Hub(name="AI-MO/aimo-validation-amc"),
        sizes=(83,),
        origin="Mathematical Association of America; selected by Project Numina",
    ),
    "math500": RegisteredSet(
        title="MATH500",
        split="test",
        files=("math500", "math_500", "MATH-500"),
        hub=Hub(name="HuggingFaceH4/MATH-500", split="test"),
        sizes=(500,),
        origin="Hendrycks et al.; the 500 problems selected by OpenAI",
    ),
    "minerva": RegisteredSet(
        title="Minerva",
        split="test",
        files=("minerva", "minerva_math", "minervamath", "deepscaler_minerva"),
        hub=Hub(name="math-ai/minervamath", split="test"),
        sizes=(272,),
        origin="Lewkowycz et al., from MIT OpenCourseWare",
        gold_mode="any",
        columns={"answer": "solution"},  # DeepScaleR's lists of answers disagree with the solution's box in places
    ),
    "olympiadbench": RegisteredSet(
        title="OlympiadBench, open-ended English mathematics without pictures",
        split="test",
        files=("olympiadbench", "olympiad_bench"),
        hub=Hub(name="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP"),
        sizes=(675, 674),
        origin="He et al., OpenBMB",
    ),
    "gpqa": RegisteredSet(
        title="GPQA-Diamond",
        split="test",
        files=("gpqa", "gpqa_diamond"),
        hub=Hub(name="Idavidrein/gpqa", config="gpqa_diamond"),
        sizes=(198,),
        origin="Rein et al.; the hub asks to agree that its questions are not published in plain text",
        gold_mode="choice",
    ),
}


def directories() -> list[Path]:
    """The directories in which registered sets are searched for: those of REVAL_DATA, or `data` if it is not
    set."""
    named = [Path(one) for one in os.environ.get(VARIABLE, "").split(os.pathsep) if one]
    return named or [Path("data")]


def find_set(name: SetName) -> Path | None:
    """The file of a registered set; None if there is none in `directories()`.

    The file name must be one of the set's: `gsm8k-64.jsonl` is not GSM8K.
    """
    names = [stem + ending for stem in REGISTERED[name].files for ending in ENDINGS]
    places = (directory / file for directory in directories() for file in names)
    return next((place for place in places if place.is_file()), None)
