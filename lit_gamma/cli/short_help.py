"""The options of ``fit`` that people use, told without what the complete list has to import."""

from __future__ import annotations

import textwrap
from typing import NamedTuple


class Option(NamedTuple):
    """An option, what it takes, its value where no config states one, and its meaning."""

    name: str
    takes: str
    default: str | int | float | None
    meaning: str


EXPERIMENT = (
    Option("config", "FILE", None, "a YAML file; of several, and of what follows, the last wins"),
    Option("seed_everything", "N", 1, "seed of the initialization and the order of the data"),
    Option("overhead", "X", 0.05, "what all recording may cost, as a share of training"),
    Option("ckpt_path", "FILE", None, "go on from this checkpoint of the same experiment"),
)
MODEL = (
    Option("model.gamma", "γ", 1.0, "every weight matrix is drawn with std = d_in^(-γ)"),
    Option("model.gamma_overrides", "DICT", None, "γ of groups of roles, {mlp: 0.5, ...}"),
    Option("model.init_from", "FOLDER", None, "begin with these weights: a Llama's, an export's"),
    Option("model.transformer.n_layers", "N", 2, "blocks"),
    Option("model.transformer.n_heads", "N", 1, "attention heads per block"),
    Option("model.transformer.d_model", "N", 128, "width of the residual stream"),
    Option(
        "model.transformer.gate",
        "KIND",
        "elementwise",
        "gate: elementwise, headwise or none",
    ),
    Option("model.optimizer.lr", "X", 0.001, "AdamW's peak learning rate"),
    Option("model.optimizer.weight_decay", "X", 0.1, "weight decay on matrices"),
    Option("model.optimizer.warmup_steps", "N", 250, "steps of linear warm-up"),
)
DATA = (
    Option("data", "CLASS", None, "Text, StreamedText, AnchorComposition, Addition, or yours"),
    Option("data.data_files", "FILE", None, "text, JSONL or Parquet to train on (Text)"),
    Option("data.tokenizer", "NAME", "bytes", "bytes, bpe:4096, a tokenizer.json or gpt2 (Text)"),
    Option("data.context_length", "N", 128, "tokens per block (Text)"),
    Option("data.batch_size", "N", 16, "blocks per batch and process (Text)"),
)
TRAINER = (
    Option("trainer.max_steps", "N", -1, "optimizer steps of the whole run; -1: no limit"),
    Option("trainer.callbacks+", "CLASS", None, "record this too: a class of callbacks/, or ours"),
    Option("trainer.accelerator", "NAME", "auto", "cpu, gpu, mps, ..."),
    Option("trainer.devices", "N", "auto", "how many of them"),
    Option("trainer.precision", "KIND", None, "32-true, bf16-mixed or bf16-true"),
    Option("trainer.logger.version", "NAME", None, "the run's folder, in place of gamma0.8-seed1"),
)
GROUPS = {"experiment": EXPERIMENT, "model": MODEL, "data": DATA, "training": TRAINER}


def short_help() -> str:
    """The page that ``fit --help`` shows."""
    lines = ["usage: python -m lit_gamma fit --config FILE [--OPTION VALUE ...]"]
    for title, options in GROUPS.items():
        lines += ["", f"{title}:", *map(_described, options)]
    lines += [
        "",
        "Defaults hold where no config states a value. The rest:",
        "  fit --help all                       every option",
        "  fit --data.help CLASS                those of a class of data",
        "  fit --trainer.callbacks.help CLASS   those of a callback",
        "  fit --config FILE --print_config     every value, as this run would take it",
    ]
    return "\n".join(lines)


def _described(option: Option) -> str:
    stated = "" if option.default is None else f" (default: {option.default})"
    return textwrap.fill(
        option.meaning + stated,
        width=80,
        initial_indent=f"  {f'--{option.name} {option.takes}':<33} ",
        subsequent_indent=" " * 36,
    )
