"""Header extensions of NIfTI: records between the header and the voxels, such as AFNI's history.

Extensions are not used. Their sizes are checked, because a wrong size shows that the file is damaged.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from monai_diffae.data.formats.scan import problem

_SMALLEST = 16  # bytes: a shorter remainder holds no extension


def check_extensions(path: Path, content: bytes, byte_order: Literal["<", ">"]) -> None:
    """Check that the extensions fill the space between header and voxels; zeros after the last one are allowed.

    Each extension begins with two int32: its size in bytes, including these eight, and a code for its content. The
    standard requires sizes that are multiples of 16. Other sizes are accepted, as nibabel does.

    Args:
        path: the file, for the message.
        content: the bytes between the header and the voxels, or those that follow the header in a .hdr file.
        byte_order: the header's byte order.

    Raises:
        ScanError: a size is below 8, or larger than the remaining space.

    Example:
        >>> check_extensions(Path("a.nii"), struct.pack("<ii8s", 16, 6, b"comment"), "<")
    """
    start, end = 0, len(content.rstrip(b"\0"))
    while start < end and len(content) - start >= _SMALLEST:
        (size,) = struct.unpack_from(f"{byte_order}i", content, start)
        if not 8 <= size <= len(content) - start:
            raise problem(
                path, f"a header extension is damaged ({size} of {len(content) - start} bytes)", "export it again"
            )
        start += size
