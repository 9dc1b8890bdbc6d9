"""List the scans of a folder as a table: with labels from class folders, from a table of participants and from BIDS."""

from __future__ import annotations

from monai_diffae.data.listing.listings import Listing, Sources, list_cases
from monai_diffae.data.listing.tables import write_listing

__all__ = ["Listing", "Sources", "list_cases", "write_listing"]
