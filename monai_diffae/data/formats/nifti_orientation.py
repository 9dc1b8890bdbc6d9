"""What is doubtful about the geometry in a NIfTI header: readable, but perhaps not what the scanner measured."""

from __future__ import annotations

from collections.abc import Iterator

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_diffae.data.formats.scan import Doubt

_SAME_SPACING = 0.02  # relative difference of two spacings that are the same
_SHEARED = 0.01  # cosine of two axes


def doubts(header: nib.Nifti1Header, affine: NDArray[np.float64]) -> Iterator[Doubt]:
    """Yield the doubts; the sform is used if its code is above 0, else the qform (as in nibabel).

    Args:
        header: the header, with the dimensions and spacings checked.
        affine: the affine that is used, in mm.

    Example:
        >>> header = nib.Nifti1Header()
        >>> header.set_data_shape((4, 4, 4))
        >>> str(next(doubts(header, header.get_best_affine())))
        'it has no orientation (the codes of sform and qform are 0); left and right are a guess'
    """
    has_sform, has_qform = (int(header[f"{name}_code"]) > 0 for name in ("sform", "qform"))
    if not has_sform and not has_qform:
        wrong = "it has no orientation (the codes of sform and qform are 0)"
        yield Doubt("orientation", wrong, "left and right are a guess", "set its sform from the original scan")
    if has_sform and has_qform and _is_mirrored(header):
        wrong = "its sform and qform disagree about left and right"
        yield Doubt("orientation", wrong, "the sform is used", "convert it again from the original scan")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > _SHEARED:
        yield Doubt("sheared", "its affine is sheared", "distances are approximate", "resample it to a plain grid")
    elif has_sform and _has_other_spacing(header):
        wrong = "its voxel spacing (pixdim) is not that of its sform"
        yield Doubt("spacing", wrong, "the sform is used", "convert it again from the original scan")


def _is_mirrored(header: nib.Nifti1Header) -> bool:
    """Whether one of sform and qform is the mirror image of the other; False if the qform's numbers are no rotation."""
    try:
        qform = header.get_qform()
    except ValueError:
        return False
    return bool(np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0)


def _has_other_spacing(header: nib.Nifti1Header) -> bool:
    sides = int(header["dim"][0])
    spacing = np.linalg.norm(header.get_sform()[:3, :3], axis=0)[:sides]
    declared = np.asarray(header["pixdim"][1:4], np.float64)[:sides]
    return not np.allclose(spacing, declared, rtol=_SAME_SPACING)
