"""Encode scans to z_sem. The public names are ``monai_diffae.embed`` and ``monai_diffae.DiffAEEncoder``."""

__all__: list[str] = []
