"""Commands that evaluate embeddings and models. Their functions are imported from ``monai_diffae``."""

__all__: list[str] = []
