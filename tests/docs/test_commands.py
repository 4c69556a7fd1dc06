"""Every command that README.md and docs/ show is run here, or listed with the reason."""

from __future__ import annotations

import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers.runs import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|pip|tensorboard|lit-gamma|export|wandb) ")
COMMANDS = [
    line
    for page in PAGES
    for language, block in BLOCK.findall(page.read_text())
    for line in block.splitlines()
    if language in {"", "bash", "console"} and PROGRAM.match(line)
]

ELSEWHERE = {
    "pip install": "CI installs the package with its extras; litgpt and greenlet are peers",
    "export MALLOC_": "prepares the shell for the benchmark of the next line",
    "tensorboard ": "a server that runs until it is stopped",
    "lit-gamma ": "tests/test_wheel.py runs it in a workspace of its own",
    "python benchmarks/": "minutes to hours each; tests/test_house.py holds what they import",
    "python -m lit_gamma fit --config configs/fineweb_edu.yaml": "streams from the hub",
    "python -m lit_gamma measure EleutherAI/": "fetches from the hub; tests/series has it in place",
    "python -m lit_gamma sweep ": "tests/cli/test_sweep.py: each run is a process of its own",
    "python -m lit_gamma compare runs/anchor-sweep": "tests/cli/test_sweep.py, after a sweep",
    "python -m lit_gamma find-gamma ": "tests/cli/test_find_gamma.py: likewise, with few runs",
    "python -m lit_gamma claim ": "tests/cli/test_claim.py: each run is a process of its own",
    "python -m lit_gamma evaluate ": (
        "tests/trained/test_evaluation.py evaluates, where lm-eval is installed"
    ),
    "python -m lit_gamma fit --config configs/anchor.yaml --trainer.logger WandbLogger": (
        "tests/recording/test_loggers.py fits with wandb, where it is installed"
    ),
}
"""What is not run here, by how it begins, with the reason or the test that runs it."""

TINY = [
    "--model.transformer.d_model=16",
    "--data.batch_size=4",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
HERE = [command for command in dict.fromkeys(COMMANDS) if not command.startswith(tuple(ELSEWHERE))]


def arguments(command: str) -> list[str]:
    """What follows ``python -m lit_gamma``, with a model and a run that take no time."""
    words = shlex.split(command, comments=True)[3:]
    steps = 3 if "--ckpt_path" in words else 2
    return [*words, *TINY, f"--trainer.max_steps={steps}"] if words[0] == "fit" else words


def carry_out(command_line, *words: str) -> None:
    """Runs a command; ``doctor`` ends by an exit code."""
    with pytest.raises(SystemExit, match="0") if words[0] == "doctor" else nullcontext():
        command_line(*words)


def test_each_command_is_run_here_or_listed_with_the_reason():
    for command in HERE:
        assert command.startswith("python -m lit_gamma "), f"not in ELSEWHERE: {command}"
    for start in ELSEWHERE:
        assert any(command.startswith(start) for command in COMMANDS), f"not documented: {start}"


@pytest.mark.slow
def test_the_commands_run_one_after_the_other_as_documented(workspace, command_line):
    sources = [*PAGES, *(ROOT / "lit_gamma").rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    for name in ("FILE", "tinyshakespeare.txt", "books/a.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    for command in HERE:
        carry_out(command_line, *arguments(command))
    assert Path("report.html").is_file()
    assert Path("exported/model.safetensors").is_file()
    assert Path("opens/modeling_lit_gamma.py").is_file()
