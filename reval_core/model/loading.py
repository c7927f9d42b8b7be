"""Load, save, validate and digest causal language models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reval_core.atomic_files import digest
from reval_core.config import Learner, Model, TinyModel
from reval_core.errors import InputError, first_line
from reval_core.model.coverage import (
    bare_model,
    check_coverage,
    quiet_transformers,
    refuse_mismatches,
    refuse_unmerged,
)
from reval_core.model.finite import check_finite
from reval_core.model.kind import check_causal, check_unquantized
from reval_core.model.lora import add_adapters, check_peft, has_adapters
from reval_core.model.packed import check_packed
from reval_core.model.vocabulary import check_vocabulary, model_ends
from reval_core.model.weight_files import is_complete, stored_tensors

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(directory: Path | str, settings: Model | None = None) -> PreTrainedModel:
    """Load a causal language model in float32, without dropout, from safetensors. No pickle is read.

    Args:
        directory: The model directory, or a name on the Hugging Face Hub.
        settings: The config section `model`, for `trust_remote_code` and `attention`.

    Raises:
        InputError: The directory holds no model, or not all of its weights.
    """
    from transformers import AutoModelForCausalLM

    if Path(directory).is_dir():
        stored_tensors(Path(directory))
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=settings is not None and settings.trust_remote_code,
                attn_implementation=settings and settings.attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name and with both shapes
            )
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{directory}: no model to load ({first_line(error)})") from error
        except RuntimeError as error:
            refuse_unmerged(str(directory), error)
            raise
    refuse_mismatches(str(directory), model, info)
    # Dropout would make log π_θ(τ) differ from the stored log π_ref(τ) at θ = θ_ref.
    return model.eval()


def load_tokenizer(directory: Path | str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    Raises:
        InputError: There is none, or it has no padding or end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{directory}: model.path: no tokenizer to load ({first_line(error)}); "
            "save the model's tokenizer into that directory"
        ) from error
    for token, name in ((tokenizer.eos_token_id, "eos_token"), (tokenizer.pad_token_id, "pad_token")):
        if token is None:
            raise InputError(
                f"{directory}: model.path: the tokenizer has no {name}; "
                f"set it (tokenizer.{name} = …) and save the tokenizer again"
            )
    return tokenizer


def tokenizer_of(settings: Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the configured model. Raises InputError if there is no usable one."""
    if settings.tiny is not None:
        return make_tiny_tokenizer(settings.tiny.characters)
    assert settings.path is not None
    return load_tokenizer(settings.path, settings.trust_remote_code)


def stop_ids(settings: Model, tokenizer: PreTrainedTokenizerBase, more: Sequence[str] = ()) -> tuple[int, ...]:
    """The tokens that end a response: those of the tokenizer, of the model's own files, and `more`.

    The model's own files are config.json and generation_config.json.

    Raises:
        InputError: One of `more` is not a single token.
    """
    ids = {tokenizer.eos_token_id, *(model_ends(settings.path) if settings.path else ())}
    for text in more:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded) != 1:
            raise InputError(
                f"rollouts.stop: {text!r} is {len(encoded)} tokens of this model; a stop must be a single token"
            )
        ids.add(encoded[0])
    return tuple(sorted(ids))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The digest of a tokenizer's vocabulary: equal for tokenizers that map ids to the same tokens."""
    return digest(sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id)


def reading_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The digest of everything that determines how a tokenizer encodes texts and chat turns."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if tokenizer.is_fast and backend is not None else {}
    rules |= {"padding": None, "truncation": None}  # state of the most recent call
    return digest(tokenizer_digest(tokenizer), rules, tokenizer.chat_template, list(tokenizer.all_special_tokens))


def context_length(settings: Model) -> int | None:
    """The context length of a model, in tokens of prompt and response together; None if its config has none."""
    config = architecture(settings)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    scaled = rope.get("rope_type") in ("linear", "dynamic")  # the limit of other types is already scaled
    return int(limit * rope["factor"]) if scaled and rope.get("factor") else limit


def architecture(settings: Model) -> PreTrainedConfig:
    """transformers' config of a model's language part. Raises InputError if there is no model."""
    return _config(settings).get_text_config()


def head_size(settings: Model) -> int | None:
    """The size of an attention head; None for a model without attention."""
    config = architecture(settings)
    if not getattr(config, "num_attention_heads", None):
        return None
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights and tokenizer so that transformers loads them from `directory`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def model_identity(model: PreTrainedModel) -> list[Any]:
    """What may change the results of equal weights: version, dtype, attention, adapters."""
    import transformers

    adapters = model.peft_config["default"] if has_adapters(model) else None
    return [
        transformers.__version__,
        str(next(model.parameters()).dtype),
        model.config._attn_implementation,
        adapters and [adapters.r, adapters.lora_alpha, sorted(adapters.target_modules)],
    ]


def policy_digest(model: nn.Module) -> str:
    """The sha256 (hex) of the weights by name: equal digests mean equal policies."""
    sink = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sink.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sink.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sink.hexdigest()


def make_tiny_tokenizer(characters: str) -> PreTrainedTokenizerBase:
    """A tokenizer with one token per character, and padding, beginning and end tokens."""
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
    """A small Llama with random weights drawn from `seed`."""
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


def check_model(settings: Model) -> PreTrainedTokenizerBase:
    """Check that the model is a complete causal language model with a matching tokenizer.

    Weights are read only to find NaN and infinity in them, once per process. The weights of a model on the Hub that
    is not in the cache are checked by `load_model`.

    Returns:
        The tokenizer.

    Raises:
        InputError: Names the first fault.
    """
    if settings.lora is not None:
        check_peft()
    if settings.path is None:
        return tokenizer_of(settings)
    config = _config(settings)
    check_unquantized(settings.path, config)
    directory = _weights_directory(settings.path)
    stored = {} if directory is None else stored_tensors(directory)
    model = _bare_model(settings)
    if stored:
        check_coverage(settings.path, model, stored)
    check_causal(settings.path, config)
    tokenizer = tokenizer_of(settings)
    rows = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(settings.path, tokenizer, rows, model_ends(settings.path))
    check_finite({tensor.file for tensor in stored.values()})
    return tokenizer


def check_attention(settings: Model, learner: Learner) -> None:
    """Raise InputError if the model's attention does not support the learner's settings."""
    if learner.packed and settings.attention is None:
        check_packed(_bare_model(settings))


def _weights_directory(path: str) -> Path | None:
    """The directory of a model; for one on the Hub the cached one, or None if its weights are not cached."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return directory if is_complete(directory) else None


def count_parameters(settings: Model) -> tuple[int, int]:
    """The number of parameters and of trained parameters, without reading or allocating weights.

    Raises:
        InputError: There is no such model, it does not support the attention, or no layer matches the adapters.
    """
    try:
        model = bare_model(_config(settings), settings.trust_remote_code, settings.attention)
    except (ImportError, ValueError) as error:
        key = "model.attention" if settings.attention else "model.path"
        raise InputError(f"{key}: {getattr(settings, key[6:])} cannot be used ({first_line(error)})") from error
    total = sum(parameter.numel() for parameter in model.parameters())
    if settings.lora is not None:
        with torch.device("meta"):
            add_adapters(model, settings.lora, seed=0)
    return total, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _bare_model(settings: Model) -> PreTrainedModel:
    try:
        return bare_model(_config(settings), settings.trust_remote_code)
    except Exception as error:  # a model's code may raise anything for a config.json of another model
        raise InputError(
            f"{settings.path}: model.path: config.json describes no causal language model that transformers can "
            f"build ({type(error).__name__}: {first_line(error)}); give a directory that it can load"
        ) from error


def _config(settings: Model) -> PreTrainedConfig:
    from transformers import AutoConfig

    if settings.tiny is not None:
        return _tiny_config(settings.tiny)
    assert settings.path is not None
    try:
        return AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # config.json may hold anything, and each of its keys raises an error of its own
        raise InputError(
            f"{settings.path}: model.path: no model to load ({first_line(error)}); "
            "give a directory that transformers can load"
        ) from error
