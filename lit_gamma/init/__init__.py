"""What is done to a model before training: the γ rule, its audit, the gate."""
