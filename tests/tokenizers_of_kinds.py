"""Small tokenizers of the kinds that models come with, trained on a sentence, and models of nothing but noise."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
_TEXT = ["the quick brown fox jumps over the lazy dog: solve 1+1= <s>strike</s> <|im_end|> user assistant"] * 20
_CHARACTERS = sorted(set(string.printable) - set("\r\x0b\x0c"))

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def characters() -> PreTrainedTokenizerBase:
    """One token a character, as the models of the field cases have it; no decoder."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *_CHARACTERS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return _fast(raw)


def byte_level() -> PreTrainedTokenizerBase:
    """BPE over bytes, as Qwen and SmolLM2 have it, with a run of spaces as an added token that is not special."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(_TEXT, trainer)
    tokenizer = _fast(raw)
    tokenizer.add_tokens(["    "])
    return tokenizer


def unigram() -> PreTrainedTokenizerBase:
    """A unigram model with ▁ for spaces, whose vocabulary holds the special tokens as words, as T5 has it."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        initial_alphabet=_CHARACTERS,
        show_progress=False,
    )
    raw.train_from_iterator(_TEXT, trainer)
    return _fast(raw)


def byte_fallback() -> PreTrainedTokenizerBase:
    """BPE over characters that writes the others as bytes and begins every text with <s>, as Llama 2 has it."""
    octets = [f"<0x{number:02X}>" for number in range(256)]
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=[*SPECIAL, *octets], initial_alphabet=_CHARACTERS, show_progress=False
    )
    raw.train_from_iterator(_TEXT, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    written = json.loads(raw.to_str())
    written["added_tokens"] = [one for one in written["added_tokens"] if one["content"] in SPECIAL]
    return _fast(Tokenizer.from_str(json.dumps(written)))


def _fast(raw: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


KINDS = {one.__name__: one for one in (characters, byte_level, unigram, byte_fallback)}


def save_noise(directory: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A small Llama with random weights that reads by this tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=128,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
