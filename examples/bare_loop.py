"""A loop of one's own with a record; interrupted and resumed at step 20.

python examples/bare_loop.py
"""

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gamma import gamma_init_, record
from lit_gamma.callbacks import Condensation, Schedule, TokenLoss, WeightNorms


def train(run_dir, steps, checkpoint=None):
    """Trains up to a step and returns the folder of the record."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=100, num_attention_heads=4, pad_token_id=None, **shape)
    )
    gamma_init_(model, 1.0, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    saved = torch.load(checkpoint) if checkpoint else {"trajectory": None}
    if checkpoint:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    ids = torch.randint(100, (80, 16), generator=torch.Generator().manual_seed(2))
    batches = ids.view(10, 2, 4, 16)  # An epoch of ten steps, each of two micro-batches of four.
    recorded = [Condensation(Schedule(every=5)), WeightNorms(), TokenLoss()]
    with record(model, run_dir, recorded, total_steps=30, state=saved["trajectory"]) as trajectory:
        for step in range(trajectory.run.step, steps):
            for batch in batches[step % 10]:
                out = model(input_ids=batch, labels=batch)
                (out.loss / 2).backward()
                losses = F.cross_entropy(
                    out.logits.detach()[:, :-1].flatten(0, 1),
                    batch[:, 1:].flatten(),
                    reduction="none",
                )
                trajectory.batch({"input_ids": batch}, {"token_loss": losses})
            optimizer.step()
            optimizer.zero_grad()
            trajectory.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "trajectory": trajectory.state_dict()}, f"{run_dir}/step={steps}.pt")
    return run_dir


if __name__ == "__main__":
    train("runs/loop", 20)
    train("runs/loop", 30, "runs/loop/step=20.pt")
