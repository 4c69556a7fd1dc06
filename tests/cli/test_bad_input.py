"""What cannot be meant is refused in one line that names it, and leaves nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.runs import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

ANCHOR = {
    "model.gamma": ".nan .inf -.inf word [0.8] {a:1}",
    "model.transformer.n_layers": "-1 0 1.5 two [2] null",
    "model.transformer.n_heads": "-1 0 3 1.5 x",
    "model.transformer.d_model": "-16 0 1.5 wide null",
    "model.transformer.d_ff": "-4 0 1.5 x",
    "model.transformer.norm_eps": "-1 .nan x null",
    "model.transformer.gate": "some 3 null",
    "model.transformer.position": "absolute 1",
    "model.transformer.mlp": "relu2 0",
    "model.transformer.tie_embeddings": "maybe 2",
    "model.transformer.bias": "perhaps",
    "model.transformer.d_head": "-4 0 1.5 x",
    "model.transformer.norm": "batchnorm 1 null",
    "model.transformer.norm_position": "between 1",
    "model.init_std": "-1 0 .nan 0.02 x",
    "model.transformer.width": "3",
    "model.optimizer.lr": "-1 0 .nan .inf fast null",
    "model.optimizer.weight_decay": "-1 .nan .inf x",
    "model.optimizer.weight_decay_window": "[0.5] [0.5,0.2] [-1,1] 0.5 [a,b]",
    "model.optimizer.weight_decay_outside": "-1 .nan 0.1 x",
    "model.optimizer.betas": "[0.9] [0.9,1.0] [-0.1,0.9] [.nan,0.9] 0.9 [a,b]",
    "model.optimizer.warmup_steps": "-1 1.5 x",
    "model.optimizer.final_lr_ratio": "-1 .nan x",
    "model.optimizer.schedule": "linear 1",
    "model.optimizer.decay_fraction": "0 -1 1.5 .nan",
    "model.optimizer.momentum": "0.9",
    "data.context_length": "-1 0 1.5 x",
    "data.token_range": "[9,2] [20] [-5,99] 5 [a,b]",
    "data.anchors": "{1:x} {} [1] word",
    "data.odd_pairs": "[[1,2]] [[3,9,1]] 7",
    "data.held_out_pairs": "[[4]] [[9,9]] x",
    "data.n_train": "-1 0 3 x 1.5",
    "data.n_val": "-1 0 x",
    "data.batch_size": "-1 0 x 1.5 100000",
    "data.seed": "x 1.5",
    "data.nothing": "1",
    "trainer.max_steps": "-5 x 1.5",
    "trainer.max_epochs": "-5 x",
    "trainer.min_steps": "-1 x",
    "trainer.max_time": "x -1 00:00:00:99:99",
    "trainer.devices": "-3 0 x [0,0] 1.5",
    "trainer.accelerator": "quantum gpu 1",
    "trainer.strategy": "nope fsdp_ 1",
    "trainer.precision": "7 half bf17",
    "trainer.num_nodes": "0 -1 x",
    "trainer.gradient_clip_val": "-1 .nan .inf x",
    "trainer.gradient_clip_algorithm": "max 1",
    "trainer.accumulate_grad_batches": "0 -1 x 1.5",
    "trainer.val_check_interval": "0 -3 x .nan",
    "trainer.check_val_every_n_epoch": "0 -1 x",
    "trainer.limit_train_batches": "-1 1.5 x .nan",
    "trainer.limit_val_batches": "-1 1.5 x",
    "trainer.log_every_n_steps": "-1 0 x",
    "trainer.overfit_batches": "-1 1.5 x",
    "trainer.num_sanity_val_steps": "-5 x",
    "trainer.profiler": "nope 3",
    "trainer.benchmark": "7 x",
    "trainer.deterministic": "maybe",
    "trainer.fast_dev_run": "x -1",
    "trainer.reload_dataloaders_every_n_epochs": "-1 x",
    "trainer.barebones": "x true",
    "trainer.plugins": "nope",
    "trainer.logger": "nope 3",
    "trainer.logger.init_args.save_dir": "file file/below [1]",
    "trainer.logger.init_args.name": "[1]",
    "trainer.logger.init_args.version": "../../out a/b [1]",
    "trainer.steps": "3",
    "trainer.callbacks.init_args.schedule": (
        "{every:-1} {every:x} 5 {steps:3} {dense_until:-2} {every:1.5}"
    ),
    "trainer.callbacks.init_args.pictures": "{every:-4} x",
    "trainer.callbacks.init_args.overhead": "-1",
    "trainer.callbacks+": "Nope lit_gamma.callbacks.Nope lit_gamma torch.nn.Linear 3 Condensation",
    "seed_everything": "-1 4294967296 1.5 x",
    "ckpt_path": "gone.ckpt file configs empty.ckpt",
}
TEXT = {
    "data.data_files": "gone.txt empty configs no*.txt latin utf16 zstd pdf short gzip [] "
    "list.jsonl number.jsonl cut.jsonl other.jsonl null.jsonl x.parquet",
    "data.tokenizer": "bpe:10 bpe:x bpe: bpe:5000 bpe:99999999999 gone.json file list.jsonl a*b",
    "data.val_fraction": "-1 0 1 1.5 .nan x",
    "data.context_length": "0 -1 100000 x",
    "data.batch_size": "0 -1 100000 1.5",
    "data.cache_dir": "file file/below",
    "data.end_of_text": "<none>",
    "data.vocab_multiple_of": "0 -1 x",
    "data.sources": "[1] {a:1} {a:{files:x}} {a:{data_files:gone.txt}} "
    "{a:{data_files:text,weight:-1}} {a:{data_files:text,weight:.nan}}",
    "data.mask_documents": "x",
}
CONFIGS = {
    b"- a": "must hold keys",
    b"0": "must hold keys and values",
    b"hello": "unknown key 'hello'",
    b"\0\1": "not valid YAML",
    b"model: {gamma: 1}\nmodel: {gamma: 2}": "duplicate key model",
    b"model:\n\tgamma: 1": "not valid YAML",
    b"# caf\xe9": "not UTF-8: byte 0xe9",
    b"extends: no.yaml": "no.yaml does not exist, extended by",
    b"extends: x.yaml": "extends itself",
    b"extends: 3": "extends must name files, got 3",
    b"extends: [configs/anchor.yaml, 3]": "extends must name files",
    b"model: {gamma: '${model.optimizer.lr}', optimizer: {lr: '${model.gamma}'}}": "Recursive",
    b"model: {gamma: '${oc.env:NOT_SET_AT_ALL}'}": "NOT_SET_AT_ALL",
    b"model: {gamma: '${what:1}'}": "interpolation type what",
    b"model: {gamma: '${model.nothing}'}": "model.nothing",
    b"model: {gamma: '${'}": "config",
    b"model: [1]": r"model must hold keys and values, got \[1\]",
    b"trainer: null": "trainer must hold keys and values, got None",
    b"model: {transformer: [1]}": "model.transformer must hold",
    b"model: {optimizer: adam}": "model.optimizer must hold .* got 'adam'",
    b"data: 7": "data: Not a valid subclass",
    b"data: {class_path: 3}": "data: .*got",
    b"data: {class_path: torch.nn.Linear}": "torch.nn.Linear",
    b"data: {init_args: {x: 1}}": "Option 'x' is not accepted",
    b"trainer: {callbacks: word}": "trainer.callbacks: expected .*got word",
    b"trainer: {callbacks: [{class_path: 1}]}": "trainer.callbacks",
    b"modell: {gamma: 1}": "x.yaml: unknown key 'modell'",
    b"model: {gama: 1}": "model.gama",
    b"model: {gamma: 1e999}": "gamma must be finite",
    b"model: *nope": "undefined alias",
    b"model: {gamma: 1}\n---\nmodel: {gamma: 2}": "single document",
    b"model: !!python/object/apply:os.system ['true']": "not valid YAML",
    b"seed_everything: many": "seed_everything",
}
FILES = {
    "file": b"x",
    "empty.ckpt": b"",
    "empty": b"",
    "latin": b"ok " * 2000 + b"\xff",
    "utf16": ("hello " * 2000).encode("utf-16"),
    "zstd": b"\x28\xb5\x2f\xfd" + b"x" * 50,
    "pdf": b"%PDF-1.4 \xff\xfe",
    "short": b"abc",
    "gzip": b"\x1f\x8b\x08\x00broken",
    "list.jsonl": b"[1,2]\n" * 900,
    "number.jsonl": b'{"text": 3}\n' * 900,
    "cut.jsonl": b'{"text": "abc"}\n' * 900 + b'{"text": "ab',
    "other.jsonl": b'{"body": "abc"}\n' * 900,
    "null.jsonl": b'{"text": null}\n' * 900,
    "x.parquet": b"PAR1xxxx",
    "text": b"hello world, all of you. " * 4000,
}
TEXT_RUN = ["--config=configs/text.yaml", "--data.data_files=text", *TINY[-2:]]


@pytest.fixture
def refused(workspace, command_line, capsys):
    """What the command line says to arguments that it must refuse."""
    for name, content in FILES.items():
        Path(name).write_bytes(content)

    def run(base: list[str], *arguments: str) -> str:
        before = {path for path in workspace.rglob("*") if path.parent.name != "__pycache__"}
        with pytest.raises(SystemExit) as exit_:
            command_line("fit", *base, "--trainer.max_steps=2", *arguments)
        said = str(exit_.value.code)
        assert said.startswith("error: "), said
        assert "\n" not in said
        assert "Traceback" not in capsys.readouterr().err
        left = {path for path in workspace.rglob("*") if path.parent.name != "__pycache__"}
        assert {path for path in left - before if path.name != "__pycache__"} == set()
        return said

    return run


def _named(key: str, value: str, said: str) -> bool:
    return key.rpartition(".")[2].rstrip("+") in said or value in said


@pytest.mark.parametrize("key", ANCHOR)
def test_a_wrong_value_of_an_experiment_is_named(refused, key):
    for value in ANCHOR[key].split():
        said = refused(TINY, f"--{key}={value}")
        assert _named(key, value, said), (value, said)


@pytest.mark.parametrize("key", TEXT)
def test_a_wrong_value_of_a_text_is_named(refused, key):
    base = [flag for flag in TEXT_RUN if key != "data.sources" or "data_files" not in flag]
    for value in TEXT[key].split():
        said = refused(base, f"--{key}={value}")
        assert _named(key, value, said) or "data.data_files" in said, (value, said)


@pytest.mark.parametrize("content", CONFIGS)
def test_a_wrong_config_is_named(refused, content):
    Path("x.yaml").write_bytes(content)
    said = refused(TINY, "--config=x.yaml")
    assert re.search(CONFIGS[content], said), said


NAMES = """model trainer data seed_everything extends gamma transformer optimizer lr d_model
class_path init_args callbacks callbacks+ logger max_steps schedule ckpt_path x"""
KEYS = st.sampled_from(NAMES.split())
MEANT = st.sampled_from(["${model.gamma}", "${", "???", "lit_gamma.data.Text", "x.yaml", "!!x"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | MEANT
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, VALUES, max_size=3).map(yaml.safe_dump) | st.text(max_size=60))
def test_any_config_is_read_or_refused_in_one_line(workspace, command_line, content):
    Path("x.yaml").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        command_line("fit", *TINY, "--config=x.yaml", "--print_config")
    said = exit_.value.code
    assert said == 0 or re.fullmatch("error: .+", said), said
