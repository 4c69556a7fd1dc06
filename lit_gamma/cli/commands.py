"""What the command line does with trained models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from lit_gamma import trained
from lit_gamma.data.documents import checked
from lit_gamma.errors import InputError
from lit_gamma.files import replacing
from lit_gamma.model.llama import is_llama
from lit_gamma.trained.checkpoint import Format
from lit_gamma.trained.evaluation import metrics
from lit_gamma.trained.generation import Sampling
from lit_gamma.trained.generation import generate as generate_tokens

_KEPT = ("results", "versions", "n-shot", "n-samples", "higher_is_better")
"""What goes into the file, of all that lm-eval returns."""


def generate(
    ckpt: str,
    prompt: str = "",
    n_tokens: int = 200,
    n_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Continue a prompt with a trained model.

    Args:
        ckpt: A checkpoint (.ckpt), an exported folder, or a Llama's that transformers saved.
        prompt: Text to continue; without one the model begins a document.
        n_tokens: Most tokens to add; a sample also ends with its document.
        n_samples: How many continuations to draw.
        temperature: Below 1 likely tokens become likelier; 0 always takes the most likely one.
        top_k: Draw from the k most likely tokens only.
        top_p: Draw from the fewest most likely tokens that together have this probability.
        seed: Seed of the draws.
        device: cpu, cuda, ...; auto takes an accelerator if there is one.
    """
    if min(n_tokens, n_samples) < 1:
        raise InputError(f"--n_tokens {n_tokens} and --n_samples {n_samples} must be at least 1")
    checked(prompt, "generate", "--prompt")
    sampling = Sampling(temperature, top_k, top_p)
    where = _device(device)
    source = trained.load(ckpt)
    tokenizer = source.text_tokenizer()
    begin = tokenizer.encode([prompt])[0].tolist() if prompt else [tokenizer.end_of_text]
    steps = generate_tokens(
        source.model.to(where),
        torch.tensor([begin] * n_samples, device=where),
        n_tokens,
        sampling,
        tokenizer.vocab_size,
        torch.Generator(where).manual_seed(seed),
    )
    samples: list[list[int]] = [[] for _ in range(n_samples)]
    running = set(range(n_samples))
    for step in steps:
        tokens = step.tolist()
        running -= {i for i in running if tokens[i] == tokenizer.end_of_text}
        for i in running:
            samples[i].append(tokens[i])
        if not running:
            break
    continued = [prompt + tokenizer.decode(sample) for sample in samples]
    print(f"\n{'-' * 40}\n".join(continued))


def export(ckpt: str, out: str, format: Format = "lit_gamma") -> None:
    """Write a trained model as safetensors, with its config and tokenizer.

    Args:
        ckpt: A checkpoint (.ckpt) or an exported folder.
        out: A new folder.
        format: lit_gamma, for this package; transformers, for what opens Hugging Face's models.
    """
    source = trained.load(ckpt)
    trained.export(source, out, format)
    print(f"exported to {out}")
    if format == "transformers":
        with_code = "" if is_llama(source.model.config) else ", trust_remote_code=True"
        print(f"it opens by AutoModelForCausalLM.from_pretrained({out!r}{with_code})")


def perplexity(
    ckpt: str,
    data_files: str | list[str],
    field: str = "text",
    batch_size: int = 16,
    device: str = "auto",
) -> None:
    """Compute a trained model's loss on text files.

    Args:
        ckpt: A checkpoint (.ckpt), an exported folder, or a Llama's that transformers saved.
        data_files: Paths or glob patterns of text, JSONL or Parquet files.
        field: Column that holds the text, in JSONL and Parquet files.
        batch_size: Blocks that are run together.
        device: cpu, cuda, ...; auto takes an accelerator if there is one.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {batch_size}")
    where = _device(device)
    result = trained.text_loss(trained.load(ckpt), data_files, field, batch_size, where)
    print(f"tokens         {result.n_tokens}")
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.4f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")


def evaluate(
    ckpt: str,
    tasks: str,
    data_files: str | None = None,
    limit: int | None = None,
    out: str | None = None,
    device: str = "auto",
) -> None:
    """Run tasks of lm-evaluation-harness on a trained model.

    Args:
        ckpt: A checkpoint (.ckpt), an exported folder, or a Llama's that transformers saved.
        tasks: questions, prontoqa or prontoqa_generate, which read a local file; those of lm-eval
            by name; or paths of its YAML files. Several with commas between them.
        data_files: The JSONL file that the first three read.
        limit: Only the first so many documents of each task.
        out: A JSON file for lm-eval's results.
        device: cpu, cuda, ...; auto takes an accelerator if there is one.
    """
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out {out}: the folder does not exist; make it first")
    where = _device(device)
    results = trained.evaluate(trained.load(ckpt), tasks.split(","), data_files, limit, where)
    for task, name, value, error in metrics(results):
        n = results["n-samples"].get(task, {}).get("effective", "")
        spread = "" if error is None else f"± {error:.4f}"
        print(f"{task:<24} {name:<24} {value:>9.4f} {spread:<10} {n}".rstrip())
    if out is not None:
        kept = {"ckpt": ckpt, "limit": limit, **{name: results[name] for name in _KEPT}}
        with replacing(Path(out)) as draft:
            draft.write_text(json.dumps(kept, indent=2, default=str) + "\n")


def run(command: str, arguments: list[str]) -> None:
    """Runs one of the commands.

    Args:
        command: Its name.
        arguments: What follows it on the command line.
    """
    function: Any = {f.__name__: f for f in (generate, perplexity, evaluate, export)}[command]
    parser = ArgumentParser(prog=f"python -m lit_gamma {command}", exit_on_error=False)
    parser.add_function_arguments(function, as_positional=False)
    function(**parser.instantiate(parser.parse_args(arguments)))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"--device {name} cannot be used: {first_line}") from error
