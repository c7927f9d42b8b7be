"""Causal language models on disk: load, save, and the digest that proves two sets of weights equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reval_core.adapters import add_adapters, check_peft, has_adapters
from reval_core.batches import collate
from reval_core.config import Learner, Model, TinyModel
from reval_core.errors import InputError
from reval_core.files import digest
from reval_core.scoring import score

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(folder: Path | str, settings: Model | None = None) -> PreTrainedModel:
    """A causal language model in float32, without dropout, from safetensors.

    `settings` says whether its own code may run and which attention it uses. No pickle is read.
    Raises InputError if the folder holds no model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a reference is loaded every round
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=settings is not None and settings.trust_remote_code,
            attn_implementation=settings and settings.attention,
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no model to load ({_first_line(error)})") from error
    # Dropout would make log π_θ(τ) differ from the stored log π_ref(τ) at θ = θ_ref.
    return model.eval()


def load_tokenizer(folder: Path | str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer.

    Raises InputError if there is none, or if it has no token to pad with or to end with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder}: model.path: no tokenizer to load ({_first_line(error)}); "
            "save the model's tokenizer into that folder"
        ) from error
    for token, name in ((tokenizer.eos_token_id, "eos_token"), (tokenizer.pad_token_id, "pad_token")):
        if token is None:
            raise InputError(
                f"{folder}: model.path: the tokenizer has no {name}; "
                f"set it (tokenizer.{name} = …) and save the tokenizer again"
            )
    return tokenizer


def tokenizer_of(settings: Model) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by its settings. Raises InputError if there is none that can be used."""
    if settings.tiny is not None:
        return make_tiny_tokenizer(settings.tiny.characters)
    assert settings.path is not None
    return load_tokenizer(settings.path, settings.trust_remote_code)


def stop_ids(settings: Model, tokenizer: PreTrainedTokenizerBase, more: Sequence[str]) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's, those of the model's generation_config.json, and `more`.

    Raises InputError for one of `more` that is not one token.
    """
    found = {tokenizer.eos_token_id, *_generation_stops(settings)}
    for text in more:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(
                f"rollouts.stop: {text!r} is {len(ids)} tokens of this model, and a response ends at one token"
            )
        found.add(ids[0])
    return tuple(sorted(found))


def _generation_stops(settings: Model) -> list[int]:
    """What the model's own generation settings end at, if it comes with any."""
    from transformers import GenerationConfig

    try:
        known = GenerationConfig.from_pretrained(settings.path).eos_token_id if settings.path else None
    except OSError:
        return []
    return [] if known is None else known if isinstance(known, list) else [known]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The digest of what a tokenizer's ids stand for: the same for two that read the same tokens alike."""
    return digest(sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id)


def context_length(settings: Model) -> int | None:
    """The most tokens that a model reads, prompt and response together, if its config says so."""
    limit = getattr(_config(settings), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def architecture(settings: Model) -> PreTrainedConfig:
    """The sizes of a model's language part, as transformers names them. Raises InputError if there is no model."""
    return _config(settings).get_text_config()


def head_size(settings: Model) -> int:
    """The width of an attention head."""
    config = _config(settings)
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights and tokenizer so that transformers loads them from `folder`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def check_scoring(model: PreTrainedModel, settings: Learner) -> None:
    """See that `scoring.score` gives what a log-softmax of the model's own logits gives, for two short texts.

    It would not where a family of models does to its logits what `head.Head` does not know of, where packed
    trajectories can see each other, or where gradient checkpointing brings dropout back. Raises InputError.
    """
    half = settings.precision == "bfloat16"
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=half):
        _check_scoring(model, settings, tolerance=0.1 if half else 1e-3)


def _check_scoring(model: PreTrainedModel, settings: Learner, tolerance: float) -> None:
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rng = np.random.default_rng(0)
    texts = [rng.integers(vocabulary, size=length) for length in (9, 6)]
    batch = collate([text[:2] for text in texts], [text[2:] for text in texts], packed=settings.packed)
    with checkpointed_layers(model) if settings.gradient_checkpointing else nullcontext():
        found = score(model, batch.to(model.device)).logprobs.cpu()
    for row, text in zip(found, texts, strict=True):
        tokens = torch.from_numpy(text).to(model.device)
        logits = model(tokens[None]).logits[0, 1:-1].float()
        expected = logits.log_softmax(dim=-1).gather(1, tokens[2:, None]).squeeze(1).cpu()
        error = float((row[: len(expected)] - expected).abs().max())
        if not error < tolerance:
            switches = [name for name in ("packed", "gradient_checkpointing") if getattr(settings, name)]
            remedy = "".join(f"; try learner.{name}: false" for name in switches)
            raise InputError(
                f"model.path: reval's log-probabilities differ from the model's own by {error:.2g} nats: "
                f"{type(model).__name__} makes its logits in a way that reval does not know{remedy}"
            )


@contextmanager
def checkpointed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep no activations inside the layers; the backward pass computes them again.

    transformers checkpoints only layers in training mode. Here the mode is set on the layers alone, not on what is
    inside them, so dropout stays off; `check_scoring` refuses models whose layers apply it themselves.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False


def model_identity(model: PreTrainedModel) -> list[Any]:
    """What the same weights may compute differently by: versions, types, attention, adapters."""
    import transformers

    adapters = model.peft_config["default"] if has_adapters(model) else None
    return [
        transformers.__version__,
        str(next(model.parameters()).dtype),
        model.config._attn_implementation,
        adapters and [adapters.r, adapters.lora_alpha, sorted(adapters.target_modules)],
    ]


def policy_digest(model: nn.Module) -> str:
    """The sha256 (hex) of the weights' bytes, by name: equal digests mean equal policies."""
    sink = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sink.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sink.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sink.hexdigest()


def make_tiny_tokenizer(characters: str) -> PreTrainedTokenizerBase:
    """A tokenizer with one token a character, and tokens to pad, to begin and to end with."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make_tiny_model(settings: TinyModel, seed: int) -> PreTrainedModel:
    """A small Llama with weights drawn from `seed`."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(_tiny_config(settings)).eval()


def _tiny_config(settings: TinyModel) -> LlamaConfig:
    from transformers import LlamaConfig

    tokenizer = make_tiny_tokenizer(settings.characters)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=256,
        initializer_range=settings.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def check_model(settings: Model) -> None:
    """See that the model and its tokenizer can be loaded, without reading weights. Raises InputError."""
    if settings.lora is not None:
        check_peft()
    if settings.path is not None:
        _config(settings)
        load_tokenizer(settings.path, settings.trust_remote_code)


def count_parameters(settings: Model) -> tuple[int, int]:
    """How many parameters the model has, and how many of them are trained, without reading or making weights.

    Raises InputError if there is no such model, no such attention for it, or no layer for its adapters.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                _config(settings),
                trust_remote_code=settings.trust_remote_code,
                attn_implementation=settings.attention,
            )
    except (ImportError, ValueError) as error:
        key = "model.attention" if settings.attention else "model.path"
        raise InputError(f"{key}: {getattr(settings, key[6:])} cannot be used ({_first_line(error)})") from error
    whole = sum(parameter.numel() for parameter in model.parameters())
    if settings.lora is not None:
        with torch.device("meta"):
            add_adapters(model, settings.lora, seed=0)
    return whole, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _config(settings: Model) -> PreTrainedConfig:
    from transformers import AutoConfig

    if settings.tiny is not None:
        return _tiny_config(settings.tiny)
    assert settings.path is not None
    try:
        return AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{settings.path}: model.path: no model to load ({_first_line(error)}); "
            "give a folder that transformers can load"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
