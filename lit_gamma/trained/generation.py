"""Sampling text from a model, each token computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lit_gamma.errors import InputError
from lit_gamma.model.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the logits.

    Attributes:
        temperature: The logits are divided by it; 0 takes the most likely token.
        top_k: Draw from the k most likely tokens only.
        top_p: Draw from the fewest most likely tokens that together have this probability
            (nucleus sampling, arXiv 1904.09751).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie above 0 and be at most 1, got {self.top_p}")

    def draw(self, logits: Tensor, generator: Generator | None = None) -> Tensor:
        """Draws one token per row.

        Args:
            logits: Shape (batch, vocab_size).
            generator: Source of randomness, on the device of the logits.

        Returns:
            int64 of shape (batch,).
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        probability = torch.softmax(logits.float() / self.temperature, dim=-1)
        ordered, tokens = probability.sort(descending=True, stable=True)
        if self.top_k is not None:
            ordered[:, self.top_k :] = 0
        if self.top_p is not None:
            ordered[ordered.cumsum(-1) - ordered >= self.top_p * ordered.sum(-1, True)] = 0
        return tokens.gather(1, ordered.multinomial(1, generator=generator))[:, 0]


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt: Tensor,
    n_tokens: int,
    sampling: Sampling = Sampling(),
    vocab_size: int | None = None,
    generator: Generator | None = None,
) -> Iterator[Tensor]:
    """Continues a prompt.

    Keys and values are cached. Once the sequence is longer than ``context_length`` the model goes
    on from its last half: positions are counted anew from there.

    Args:
        model: The model, in evaluation mode.
        prompt: Token ids, int64 of shape (batch, length), at least one.
        n_tokens: How many tokens to add.
        sampling: How they are drawn.
        vocab_size: Draw from the first tokens only, where the model's vocabulary was rounded up.
        generator: Source of randomness.

    Yields:
        The next token of each sequence, int64 of shape (batch,).
    """
    context_length = model.config.context_length
    tokens, fresh = prompt, prompt[:, -context_length:]
    cache = model.new_cache(len(prompt))
    for _ in range(n_tokens):
        if cache[0].length + fresh.shape[1] > context_length:
            cache = model.new_cache(len(prompt))
            fresh = tokens[:, -max(1, context_length // 2) :]
        logits = model(fresh, cache=cache)[:, -1, :vocab_size]
        fresh = sampling.draw(logits, generator)[:, None]
        tokens = torch.cat((tokens, fresh), dim=1)
        yield fresh[:, 0]
