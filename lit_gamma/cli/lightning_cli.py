"""The command line: LightningCLI with configs that extend each other. Nothing of the science."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, set_parsing_settings
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lit_gamma.callbacks
import lit_gamma.data.addition
import lit_gamma.data.anchor
import lit_gamma.data.streamed_text  # noqa: F401 (so that the classes of data are found by name)
from lit_gamma.callbacks import Checkpoints, Progress, RunSummary, TrajectoryCallback
from lit_gamma.cli.bad_input import checkpoint_at, in_one_line, refuse_impossible
from lit_gamma.cli.config_files import ConfigFile, import_workspace_callbacks
from lit_gamma.cli.end_together import EndTogether
from lit_gamma.cli.parser_messages import condensed, with_nearest_option
from lit_gamma.cli.run_folder import RunTrainer, own_folder
from lit_gamma.cli.terminal import wrapped
from lit_gamma.cli.viewers import viewers
from lit_gamma.doctor.diagnosis import Diagnosis, diagnose
from lit_gamma.errors import InputError
from lit_gamma.model.language_model import LanguageModel
from lit_gamma.recording.summary import bill_in_words, in_lines


class DoctorTrainer(RunTrainer):
    """A trainer that can also examine instead of train."""

    def doctor(self, model: LanguageModel, datamodule: LightningDataModule) -> None:
        """Examine a config before training; exits with 2 if there is a warning."""
        diagnosis = examine(model, datamodule)
        print(wrapped(str(diagnosis), sys.stdout))
        sys.exit(diagnosis.exit_code)


def examine(model: LanguageModel, datamodule: LightningDataModule) -> Diagnosis:
    """What the doctor makes of a config's model and data."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    return diagnose(
        model,
        next(iter(datamodule.train_dataloader())),
        model.init_audit,
        model.optimizer_config.weight_decay,
    )


class LitGammaCLI(LightningCLI):
    """LightningCLI for :class:`LanguageModel` and any LightningDataModule."""

    trainer: DoctorTrainer

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose ``--config`` files may extend others."""
        parser = LightningArgumentParser(**kwargs, exit_on_error=False)
        parser.add_argument(
            "-c", "--config", action=ConfigFile, help="YAML file; may be given several times."
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands, less ``predict``; the one that is asked for alone, if any is."""
        known = LightningCLI.subcommands()
        chosen = {name: known[name] for name in ("fit", "validate", "test")}
        chosen["doctor"] = {"model", "datamodule"}
        asked = sys.argv[1] if len(sys.argv) > 1 else ""
        return {asked: chosen[asked]} if asked in chosen else chosen

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data decides the model's vocabulary and context length; configs read the rest."""
        parser.add_argument(
            "--overhead",
            type=float | None,
            default=0.05,
            help="What all recording may cost, as a share of training; null for no limit.",
        )
        parser.add_argument(
            "--per_head",
            type=bool,
            default=False,
            help="Whether queries, keys and values are recorded head by head.",
        )
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
        if self._get(self.config, "per_head"):
            _refuse_unheeded(callbacks)
        if self.subcommand != "fit":
            config["logger"] = False
        elif config["logger"] is False and _without_monitors(callbacks) != callbacks:
            rank_zero_info("trainer.logger is false: LearningRateMonitor is left out")
        if config["logger"] is False:
            config["callbacks"] = callbacks = _without_monitors(callbacks)
        bars = [c for c in callbacks if isinstance(c, ProgressBar)]
        if config["enable_progress_bar"] is not False and not bars:
            # First, so that it stands there while the others measure the start.
            config["callbacks"] = callbacks = [Progress(), *callbacks]
        config["callbacks"] = [*callbacks, EndTogether()]  # When others have recorded the step.
        with in_one_line("trainer"):
            return super().instantiate_trainer(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses a seed or a checkpoint that is none, before they are used."""
        try:
            with warnings.catch_warnings():  # Of a command that another one reads, as sweep does.
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise InputError(with_nearest_option(condensed(str(error)), parser)) from error
        config = self.config[self.config["subcommand"]]
        if path := config.get("ckpt_path"):
            config["ckpt_path"] = checkpoint_at(str(path))
        seed = config.get("seed_everything")
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must lie in 0 .. 4294967295, got {seed}")

    def fit(self, **kwargs: Any) -> None:
        """Trains, and says at the end, however it comes, what was recorded and how to go on."""
        if not kwargs.get("ckpt_path"):
            rank_zero_info(wrapped(self._drawn(), sys.stderr))
        try:
            with own_folder(self.trainer, kwargs.get("ckpt_path"), _name_of(self.model)):
                self.trainer.fit(**kwargs)
        except SIGTERMException:
            sys.exit(128 + signal.SIGTERM)
        finally:
            self._report()

    def _drawn(self) -> str:
        """What was made: how large the model is, and how its weights were drawn."""
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return f"{millions:.3g} M parameters; {self.model.init_audit.headline()}"

    def validate(self, **kwargs: Any) -> None:
        """Prints the validation metrics."""
        self.trainer.validate(**{**kwargs, "verbose": False})
        print(*_metrics(self.trainer.callback_metrics), sep="\n")

    def test(self, **kwargs: Any) -> None:
        """Prints the test metrics."""
        self.trainer.test(**{**kwargs, "verbose": False})
        print(*_metrics(self.trainer.callback_metrics), sep="\n")

    def _report(self) -> None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        summary = next((c for c in callbacks if isinstance(c, RunSummary)), None)
        if summary is None or summary.folder is None:
            return
        run_dir, said = summary.folder, summary.summary
        print(_readable(said))
        print(f"  recorded in  {run_dir}")
        if summary.report and (page := run_dir / "report.html").is_file():
            print(f"  read it      {page}")
        for viewer in viewers(self.trainer):
            print(f"  look at it   {viewer}")
        saved = self.trainer.checkpoint_callback
        if isinstance(saved, Checkpoints) and saved.saved_step < said["steps"]:
            print(f"  not saved    the newest checkpoint is of step {saved.saved_step}")
        last = run_dir / "checkpoints" / "last.ckpt"
        if said["status"] != "finished" and last.exists():
            print(
                f"  resume       python -m lit_gamma fit --config {run_dir / 'config.yaml'} "
                f"--ckpt_path {last}"
            )


def _name_of(model: LanguageModel) -> str:
    """The name of a run's folder, by what sets runs apart most often."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    begun = _begun_by(model.hparams).replace("from ", "from-").replace(" ", "")
    return begun + (f"-seed{seed}" if seed else "")


def _begun_by(made_with: Mapping[str, Any]) -> str:
    """What the weights began as: ``gamma 0.8``, ``std 0.02`` or ``from FOLDER``, by its name."""
    gamma, folder = made_with["gamma"], made_with["init_from"]
    if folder is not None:
        return f"from {Path(folder).resolve().name}"
    return f"std {made_with['init_std']}" if gamma is None else f"gamma {gamma}"


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


def _refuse_unheeded(callbacks: list[Any]) -> None:
    if not any(getattr(callback, "per_head", False) for callback in callbacks):
        raise InputError(
            "per_head is true, but none of trainer.callbacks heeds it: add Overview to them, with "
            "per_head: ${per_head}"
        )


def _metrics(metrics: Mapping[str, Any], note: str = "") -> list[str]:
    return [f"  {name:<24} {float(value):.4g}{note}" for name, value in metrics.items()]


def _readable(summary: dict[str, Any]) -> str:
    speed = summary["steps"] / max(summary["seconds"], 1e-9)
    measured_at = summary["measured_at"]
    earlier = measured_at is not None and measured_at < summary["steps"]
    lines = [
        "",
        f"{summary['status']}: {_begun_by(summary)}, seed {summary['seed']}, "
        f"{summary['steps']} steps in {summary['seconds']:.0f} s ({speed:.1f} steps/s)",
        *(f"  {in_lines(finding)}" for finding in summary.get("findings", {}).values()),
        *_metrics(summary["metrics"], f" (step {measured_at})" if earlier else ""),
        *(f"  {in_lines(sentence)}" for sentence in summary.get("in_words", [])),
    ]
    if bill := summary["overhead"]:
        lines.append(f"  {bill_in_words(bill)}")
    for table, holes in summary.get("holes", {}).items():
        steps = ", ".join(f"{first} to {last}" for first, last in holes)
        lines.append(f"  not recorded {table}: steps {steps}")
    return "\n".join(lines)


def command_line(kind: type[LitGammaCLI], arguments: list[str] | None = None) -> LitGammaCLI:
    """Reads a command, and does what its kind does with one.

    Args:
        kind: The class.
        arguments: The command; that of this process if None.

    Raises:
        InputError: A file in ``callbacks/`` cannot be imported, or the config is wrong.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    import_workspace_callbacks(Path.cwd())
    return kind(
        LanguageModel,
        LightningDataModule,
        trainer_class=DoctorTrainer,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=1,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "python -m lit_gamma"},
        args=arguments,
    )


def run_experiment() -> None:
    """``fit``, ``validate``, ``test`` and ``doctor``, see :func:`command_line`."""
    torch.set_flush_denormal(True)  # Small weights make subnormal floats, which are slow on CPUs.
    command_line(LitGammaCLI)
