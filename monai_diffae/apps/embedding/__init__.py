"""Encode scans to z_sem: ``monai_diffae.embed``, ``monai_diffae.DiffAEEncoder`` and ``monai_diffae.EmbeddingIndex``."""

__all__: list[str] = []
