"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from helpers.runs import ROOT, TINY

import lit_gamma
from lit_gamma import trajectory
from lit_gamma.cli.entry import COMMANDS

RUN = Path("runs/anchor/gamma0.8-seed1")


def files_under(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_overrides_are_followed_everywhere_and_the_saved_config_reproduces_the_run(
    workspace, command_line, capsys
):
    run = Path("runs/anchor/gamma0.3-seed2")
    command_line("fit", *TINY, "--model.gamma=0.3", "--seed_everything=2", "--trainer.max_steps=20")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["gamma"] == 0.3
    assert config["data"]["init_args"]["seed"] == 2  # ${seed_everything} in the file
    assert files_under(run) >= {
        "config.yaml",
        "summary.json",
        "checkpoints/last.ckpt",
        "trajectory/condensation.arrow",
        "trajectory/effective_rank.arrow",
        "trajectory/weight_norms.arrow",
        "trajectory/token_loss.arrow",
        "trajectory/anchor_reasoning.arrow",
    }
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["gamma"], summary["seed"], summary["steps"]) == (0.3, 2, 20)
    tables = trajectory.load(run)
    start = tables["weight_norms"].query("step == 0 and role == 'mlp_up'")["implied_gamma"]
    assert start.mean() == pytest.approx(0.3, abs=0.02)
    answers = tables["anchor_reasoning"]
    shares = ["composition", "symmetry", "other"]
    assert answers[shares].sum(axis=1).round(6).eq(1).all()
    assert answers["composition"].iloc[-1] == pytest.approx(
        summary["metrics"]["val/unseen/accuracy"]
    )
    printed = capsys.readouterr().out
    assert "finished: gamma 0.3, seed 2, 20 steps" in printed
    found = ", ".join(f"{name} {answers[name].iloc[-1]:.2f}" for name in shares)
    assert f"\n  unseen pair at step 20: {found}\n" in printed
    assert "tensorboard --logdir runs/anchor" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80

    command_line("fit", f"--config={run}/config.yaml")
    again = trajectory.load("runs/anchor/gamma0.3-seed2-2")
    for name in tables.keys() - {"overhead"}:  # a time
        pandas.testing.assert_frame_equal(again[name], tables[name], check_exact=True)

    command_line(
        "validate", f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"
    )
    accuracy = summary["metrics"]["val/seen/accuracy"]
    assert re.search(rf"val/seen/accuracy\W+{accuracy:.6g}", capsys.readouterr().out)


@pytest.mark.slow
def test_a_config_of_another_directory_runs_no_code_from_there(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "callbacks").mkdir(parents=True)
    here.mkdir()
    shutil.copytree(ROOT / "configs", there / "configs")
    foreign = there / "callbacks" / "anchor_reasoning.py"
    foreign.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = f"--config={there}/configs/anchor.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "lit_gamma", "fit", config],
        cwd=here,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{there}/callbacks is not imported: run this in {there}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not any(here.iterdir())


@pytest.mark.slow
def test_text_files_are_learnt(workspace, command_line, capsys):
    Path("corpus.jsonl").write_text(
        "\n".join(json.dumps({"body": f"{i} plus {i} is {2 * i}.", "n": i}) for i in range(400))
    )
    command_line(
        "fit",
        "--config=configs/text.yaml",
        "--data.data_files=corpus.jsonl",
        "--data.field=body",
        "--data.context_length=32",
        "--data.batch_size=8",
        "--model.transformer.d_model=32",
        "--model.transformer.n_layers=2",
        "--model.optimizer.warmup_steps=5",
        "--model.optimizer.lr=0.01",
        "--trainer.max_steps=40",
        "--trainer.val_check_interval=30",
        "--trainer.enable_progress_bar=false",
    )
    tables = trajectory.load("runs/text/gamma0.8-seed1")
    probe = {"probe_loss", "probe_tokens"}
    built_in = {"condensation", "effective_rank", "weight_norms", "token_loss", *probe}
    assert built_in | {"token_loss_profile", "overhead"} == set(tables)
    assert list(tables["token_loss"]["step"]) == list(range(40))
    matrices = tables["condensation"].groupby("step").size()
    assert list(matrices.index[matrices > 1]) == [0, 1, 2, 3, 6, 10, 18, 32, 40]
    assert list(matrices.index[matrices == 1]) == [
        4,
        8,
        12,
        14,
        16,
        *range(20, 31, 2),
        *range(34, 40, 2),
    ]
    summary = json.loads(Path("runs/text/gamma0.8-seed1/summary.json").read_text())
    loss = summary["metrics"]["val/text/loss"]
    assert loss < 3 < tables["token_loss"]["mean"].iloc[0]
    printed = capsys.readouterr().out
    assert re.search(rf"val/text/loss +{loss:.4g} \(step 30\)\n", printed)
    assert all(
        re.sub(r"\n    ", " ", printed).count(sentence) == 1 for sentence in summary["in_words"]
    )


def test_the_readme_s_own_callback_runs(workspace, command_line):
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(# callbacks/(\w+\.py)\n.*?)```", readme, re.DOTALL)
    Path("callbacks", code.group(2)).write_text(code.group(1))
    flag = re.search(r"(--trainer\.callbacks\+=\w+)", readme).group(1)
    command_line("fit", *TINY, flag, "--trainer.max_steps=5")
    table = trajectory.load(RUN)["kurtosis"]
    assert sorted(set(table["step"])) == list(range(6))
    queries = table[(table["role"] == "query") & (table["step"] == 0)]
    assert queries["kurtosis_over_null"].mean() == pytest.approx(1, abs=0.3)


def test_the_readme_s_own_code_prints_the_audit_and_a_rank_near_its_null(capsys):
    readme = (ROOT / "README.md").read_text()
    exec(re.search(r"```python\n(from lit_gamma import Transformer.*?)```", readme, re.DOTALL)[1])
    *audit, ratio = capsys.readouterr().out.splitlines()
    assert "lm_head" in audit[-1]
    assert "0.5" in audit[-1]
    assert float(ratio) == pytest.approx(1, abs=0.02)


def test_a_bare_call_lists_every_command_and_a_misspelt_one_its_neighbour(command_line, capsys):
    command_line()
    printed = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", printed, re.MULTILINE)
    command_line("--version")
    assert capsys.readouterr().out == f"lit-gamma {lit_gamma.__version__}\n"
    for wrong, nearest in {"ft": "fit", "exprot": "export"}.items():
        with pytest.raises(SystemExit, match=f"'{wrong}'; did you mean {nearest}.$"):
            command_line(wrong)
    shown = "generate perplexity evaluate export measure report compare sweep find-gamma"
    for command in shown.split():
        with pytest.raises(SystemExit) as exit_:
            command_line(command, "--help")
        assert exit_.value.code == 0
        assert f"lit_gamma {command}" in capsys.readouterr().out


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, lit_gamma, lit_gamma.data\n"
        "assert not {'torch', 'lightning', 'datasets'} & set(sys.modules)\n"
        "for module in (lit_gamma, lit_gamma.data):\n"
        "    assert all(getattr(module, name).__name__ == name for name in module.__all__)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


BROKEN = "raise RuntimeError('oh')\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "files", "message"),
    [
        (["--model.transformer.n_heads=3"], {}, r"d_model 16 is not divisible by n_heads 3"),
        (["--model.gamma=.nan"], {}, r"gamma must be finite.* got nan"),
        (["--model.gamma=.inf"], {}, r"gamma must be finite.* got inf"),
        (["--model.gamma=big"], {}, r"model\.gamma: expected float, got big"),
        (["--model.gama=1"], {}, r"unrecognized arguments: --model\.gama=1"),
        (["--data.n_trin=3"], {}, r"'n_trin' is not accepted"),
        (["--data=AnchorComposicion"], {}, r"AnchorComposicion"),
        (["--data.token_range=[2,99]"], {}, r"anchor 2 must be a token outside token_range"),
        (["--data.odd_pairs=[[3,9,1]]"], {}, r"anchor 9 of odd_pairs .* not in anchors"),
        (["--config=nope.yaml"], {}, r"config file nope\.yaml does not exist"),
        (["--config=x.yaml"], {"x.yaml": "model: [1"}, r"x\.yaml is not valid YAML"),
        (
            ["--config=x.yaml"],
            {"x.yaml": "model: {gama: 1}"},
            r"unknown key 'model\.gama'; did you mean gamma",
        ),
        (
            ["--config=x.yaml"],
            {"x.yaml": "extends: y.yaml"},
            r"y\.yaml does not exist, extended by",
        ),
        (["--config=x.yaml"], {"x.yaml": "extends: x.yaml"}, r"x\.yaml extends itself"),
        (["--trainer.callbacks+=AnchorReason"], {}, r"AnchorReason"),
        (["--trainer.callbacks+=Condensation"], {}, r"Condensation 2 times"),
        (
            ["--per_head=true", "--trainer.callbacks=[lit_gamma.callbacks.Condensation]"],
            {},
            r"per_head is true, but none of trainer\.callbacks heeds it: add Overview",
        ),
        ([], {"callbacks/broken.py": BROKEN}, r"callbacks/broken\.py:1 cannot be imported.*oh"),
        ([], {"callbacks/broken.py": "def f(:"}, r"callbacks/broken\.py:1 cannot .*SyntaxError"),
        (["--ckpt_path=gone.ckpt"], {}, r"gone\.ckpt"),
        (["--config=configs/text.yaml"], {}, r"data\.data_files names no file"),
        (["--config=configs/text.yaml", "--data.data_files=no*.txt"], {}, r"no file matches 'no"),
        (
            ["--config=configs/text.yaml", "--data.data_files=a.txt"],
            {"a.txt": ""},
            r"data\.data_files: a\.txt is empty",
        ),
        (
            [
                "--config=configs/text.yaml",
                "--data.data_files=null",
                "--data.sources={t: {data_files: a.txt, val_files: no.txt}}",
            ],
            {"a.txt": "text"},
            r"data\.sources\.t\.val_files: no file matches 'no\.txt'",
        ),
        (
            ["--config=configs/text.yaml", "--data.data_files=b.txt"],
            {"b.txt": "too short"},
            r"hold 10 tokens, too few for one batch of 16 blocks of 128",
        ),
        (
            ["--config=configs/text.yaml", "--data.data_files=c.jsonl", "--data.field=body"],
            {"c.jsonl": '{"text": "x", "n": 1}\n'},
            r"no field 'body'; it has text, n",
        ),
        (
            ["--config=x.yaml"],
            {"x.yaml": "model: {gamma: '${no.such}'}"},
            r"no\.such.*model\.gamma",
        ),
        (
            ["--config=x.yaml"],
            {"x.yaml": "extends: configs/anchor.yaml\ndata: {n_val: '${seed_everything}'}"},
            r"seed_everything' not found .* written in full as well: data: \{init_args",
        ),
        (["--config=x.yaml"], {"x.yaml": "model: {gamma: '${oc.env:UNSET_A}'}"}, r"UNSET_A"),
        (["--config=x.yaml"], {"x.yaml": "model: {gamma: '${who:1}'}"}, r"interpolation type who"),
        (["--config=x.yaml"], {"x.yaml": "trainer: [1]"}, r"trainer must hold keys.*\[1\]"),
        (["--config=x.yaml"], {"x.yaml": b"# \xfc"}, r"x\.yaml is not UTF-8: byte 0xfc"),
        (["--model.optimizer.weight_decay=-.1"], {}, r"weight_decay must be finite.*-0\.1"),
        (["--model.optimizer.betas=[0.9,1.5]"], {}, r"betas must be two numbers.*1\.5"),
        (["--trainer.gradient_clip_val=.nan"], {}, r"gradient_clip_val must be finite.*nan"),
        (["--trainer.max_epochs=-7"], {}, r"max_epochs must be at least -1, got -7"),
        (["--trainer.accumulate_grad_batches=0"], {}, r"accumulate_grad_batches.*least 1, got 0"),
        (["--trainer.val_check_interval=0"], {}, r"val_check_interval must be positive, got 0"),
        (["--trainer.devices=-2"], {}, r"trainer: .*devices"),
        (["--trainer.accelerator=abacus"], {}, r"trainer: .*abacus"),
        (["--trainer.strategy=tactics"], {}, r"trainer: .*tactics"),
        (["--trainer.limit_train_batches=-3"], {}, r"trainer: .*-3"),
        (["--seed_everything=4294967296"], {}, r"seed_everything must lie in 0 .* 4294967296"),
        (["--ckpt_path=e.ckpt"], {"e.ckpt": ""}, r"e\.ckpt is no checkpoint .*: it is empty, cut"),
        (["--ckpt_path=e.ckpt"], {"e.ckpt": "PK not a zip"}, r"e\.ckpt is no checkpoint"),
        (["--ckpt_path=configs"], {}, r"configs is a folder without a whole sharded checkpoint"),
        (
            [],
            {"callbacks/ends.py": "raise SystemExit(0)"},
            r"callbacks/ends\.py:1 cannot be imported",
        ),
        (["--trainer.logger.init_args.save_dir=f"], {"f": "x"}, r"f/anchor.*: Not a directory"),
    ],
)
def test_bad_input_gives_one_message_and_leaves_nothing(
    workspace, command_line, capsys, arguments, files, message
):
    for name, text in files.items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    base = TINY[1:] if "--config=configs/text.yaml" in arguments else TINY
    base = [a for a in base if "data" not in a and "model" not in a] if base is not TINY else base
    with pytest.raises(SystemExit) as exit_:
        command_line("fit", *base, *arguments)
    said = str(exit_.value.code)
    assert re.search(f"^error: .*{message}", said, re.DOTALL), said
    assert "Traceback" not in said + capsys.readouterr().err
    assert exit_.value.code not in (0, None)
    assert not Path("runs").exists()


def test_one_config_records_everything(workspace, command_line):
    command_line("fit", "--config=configs/everything.yaml", *TINY[1:], "--trainer.max_steps=10")
    quantities = (ROOT / "docs/trajectory.md").read_text().split("<!-- quantities -->")[1]
    documented = re.findall(r"^\| `(\w+)` \|", quantities.partition("\n\n")[0], re.M)
    assert len(set(documented)) > 10
    needs_questions = {"answer_accuracy"}
    tables = trajectory.load("runs/everything/gamma0.8-seed1")
    assert set(documented) - needs_questions <= set(tables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "strategy"),
    [
        (2, ["ddp"]),
        (2, ["ModelParallelStrategy", "data_parallel_size=2", "tensor_parallel_size=1"]),
        # Three shards of 16 or 110 rows are uneven.
        (3, ["ModelParallelStrategy", "data_parallel_size=3", "tensor_parallel_size=1"]),
    ],
)
def test_several_processes_record_what_one_does(workspace, processes, strategy):
    def record(version: str, *arguments: str) -> dict[str, pandas.DataFrame]:
        arguments += ("--trainer.max_steps=12", f"--trainer.logger.init_args.version={version}")
        added = ("GammaInit", "ProbeLoss", "Updates", "Gradients", "Circuits", "AnchorAttention")
        arguments += tuple(f"--trainer.callbacks+={name}" for name in added)
        for probe in ("HiddenStates", "AttentionSink"):  # The first four samples are rank 0's.
            arguments += (f"--trainer.callbacks+={probe}", "--trainer.callbacks.samples=4")
        if processes == 3:  # Where shards end inside heads.
            arguments += ("--per_head=true", "--model.transformer.n_heads=2")
        subprocess.run(
            [sys.executable, "-m", "lit_gamma", "fit", *TINY, *arguments],
            cwd=workspace,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=240,
        )
        return trajectory.load(workspace / "runs" / "anchor" / version)

    name, *options = strategy
    alone = record("alone", f"--data.batch_size={4 * processes}")
    several = ("--data.batch_size=4", f"--trainer.devices={processes}",
               f"--trainer.strategy={name}", *(f"--trainer.strategy.{o}" for o in options),
               "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={step}",
               "--trainer.callbacks.every_n_train_steps=5",
               "--trainer.callbacks.save_top_k=-1")  # fmt: skip
    together = record("together", *several)
    assert set(together) == set(alone)
    if processes == 3:  # Step 6 is recorded, which wants the weights of step 4 as well.
        middle = "runs/anchor/together/checkpoints/step=5.ckpt"
        resumed = record("resumed", *several, f"--ckpt_path={middle}")
        for table in ("updates", "gradients", "weight_norms"):
            pandas.testing.assert_frame_equal(resumed[table], together[table], check_exact=True)
    probes = [tables.pop("probe_loss") for tables in (together, alone)]
    assert list(probes[0]["step"]) == list(probes[1]["step"]) == [*range(7), 8, 10, 12]
    np.testing.assert_allclose(*(np.stack(probe["loss"]) for probe in probes), rtol=2e-3)
    described, expected = (tables.pop("probe_tokens") for tables in (together, alone))
    pandas.testing.assert_frame_equal(described, expected, rtol=2e-4)
    for table, rows in together.items():
        if table == "overhead":  # a time
            continue
        expected = alone[table]
        if table == "weight_norms":  # The certificate at step 0 is made of rounding errors.
            error = "spectral_norm_error"
            assert np.allclose(rows[error], expected[error], atol=1e-4)
            rows, expected = rows.drop(columns=error), expected.drop(columns=error)
        # AdamW makes a whole step of a gradient that is rounding errors: of tokens that are unused.
        rtol = 1e-3 if table in ("updates", "gradients") else 2e-4
        cosines = [column for column in rows if column.startswith("cosine_with_")]
        np.testing.assert_allclose(rows[cosines], expected[cosines], atol=2e-4, rtol=0)
        rows, expected = rows.drop(columns=cosines), expected.drop(columns=cosines)
        pandas.testing.assert_frame_equal(rows, expected, rtol=rtol, atol=1e-6)
        start = rows["step"] == 0  # the same weights: no rounding of different sums in between
        pandas.testing.assert_frame_equal(rows[start], expected[start], rtol=1e-5, atol=1e-7)
    assert (workspace / "runs/anchor/together/summary.json").exists()


@contextmanager
def training(workspace: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """A run in a process of its own that has begun to record, and does not outlive the test.

    It hears SIGINT even where the tests run in the background, as shells let such jobs ignore it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_gamma", "fit", *TINY, *arguments],
        cwd=workspace,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        recorded = workspace / RUN / "trajectory" / "token_loss.arrow"
        deadline = time.monotonic() + 120
        while not recorded.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_ctrl_c_keeps_the_record_and_the_command_it_prints_resumes_it(workspace, command_line):
    with training(workspace, "--trainer.max_steps=100000") as process:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 1
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    recorded = trajectory.load(RUN)["weight_norms"]["step"].max()
    # Ctrl-C may come between the step and its measurement; the resumed run then makes up for it.
    assert recorded in (summary["steps"] - 1, summary["steps"])

    resume = re.search(r"python -m lit_gamma (fit .*--ckpt_path \S+)", printed).group(1)
    last = summary["steps"] + 10
    command_line(*shlex.split(resume), f"--trainer.max_steps={last}")
    rows = trajectory.load(RUN)["weight_norms"]
    assert list(rows[rows["role"] == "lm_head"]["step"]) == list(range(last + 1))


@pytest.mark.slow
def test_a_terminated_run_says_so_and_how_to_go_on(workspace):
    with training(workspace, "--trainer.max_steps=100000") as process:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((workspace / RUN / "summary.json").read_text())["status"] == "terminated"
    assert "SIGTERMException" not in printed
    assert re.search(r"resume +python -m lit_gamma fit .*--ckpt_path \S+last.ckpt", printed)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_gamma_shows_another_sign(workspace, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "lit_gamma", "fit", "--help"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "std = d_in^(-?)" in " ".join(done.stdout.decode(encoding).split())


@pytest.mark.slow
def test_a_killed_run_leaves_a_record_that_opens(workspace):
    with training(workspace, "--trainer.max_steps=100000") as process:
        time.sleep(0.5)
        process.kill()
    tables = trajectory.load(workspace / RUN)
    for name in ("weight_norms", "token_loss"):
        steps = sorted(set(tables[name]["step"]))
        assert steps == list(range(steps[-1] + 1)), name
