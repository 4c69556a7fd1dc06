"""What the command line does with series of checkpoints."""

from __future__ import annotations

import sys

import torch
from jsonargparse import ArgumentParser

from lit_gamma.cli.terminal import wrapped
from lit_gamma.recording.summary import in_lines
from lit_gamma.series import measure as record_of


def measure(
    series: list[str],
    out: str,
    roles: dict[str, str | list[str]] | None = None,
    text: str | None = None,
) -> None:
    """Record the weights of a series of checkpoints, as if its training had been recorded.

    Started again, it goes on where it was.

    Args:
        series: Checkpoints, folders or globs of some, or revisions REPO@step1000,step2000.
        out: Directory of the record.
        roles: Roles that names do not tell, by patterns of paths: {"*.mixer.in_proj": "mlp_up"}.
        text: File that each model is run on, to record its loss per token, hidden states and
            attention; needs checkpoints of this package, or folders that transformers can load.
    """
    torch.set_flush_denormal(True)  # As in training.
    summary = record_of(series, out, roles=roles, text=text)
    measured, skipped = summary["series"]["checkpoints"], summary["series"]["skipped"]
    print(
        f"\n{summary['status']}: {measured} of {measured + len(skipped)} checkpoints, the last of "
        f"step {summary['steps']}, in {summary['seconds']:.0f} s"
    )
    for sentence in summary.get("in_words", []):
        print(f"  {in_lines(sentence)}")
    for step in skipped:
        print(f"  not recorded step {step}")
    print(f"  recorded in  {out}")
    print(f"  read it      {out}/report.html")
    print(f"  look at it   tensorboard --logdir {out} --samples_per_plugin images=100")


def run(command: str, arguments: list[str]) -> None:
    """Runs the command.

    Args:
        command: Its name.
        arguments: What follows it on the command line.
    """
    parser = ArgumentParser(prog=f"python -m lit_gamma {command}", exit_on_error=False)
    parser.add_argument(
        "series",
        nargs="+",
        metavar="SERIES",
        help="Checkpoints, folders or globs of some, or revisions REPO@step1000,step2000.",
    )
    parser.add_function_arguments(measure, skip={"series"}, as_positional=False)
    try:
        measure(**parser.instantiate(parser.parse_args(arguments)))
    except KeyboardInterrupt:
        sys.exit(wrapped("interrupted; the same command goes on from there", sys.stderr))
