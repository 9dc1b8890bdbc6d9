"""Commands that answer questions of a study from a table of embeddings, one file each."""

__all__: list[str] = []
