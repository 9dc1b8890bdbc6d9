"""Commands that make a model."""
