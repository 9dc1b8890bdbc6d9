"""File formats: each module reads one family into a :class:`~monai_diffae.data.formats.scan.Scan`."""
