"""Models that go to ``transformers``, and a Llama of theirs that comes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, Snapshots, fit
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from lit_gamma import (
    InputError,
    LanguageModel,
    Transformer,
    TransformerConfig,
    gamma_init_,
    trained,
)
from lit_gamma.callbacks import RunSummary
from lit_gamma.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from lit_gamma.trained.generation import Sampling, generate

transformers = pytest.importorskip("transformers", reason="pip install lit-gamma[test] has it")

LLAMA = {"mlp": "swiglu", "gate": "none"}
AUTHORS = {"norm": "layernorm", "norm_position": "post", "position": "learned", "gate": "none"}
SHAPES = {
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_embeddings": True, "d_ff": 24, "norm_eps": 1e-5},
    "llama-wide": LLAMA | {"d_head": 10, "bias": True},
    "own-undivided": LLAMA | {"d_model": 30, "n_heads": 4, "d_head": 8},
    "own-elementwise": {"tie_embeddings": True, "bias": True},
    "own-headwise": {"gate": "headwise", "mlp": "swiglu"},
    "own-authors": AUTHORS | {"d_head": 5},
}
TEXT = "ö is a letter,  <|endoftext|>\n\tand € is none"

ELSEWHERE = """
import sys
sys.modules["lit_gamma"] = None  # An import of it fails.
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ids, text = torch.load("given.pt")
for folder in sys.argv[1:]:
    trust = {"trust_remote_code": folder.startswith("own")}
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **trust)
    assert not any(found.values()), found
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    greedy = {"max_new_tokens": 20, "do_sample": False}
    prompt, ones = ids[:, :10], torch.ones(2, 10)
    padded, mask = (torch.cat((t.new_zeros(2, 3), t), 1) for t in (prompt, ones))
    with torch.no_grad():
        torch.save({
            "class": type(model).__name__,
            "logits": model(ids).logits,
            "loss": model(ids, labels=ids).loss,
            "cached": model.generate(prompt, attention_mask=ones, **greedy)[:, 10:],
            "padded": model.generate(padded, attention_mask=mask, **greedy)[:, 13:],
            "uncached": model.generate(prompt, use_cache=False, **greedy)[:, 10:],
            "text": tokenizer(text).input_ids,
            "decoded": tokenizer.decode(tokenizer(text).input_ids),
            "end": tokenizer.eos_token_id,
        }, f"{folder}.pt")
"""


def made(shape: dict) -> Transformer:
    """A model whose biases and scales are no constants, and whose vocabulary is rounded up."""
    base = {"vocab_size": 272, "context_length": 32, "n_heads": 2, "d_model": 16}
    model = Transformer(TransformerConfig(**{**base, **shape})).eval()
    gamma_init_(model, 0.6)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.8, 0.2)
    with torch.no_grad():
        model.lm_head.weight[257:] *= 3  # Tokens that the tokenizer has not win, if they may.
    return model


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """What a process without this package makes of each export."""
    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    ids = torch.randint(256, (2, 32))
    torch.save((ids, TEXT), folder / "given.pt")
    (folder / "elsewhere.py").write_text(ELSEWHERE)
    sources = {name: made(shape) for name, shape in SHAPES.items()}
    for name, model in sources.items():
        source = trained.Trained(model, {"gamma": 0.5}, ByteTokenizer())
        trained.export(source, folder / name, "transformers")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "elsewhere.py", *sources], cwd=folder, env=os.environ | offline, check=True
    )
    return folder, ids, {n: (m, torch.load(folder / f"{n}.pt")) for n, m in sources.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_an_export_computes_the_same_without_this_package(exports, name, monkeypatch):
    folder, ids, found = exports
    model, theirs = found[name]
    kind = "Llama" if name.startswith("llama") else "LitGamma"
    assert theirs["class"] == f"{kind}ForCausalLM"
    with torch.no_grad():
        logits = model(ids)
    assert (theirs["logits"] - logits).abs().max() <= 1e-5
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert theirs["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    greedy = torch.stack(list(generate(model, ids[:, :10], 20, Sampling(0), 257)), 1)
    for tokens in (theirs["cached"], theirs["uncached"], theirs["padded"]):
        for row, ours in zip(tokens, greedy, strict=True):
            length = next((i for i, t in enumerate(ours.tolist()) if t == 256), len(ours))
            assert torch.equal(row[:length], ours[:length])
    assert theirs["text"] == list(TEXT.encode())
    assert (theirs["decoded"], theirs["end"]) == (TEXT, 256)

    monkeypatch.setitem(sys.modules, "transformers", None)  # It is not needed to read them.
    again = trained.load(folder / name)
    assert torch.equal(again.model(ids), logits)
    assert (again.hyperparameters["gamma"], again.text_tokenizer().end_of_text) == (0.5, 256)


def begins_by_itself() -> Tokenizer:
    """One whose template puts a token before every text, which training leaves out."""
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, "a"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokenizer",
    [lambda: Tokenizer(train_bpe([[(TEXT * 9, True)]], 270)), begins_by_itself],
    ids=["bpe", "template"],
)
def test_a_text_has_the_same_tokens_there(tmp_path, tokenizer):
    source = trained.Trained(made(LLAMA), {}, tokenizer())
    trained.export(source, tmp_path / "out", "transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXT).input_ids == source.tokenizer.encode([TEXT])[0].tolist()
    assert theirs.eos_token_id == source.tokenizer.end_of_text


def test_a_model_that_was_changed_is_refused_by_the_name_of_what_is_new(tmp_path):
    model = made(LLAMA)
    model.blocks[0].attention.probe = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"^blocks\.0\.attention\.probe\.bias is not of .*$"):
        trained.export(trained.Trained(model, {}, None), tmp_path / "out", "transformers")
    assert not list(tmp_path.iterdir())


def saved(folder: Path, dtype: torch.dtype = torch.float32, **shape):
    """A Llama of theirs with 110 tokens, in several files."""
    base = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    base |= {"num_attention_heads": 2, "vocab_size": 110, "max_position_embeddings": 9}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**base, **shape})).to(dtype)
    llama.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return llama


NORM = "model.norm.weight"
OLD = {"rope_theta": 10000, "rope_scaling": None, "rope_parameters": None, "mlp_bias": None}
OLD |= {"num_key_value_heads": None, "head_dim": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rewritten"),
    [
        ({"tie_word_embeddings": True}, {}),
        ({"attention_bias": True, "mlp_bias": True, "head_dim": 6}, {}),
        ({"dtype": torch.bfloat16}, {name: value for name, value in OLD.items() if value}),
    ],
)
def test_a_llama_of_transformers_computes_the_same_here(tmp_path, shape, rewritten):
    llama = saved(tmp_path / "llama", **shape).float()
    if rewritten:  # As older versions wrote it.
        file = tmp_path / "llama/config.json"
        config = {k: v for k, v in json.loads(file.read_text()).items() if k not in OLD}
        file.write_text(json.dumps(config | rewritten))
    ids = torch.randint(110, (2, 9))
    with torch.no_grad():
        difference = trained.load(tmp_path / "llama").model(ids) - llama(ids).logits
    assert difference.abs().max() <= 1e-5


def start(folder: Path, **shape) -> LanguageModel:
    config = {"n_heads": 2, "d_model": 16, "d_ff": 24, "norm_eps": 1e-6, **LLAMA, **shape}
    return LanguageModel(TransformerConfig(110, 9, **config), gamma=0.9, init_from=str(folder))


@pytest.mark.slow
def test_a_fit_begins_with_the_weights_of_a_llama_and_resumes_bit_by_bit(tmp_path):
    llama = saved(tmp_path / "llama")
    summary, seen = RunSummary(report=False), Snapshots()
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    options = {"max_steps": 6, "enable_checkpointing": True}
    module = start(tmp_path / "llama")
    assert module.init_audit.headline() == f"no matrix drawn, weights as in {tmp_path / 'llama'}"
    fit(tmp_path / "a", summary, seen, keep, module=module, **options)
    first, theirs = seen.weights[0], llama.state_dict()
    query = "blocks.1.attention.query.weight"
    assert torch.equal(
        first[f"transformer.{query}"], theirs["model.layers.1.self_attn.q_proj.weight"]
    )
    assert torch.equal(first["transformer.lm_head.weight"], theirs["lm_head.weight"])
    for said in (summary.summary, module.hparams):
        assert (said["gamma"], said["init_from"]) == (None, str(tmp_path / "llama"))

    (tmp_path / "llama").rename(tmp_path / "moved")
    resumed, half = Snapshots(), tmp_path / "step=3.ckpt"
    fit(tmp_path / "b", resumed, module=start(tmp_path / "moved"), ckpt_path=half, **options)
    assert all(torch.equal(w, seen.weights[6][name]) for name, w in resumed.weights[6].items())
    drawn = LanguageModel(start(tmp_path / "moved").transformer.config, gamma=0.9)
    with pytest.raises(InputError, match="init_from is None, but the checkpoint was trained with"):
        fit(tmp_path / "c", module=drawn, ckpt_path=half, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads 1, not 2$"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta 500000.0, not 10000.0$"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type llama3, not default$"),
        ({"model_type": "gpt2"}, "config.json is of a model of type gpt2; it must be a llama$"),
        ({"hidden_size": "wide"}, "config.json is not the config of"),
        (
            {"rms_norm_eps": 1e-5},
            r"\(norm_eps is 1e-06\): give --model.transformer.norm_eps 1e-05$",
        ),
        ({"num_hidden_layers": 3}, "n_layers is 2.*give --model.transformer.n_layers 3$"),
        ({"intermediate_size": 32, "vocab_size": 111}, "vocab_size is 110, d_ff is 24.*111 tokens"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(tmp_path, edit, said):
    saved(tmp_path / "llama")
    file = tmp_path / "llama/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(InputError, match=said) as refused:
        start(tmp_path / "llama")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda weights: weights.pop(NORM), f"{NORM} of shape .16,.: no such tensor$"),
        (lambda weights: weights.update({NORM: torch.ones(1)}), f"{NORM} .*: shape .1,.$"),
        (lambda weights: weights.update(score=torch.ones(2)), "score has no place in the model$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, damage, said):
    trained.export(trained.Trained(made(LLAMA), {}, None), tmp_path / "out", "transformers")
    file = tmp_path / "out/model.safetensors"
    weights = load_file(file)
    damage(weights)
    save_file(weights, file)
    with pytest.raises(InputError, match=said) as refused:
        trained.load(tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    trained.export(trained.Trained(made(LLAMA), {}, None), tmp_path / "out", "transformers")
    file = tmp_path / "out/model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="out does not hold the weights of its model: Safetensor"):
        trained.load(tmp_path / "out")
    file.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist: .* save_pretrained"):
        trained.load(tmp_path / "out")


@pytest.mark.slow
def test_the_command_line_exports_and_begins_with_an_export(workspace, command_line, capsys):
    command_line("fit", *TINY, "--trainer.max_steps=1")
    last = "--ckpt=runs/anchor/gamma0.8-seed1/checkpoints/last.ckpt"
    capsys.readouterr()
    command_line("export", last, "--out=there", "--format=transformers")
    told = "it opens by AutoModelForCausalLM.from_pretrained('there', trust_remote_code=True)"
    assert capsys.readouterr().out == f"exported to there\n{told}\n"
    command_line("fit", *TINY, "--trainer.max_steps=1", "--model.init_from=there")
    out, err = capsys.readouterr()
    assert "weights of there; AnchorComposition" in err
    assert "finished: from there, seed 1" in out
    summary = json.loads(Path("runs/anchor/from-there-seed1/summary.json").read_text())
    assert (summary["gamma"], summary["init_from"]) == (None, "there")
    with pytest.raises(SystemExit, match="init_from nowhere: no such folder"):
        command_line("fit", *TINY, "--model.init_from=nowhere")
