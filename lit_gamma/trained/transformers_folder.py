"""A trained model as a folder that ``transformers`` opens, and what evaluates by it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError
from lit_gamma.model.llama import is_llama, llama_name, to_llama
from lit_gamma.model.pretrained import OWN_TYPE
from lit_gamma.model.transformer import Transformer, TransformerConfig

_CODE = Path(__file__).with_name("modeling_lit_gamma.py")


def write_transformers(
    model: Transformer, tokenizer: Tokenizer | None, made_with: dict[str, Any], folder: Path
) -> None:
    """Fills a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` open.

    The model is a ``LlamaForCausalLM`` where that computes the same, and else comes with its code.

    Args:
        model: The model.
        tokenizer: The tokenizer of its text, if any.
        made_with: What the model was made with, kept in the config as ``lit_gamma``.
        folder: A folder that is empty.

    Raises:
        InputError: The model has a weight that its config does not tell of.
    """
    shape, weights = model.config, model.state_dict()
    _refuse_others(weights, shape)
    if shape.tie_embeddings:
        del weights["lm_head.weight"]
    if is_llama(shape):
        config = to_llama(shape)
        weights = {llama_name(name): tensor for name, tensor in weights.items()}
    else:
        config = _own_config(shape)
        shutil.copy(_CODE, folder)
    config["dtype"] = str(model.lm_head.weight.dtype).removeprefix("torch.")
    config["lit_gamma"] = {k: v for k, v in made_with.items() if k != "transformer"}
    ends: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id"))
    if tokenizer is not None:
        ends = dict.fromkeys(ends, tokenizer.end_of_text)
        _write_tokenizer(tokenizer, shape.context_length, folder)
    _write(config | ends, folder / "config.json")
    unused = list(range(tokenizer.vocab_size, shape.vocab_size)) if tokenizer else []
    _write(
        ends | ({"suppress_tokens": unused} if unused else {}), folder / "generation_config.json"
    )
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _refuse_others(weights: dict[str, Any], shape: TransformerConfig) -> None:
    with torch.device("meta"):
        plain = Transformer(shape).state_dict()
    if others := sorted(weights.keys() ^ plain.keys()):
        raise InputError(
            f"{others[0]} is not of the transformer that the config tells of: a model that was "
            "changed cannot be written in the format of transformers"
        )


def _own_config(shape: TransformerConfig) -> dict[str, Any]:
    return {
        **asdict(shape),
        "model_type": OWN_TYPE,
        "architectures": ["LitGammaForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_CODE.stem}.LitGammaConfig",
            "AutoModelForCausalLM": f"{_CODE.stem}.LitGammaForCausalLM",
        },
        "d_ff": shape.hidden_width,
        "d_head": shape.head_width,
        "norm_eps": float(shape.norm_eps),
    }


def _write_tokenizer(tokenizer: Tokenizer, context_length: int, folder: Path) -> None:
    """Writes a tokenizer that encodes every text as training did: without tokens of its own."""
    backend = json.loads(tokenizer.backend.to_str())
    _write({**backend, "post_processor": None}, folder / "tokenizer.json")
    end = tokenizer.backend.id_to_token(tokenizer.end_of_text)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": context_length,
    }
    _write(config, folder / "tokenizer_config.json")


def _write(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
