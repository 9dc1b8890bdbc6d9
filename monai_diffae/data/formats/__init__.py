"""File formats: each module reads one family of formats as a :class:`~monai_diffae.data.formats.scan.Scan`."""

from monai_diffae.data.formats.scan import Header, Scan

__all__ = ["Header", "Scan"]
