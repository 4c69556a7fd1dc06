"""How something is recorded: when, at what cost, from what."""
