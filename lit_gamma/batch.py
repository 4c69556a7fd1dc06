"""What a batch of language is, for data, model and callbacks alike.

``input_ids`` and ``labels``, int64 of shape (batch, context_length); a label stands where it is
predicted.
"""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a token that has no loss, as everywhere in the field."""


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the cross-entropy of every token in float32, nats; 0 where there is no label.

    Args:
        logits: Shape (batch, length, vocab_size).
        labels: Shape (batch, length).

    Returns:
        Shape (batch, length).
    """
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(labels)
