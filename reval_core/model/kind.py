"""Check that config.json describes an unquantized causal language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reval_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_unquantized(source: str, config: PreTrainedConfig) -> None:
    """Raise InputError, naming the method, for a quantized checkpoint."""
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):
            settings = getattr(part, key, None)
            if settings:
                raise InputError(
                    f"{source}: model.path: config.json: {key}: the checkpoint is quantized by "
                    f"{_method(settings)}, and training needs full precision; use the unquantized model"
                )


def check_causal(source: str, config: PreTrainedConfig) -> None:
    """Raise InputError for an architecture that transformers does not list as a causal language model.

    An encoder would load as one nevertheless, and would attend to the tokens that it is to predict.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    named = [name for name in config.architectures or [] if hasattr(transformers, name)]
    other = named and not set(named) & set(CAUSAL.values())
    both_ways = config.model_type in CAUSAL and config.model_type in MASKED
    if other or config.is_encoder_decoder or (both_ways and not getattr(config, "is_decoder", False)):
        names = ", ".join(named) or config.model_type
        raise InputError(
            f"{source}: model.path: config.json: architectures: {names} is not a causal language model, "
            "which attends only to earlier tokens and has a head over the vocabulary; use a …ForCausalLM"
        )


def _method(settings: Any) -> str:
    values = settings if isinstance(settings, dict) else settings.to_dict()
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return "bitsandbytes"
    return str(values.get("quant_method") or "an unnamed method")
