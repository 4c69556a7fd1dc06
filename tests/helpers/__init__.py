"""What several tests need: models of others, references, small runs."""
