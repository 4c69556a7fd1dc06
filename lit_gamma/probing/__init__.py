"""One forward without a trace, and what is watched in it.

A probe is a fixed batch that is run so: the start of the first training batch for activations,
chosen validation blocks for the loss of tokens.
"""
