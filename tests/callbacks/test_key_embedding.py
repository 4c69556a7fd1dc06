"""The embedding of the keys, against NumPy on the weights of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.runs import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import trajectory


def test_eigenvalues_and_neighbours_are_those_of_the_weights(workspace, command_line):
    command_line("fit", *TINY, "--trainer.callbacks+=KeyEmbedding", "--trainer.max_steps=20")
    run = "runs/anchor/gamma0.8-seed1"
    rows = trajectory.load(run)["key_embedding"].set_index("step")
    weights = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    (name,) = (name for name in weights if name.endswith("embedding.weight"))
    keys = weights[name][20:100].double().numpy()

    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(keys, rowvar=False)))[::-1][:5]
    recorded = rows.loc[20, [f"eigenvalue_{i}" for i in range(1, 6)]]
    np.testing.assert_allclose(recorded.to_numpy(float), eigenvalues, rtol=1e-5)
    unit = keys - keys.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = np.mean([unit[k] @ unit[k + 1] for k in range(79)])
    assert rows.loc[20, "neighbour_cosine"] == pytest.approx(cosine, abs=1e-6)
    assert abs(rows.loc[0, "neighbour_cosine"]) < 4 / np.sqrt(79 * 16)  # As drawn: in no order.
    pictures = (
        EventAccumulator(run, {"images": 0}).Reload().Images("1_anchor_reasoning/key_embedding")
    )
    assert [picture.step for picture in pictures] == [0, 1, 3, 10, 20]


@pytest.mark.parametrize(
    "reads", ["KeyEmbedding reads the keys", "AnchorReasoning reads the pairs"]
)
def test_data_of_another_task_is_refused(workspace, command_line, reads):
    message = f"{reads} of AnchorComposition, but the data is Addition; leave the callback out"
    with pytest.raises(SystemExit, match=message):
        command_line("fit", "-c", "configs/addition.yaml", "--trainer.accelerator=cpu",
                     f"--trainer.callbacks+={reads.split()[0]}")  # fmt: skip
