"""What a batch of language is, for data, model and callbacks alike.

``input_ids`` and ``labels``, int64 of shape (batch, context_length); a label stands where it is
predicted.
"""

IGNORED = -100
"""The label of a token that has no loss, as everywhere in the field."""
