"""Commands that evaluate embeddings and models."""
