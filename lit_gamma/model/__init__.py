"""What is trained: the transformer and its LightningModule."""
