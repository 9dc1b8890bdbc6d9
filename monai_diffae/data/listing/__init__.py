"""List the scans of a folder as a table: with labels from class folders, from a table of participants and from BIDS."""

from __future__ import annotations

from monai_diffae.data.listing.appearance import Appearance, look_at
from monai_diffae.data.listing.listings import Listing, Sources, list_cases
from monai_diffae.data.listing.pseudonyms import with_hashes
from monai_diffae.data.listing.tables import write_listing
from monai_diffae.data.listing.twins import SeparatedTwins, group_twins, mark_twins

__all__ = [
    "Appearance",
    "Listing",
    "SeparatedTwins",
    "Sources",
    "group_twins",
    "list_cases",
    "look_at",
    "mark_twins",
    "with_hashes",
    "write_listing",
]
