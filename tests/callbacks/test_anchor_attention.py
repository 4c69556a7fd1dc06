"""What the last token attends to, against attention computed again from queries and keys."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import TINY
from scipy.special import softmax

from callbacks.anchor_attention import SEQUENCES, AnchorAttention, drawn
from lit_gamma import InputError, Transformer, TransformerConfig, trajectory
from lit_gamma.data import Addition, AnchorComposition


def attention(model: Transformer, ids: torch.Tensor) -> list[np.ndarray]:
    """Of each layer (sequences, heads, length, length), from what its projections give."""
    seen: list[np.ndarray] = []
    for block in model.blocks:
        for projection in (block.attention.query, block.attention.key):
            projection.register_forward_hook(lambda *of: seen.append(of[2].numpy()))
    with torch.no_grad():
        model(ids)
    found = []
    for q, k in zip(seen[::2], seen[1::2], strict=True):
        q, k = (x.reshape(*x.shape[:2], 2, -1).swapaxes(1, 2) for x in (q, k))
        logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        later = np.triu(np.ones(logits.shape[-2:], bool), 1)
        found.append(softmax(np.where(later, -np.inf, logits), axis=-1))
    return found


def test_the_last_token_reads_what_its_queries_and_keys_say(workspace, command_line):
    command_line("fit", *TINY, "--trainer.callbacks+=AnchorAttention", "--trainer.max_steps=40",
                 "--model.transformer.n_heads=2", "--model.gamma=0.4")  # fmt: skip
    run = "runs/anchor/gamma0.4-seed1"
    rows = trajectory.load(run)["anchor_attention"]
    assert sorted(set(rows["step"])) == [0, 1, 3, 10, 32, 40]
    checkpoint = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=False)
    model = Transformer(TransformerConfig(**checkpoint["hyper_parameters"]["transformer"]))
    prefix = "transformer."
    model.load_state_dict({n.removeprefix(prefix): w for n, w in checkpoint["state_dict"].items()
                           if n.startswith(prefix)})  # fmt: skip
    data = AnchorComposition(n_train=512, n_val=64, batch_size=16)
    data.setup("fit")
    ids = data.val_sets["unseen"].input_ids[:SEQUENCES]
    layers = attention(model.double().eval(), ids)
    last, length = rows[rows["step"] == 40], ids.shape[1]
    assert list(zip(last["layer"], last["head"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in last.to_dict("records"):
        read = []
        for weights, tokens in zip(layers[row["layer"]], ids.tolist(), strict=True):
            first_anchor = next(i for i, token in enumerate(tokens) if token in data.anchors)
            if first_anchor + 2 < length:
                places = [first_anchor - 1, first_anchor, first_anchor + 1]
                read.append(weights[row["head"], -1, places])
        assert 0 < len(read) < len(ids)  # In some the last token is an anchor.
        recorded = [row[name] for name in ("key", "first_anchor", "second_anchor")]
        np.testing.assert_allclose(recorded, np.mean(read, axis=0), rtol=1e-4)
    assert np.abs(last[["key", "second_anchor"]] - 1 / length).to_numpy().max() > 0.01


def test_the_picture_has_a_line_as_wide_as_the_attention_and_its_value():
    flow = torch.zeros(2, 1, 4, 4)
    flow[0, 0, 2, 0], flow[1, 0, 3, 2], flow[1, 0, 3, 3] = 0.5, 0.75, 0.25
    (axes,) = drawn(flow, "a title").axes
    wide = {
        tuple(zip(*line.get_data(), strict=True)): line.get_linewidth()
        for line in axes.lines
        if line.get_linewidth() > 0 and line.get_color() == "C0"
    }
    assert wide == {((0, 0), (2, 1)): 4.5, ((2, 1), (3, 2)): 6.75, ((3, 1), (3, 2)): 2.25}
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.75", "0.25"]  # 1.00: the others


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Addition(), "the data is Addition; leave the callback out"),
        (AnchorComposition(context_length=3), "data.context_length is 3; make it 4 or more"),
    ],
)
def test_what_has_no_token_after_the_anchors_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        AnchorAttention().setup(SimpleNamespace(datamodule=data), None, "fit")
