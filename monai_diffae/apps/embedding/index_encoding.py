"""Encode cases batch by batch: one z_sem per case, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from monai_diffae.apps.embedding.encoding import encode_stream, whole_images
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.cases import Case
from monai_diffae.data.slice_cases import expand_slices
from monai_diffae.data.streamed import read_stream
from monai_diffae.inferers.reconstruction import images_at_once

Code: TypeAlias = NDArray[np.float32] | str
"""The z_sem (D,) of a case, or the reason of its failure."""


def encode_cases(
    cases: Sequence[Case], trained: TrainedBundle, batch_size: int, workers: int
) -> Iterator[dict[str, Code]]:
    """Encode cases, and yield their codes by id as soon as about ``batch_size`` images are encoded.

    A volume in a 2D bundle gets the mean of its slices, in float64 and in their order; one bad slice fails it.
    """
    images, owners, failed = _images(cases, trained)
    if failed:
        yield failed
    key = trained.encoder_key
    items = [image.item() for image in images]
    stream = read_stream(items, trained.preprocessing, (key,), workers, ahead=batch_size)
    numbered, cut = zip(range(len(items)), items, stream, strict=True), whole_images(trained, key)
    at_once = images_at_once(trained.image_shape[1:])
    for start, stop in _batches(owners, -(-batch_size // at_once) * at_once):
        results = islice(numbered, stop - start)
        positions, rows, failures = encode_stream(results, trained, key, cut, batch_size, lambda: None)
        bad = sorted({*range(start, stop)} - {*positions})
        codes: dict[int, Code] = dict(zip(positions, rows, strict=True))
        codes |= {position: failure.reason for position, failure in zip(bad, failures, strict=True)}
        yield {
            cases[owner].id: _pooled(cases[owner], [(images[position], codes[position]) for position in members])
            for owner, members in groupby(range(start, stop), owners.__getitem__)
        }


def _pooled(case: Case, codes: Sequence[tuple[Case, Code]]) -> Code:
    """The code of a case from those of its images."""
    reason = next((_reason(case, image, code) for image, code in codes if isinstance(code, str)), None)
    if reason is not None:
        return reason
    z_sem = np.stack([code for _, code in codes if not isinstance(code, str)]).astype(np.float64).mean(axis=0)
    return z_sem.astype(np.float32)


def _images(cases: Sequence[Case], trained: TrainedBundle) -> tuple[list[Case], list[int], dict[str, Code]]:
    """The images to encode, the case that each belongs to, and the reasons of cases whose header cannot be read."""
    if trained.config["spatial_dims"] == 3:
        return list(cases), list(range(len(cases))), {}
    names = {"axis": "slice_axis", "range": "slice_range", "step": "slice_step"}
    settings = {name: trained.config[key] for name, key in names.items() if key in trained.config}
    images: list[Case] = []
    owners: list[int] = []
    failed: dict[str, Code] = {}
    for owner, case in enumerate(cases):
        slices, failures = expand_slices([case], **settings)
        images += slices
        owners += [owner] * len(slices)
        if failures:
            failed[case.id] = _reason(case, case, failures[0].reason)
    return images, owners, failed


def _batches(owners: Sequence[int], batch_size: int) -> Iterator[tuple[int, int]]:
    """The first and last position of batches of at least ``batch_size`` images, but the last; cases are not divided."""
    start = 0
    for position in range(1, len(owners) + 1):
        is_end = position == len(owners)
        if is_end or (position - start >= batch_size and owners[position] != owners[position - 1]):
            yield start, position
            start = position


def _reason(case: Case, image: Case, reason: str) -> str:
    """A reason without paths and file names, which may contain patients' names."""
    for files in case.images.values():
        for file in (files,) if isinstance(files, Path) else files:
            reason = reason.removeprefix(f"{file.name}: ").replace(str(file), case.id).replace(str(file.parent), "")
    return reason if image.slice_index is None else f"slice {image.slice_index}: {reason}"
