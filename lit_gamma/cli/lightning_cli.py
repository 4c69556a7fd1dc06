"""The command line: LightningCLI with configs that extend each other. Nothing of the science."""

from __future__ import annotations

import errno
import io
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, auto_cli, set_parsing_settings
from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

import lit_gamma.callbacks
import lit_gamma.data  # noqa: F401 (so that its classes are found by name)
from lit_gamma.callbacks import Checkpoints, Progress, RunSummary, TrajectoryCallback
from lit_gamma.cli.bad_input import (
    condensed,
    in_one_line,
    refuse_impossible,
    refuse_no_checkpoint,
)
from lit_gamma.cli.commands import COMMANDS, compare
from lit_gamma.cli.config_files import ConfigFile, import_workspace_callbacks
from lit_gamma.cli.run_folder import own_folder
from lit_gamma.doctor.diagnosis import diagnose
from lit_gamma.errors import InputError
from lit_gamma.model.language_model import LanguageModel
from lit_gamma.recording.summary import bill_in_words


class DoctorTrainer(Trainer):
    """Lightning's Trainer, which can also examine instead of train."""

    def doctor(self, model: LanguageModel, datamodule: LightningDataModule) -> None:
        """Examine a config before training; exits with 2 if there is a warning."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        diagnosis = diagnose(
            model,
            next(iter(datamodule.train_dataloader())),
            model.init_audit,
            model.optimizer_config.weight_decay,
        )
        print(diagnosis)
        sys.exit(diagnosis.exit_code)


class LitGammaCLI(LightningCLI):
    """LightningCLI for :class:`LanguageModel` and any LightningDataModule."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` files may extend others."""
        parser = LightningArgumentParser(**kwargs, exit_on_error=False)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="YAML file; may be given several times."
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands, less ``predict``."""
        known = LightningCLI.subcommands()
        chosen = {name: known[name] for name in ("fit", "validate", "test")}
        return {**chosen, "doctor": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data decides the model's vocabulary and context length."""
        for name in ("vocab_size", "context_length"):
            parser.link_arguments(
                f"data.{name}", f"model.transformer.{name}", apply_on="instantiate"
            )

    def before_instantiate_classes(self) -> None:
        """Refuses what cannot be meant before anything is made; only a fit makes a run."""
        if self.subcommand != "fit":
            self.save_config_callback = None
        refuse_impossible(self._get(self.config, "trainer") or {})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Shows progress in steps, unless the config wants another bar or none."""
        config = self._get(self.config_init, "trainer")
        callbacks = config["callbacks"] or []
        _refuse_twins([type(c).__name__ for c in callbacks if isinstance(c, TrajectoryCallback)])
        if self.subcommand != "fit":
            config["logger"] = False
        elif config["logger"] is False and _without_monitors(callbacks) != callbacks:
            rank_zero_info("trainer.logger is false: LearningRateMonitor is left out")
        if config["logger"] is False:
            config["callbacks"] = callbacks = _without_monitors(callbacks)
        bars = [c for c in callbacks if isinstance(c, ProgressBar)]
        if config["enable_progress_bar"] is not False and not bars:
            self.trainer_defaults = {"callbacks": Progress()}
        with in_one_line("trainer"):
            return super().instantiate_trainer(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses a seed or a checkpoint that is none, before they are used."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        refuse_no_checkpoint(str(config.get("ckpt_path") or ""))
        seed = config.get("seed_everything")
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must lie in 0 .. 4294967295, got {seed}")

    def fit(self, **kwargs: Any) -> None:
        """Trains, and says at the end, however it comes, what was recorded and how to go on."""
        if not kwargs.get("ckpt_path"):
            rank_zero_info(self.model.init_audit.headline())
        try:
            with own_folder(self.trainer, kwargs.get("ckpt_path")):
                self.trainer.fit(**kwargs)
        except SIGTERMException:
            sys.exit(128 + signal.SIGTERM)
        finally:
            self._report()

    def validate(self, **kwargs: Any) -> None:
        """Prints the validation metrics."""
        self.trainer.validate(**{**kwargs, "verbose": False})
        print(_metrics(self.trainer.callback_metrics))

    def test(self, **kwargs: Any) -> None:
        """Prints the test metrics."""
        self.trainer.test(**{**kwargs, "verbose": False})
        print(_metrics(self.trainer.callback_metrics))

    def _report(self) -> None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        summary = next((c for c in callbacks if isinstance(c, RunSummary)), None)
        if summary is None or summary.folder is None:
            return
        run_dir, said = summary.folder, summary.summary
        print(_readable(said))
        print(f"  recorded in    {run_dir}")
        print(
            f"  look at it     tensorboard --logdir {run_dir.parent} "
            "--samples_per_plugin images=100"
        )
        saved = self.trainer.checkpoint_callback
        if isinstance(saved, Checkpoints) and saved.saved_step < said["steps"]:
            print(f"  not saved      the newest checkpoint is of step {saved.saved_step}")
        last = run_dir / "checkpoints" / "last.ckpt"
        if said["status"] != "finished" and last.is_file():
            print(
                f"  resume         python -m lit_gamma fit --config {run_dir / 'config.yaml'} "
                f"--ckpt_path {last}"
            )


def _without_monitors(callbacks: list[Any]) -> list[Any]:
    """The callbacks that can do without a logger; the others would refuse to start."""
    return [c for c in callbacks if not isinstance(c, LearningRateMonitor)]


def _refuse_twins(names: list[str]) -> None:
    """Two callbacks of a class would write the same files."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"trainer.callbacks has {name} {names.count(name)} times: callbacks+ adds to those "
                "of the file that is extended. To change one of these, state the whole list under "
                "callbacks; the last one's keys may also be given as "
                "--trainer.callbacks.init_args.KEY VALUE"
            )


def _metrics(metrics: Mapping[str, Any]) -> str:
    return "\n".join(f"  {name:<24} {float(value):.4g}" for name, value in metrics.items())


def _readable(summary: dict[str, Any]) -> str:
    speed = summary["steps"] / max(summary["seconds"], 1e-9)
    lines = [
        "",
        f"{summary['status']}: gamma {summary['gamma']}, seed {summary['seed']}, "
        f"{summary['steps']} steps in {summary['seconds']:.0f} s ({speed:.1f} steps/s)",
        _metrics(summary["metrics"]),
    ]
    if bill := summary["overhead"]:
        lines.append(f"  {bill_in_words(bill)}")
    for table, holes in summary.get("holes", {}).items():
        steps = ", ".join(f"{first} to {last}" for first, last in holes)
        lines.append(f"  not recorded   {table}: steps {steps}")
    condensation = summary.get("strongest_condensation", {})
    rank = summary.get("lowest_effective_rank", {})
    if condensation and rank:
        lines.append(f"  {'÷ random matrix, @step':<24} strongest cos²   lowest effective rank")
    for role in (role for role in condensation if role in rank):
        peak, low = condensation[role], rank[role]
        lines.append(
            f"    {role:<22} {peak['mean_squared_cosine_over_null']:>6.2f} @{peak['step']:<8}"
            f"{low['effective_rank_over_null']:>5.2f} @{low['step']}"
        )
    return "\n".join(lines)


def _keep_output_readable() -> None:
    """Drops Lightning's messages that users can do nothing about, or that say ours again.

    A terminal that has no γ shows another sign in its place.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for words in ("LeafSpec", "The dirpath has changed from"):
        warnings.filterwarnings("ignore", f".*{words}")
    noise = ("Tip: For seamless", "SIGTERMException was raised")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(words in record.getMessage() for words in noise)
    )


def main() -> None:
    """Entry point of ``python -m lit_gamma``."""
    _keep_output_readable()
    torch.set_flush_denormal(True)  # Small weights make subnormal floats, which are slow on CPUs.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    try:
        if sys.argv[1:2] == ["compare"]:
            _compare(sys.argv[2:])
        elif len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
            auto_cli(COMMANDS, as_positional=False, exit_on_error=False)
        else:
            _run_experiment()
    except Exception as error:
        message = _what_the_user_did(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def _compare(arguments: list[str]) -> None:
    """Runs ``compare``, by a parser of its own: auto_cli has no positional list."""
    parser = ArgumentParser(prog="python -m lit_gamma compare", exit_on_error=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Directory of a run.")
    parser.add_function_arguments(compare, skip={"runs"})
    compare(**parser.instantiate(parser.parse_args(arguments)))


def _run_experiment() -> None:
    import_workspace_callbacks(Path.cwd())
    LitGammaCLI(
        LanguageModel,
        LightningDataModule,
        trainer_class=DoctorTrainer,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=1,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "parser_mode": "omegaconf+",
            "epilog": f"With trained models: {', '.join(COMMANDS)}; each has --help.",
        },
    )


def _what_the_user_did(error: BaseException) -> str | None:
    """The message for an error that bad input caused; None if the program is at fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException):
        return f"config: {str(error).strip().splitlines()[0]} (at {error.full_key})"
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'disk'}: {error.strerror}"
    if isinstance(error, (MisconfigurationException, ValueError)) and _raised_by_lightning(error):
        return str(error).strip().partition("\n")[0]
    return condensed(str(error)) if isinstance(error, ArgumentError) else None


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself refuses something, rather than code that it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")
