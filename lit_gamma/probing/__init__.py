"""One forward without a trace, and what is watched in it."""
