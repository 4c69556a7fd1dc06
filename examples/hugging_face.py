"""Hugging Face's Trainer with a record; interrupted and resumed at step 20.

python examples/hugging_face.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lit_gamma import gamma_init_
from lit_gamma.callbacks import Condensation, Schedule, TokenLoss, WeightNorms
from lit_gamma.hf import Trajectory


def train(run_dir, steps, checkpoint=None):
    """Trains up to a step and returns the folder of the record."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=100, num_attention_heads=4, pad_token_id=None, **shape)
    )
    gamma_init_(model, 1.0, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(100, (80, 16), generator=torch.Generator().manual_seed(2))
    recorded = Trajectory(Condensation(Schedule(every=5)), WeightNorms(), TokenLoss())
    arguments = TrainingArguments(
        run_dir,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        save_steps=10,
        report_to="none",
        use_cpu=True,
    )
    data = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[recorded])
    trainer.train(resume_from_checkpoint=checkpoint)
    return run_dir


if __name__ == "__main__":
    train("runs/hf", 20)
    train("runs/hf", 30, "runs/hf/checkpoint-20")
