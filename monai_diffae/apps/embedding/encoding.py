"""z_sem of images, to the bit the same whatever is encoded beside them, and of whole cohorts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.embedding.patches import PatchCutter
from monai_diffae.apps.embedding.shards import Parts, Process
from monai_diffae.bundle.loading import TrainedBundle
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import Arrays, check_size, failure_of, read_in_turn
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.inferers.exact_encoding import encode_exactly, images_at_once

_PART = 16  # times what the encoder takes at once: some seconds of work
_SCANS_A_PART = 4  # where each makes many patches

Cut = Callable[[Arrays], Iterator[tuple[NDArray[np.float32], Tensor]]]
"""A scan's images ``[C, *S]``, each with the numbers that say where in the scan it lies."""

PATIENCE_S = 3600.0
"""How long the first process waits for the next part of another."""


@dataclass(frozen=True)
class EncodedCohort:
    """What :func:`encode_cohort` made.

    Attributes:
        cases: those that could be used, in the cohort's order; with patches, each as often as it has some.
        z_sem: theirs, (N, D) float32.
        places: of patches, where they lie: a row each, the columns as :attr:`PatchCutter.place_names` says.
        failures: the others.
        parts: to be removed when all is written.
    """

    cases: list[Case]
    z_sem: NDArray[np.float32]
    places: pd.DataFrame | None
    failures: list[Failure]
    parts: Parts


def encode_cohort(
    cases: Sequence[Case],
    trained: TrainedBundle,
    folder: Path,
    *,
    encoder_key: str = "image",
    cutter: PatchCutter | None = None,
    batch_size: int = 64,
    workers: int = 0,
    process: Process,
) -> EncodedCohort | None:
    """Read, preprocess and encode cases in one go: no more than a batch of images is kept.

    What is done is in parts on the disk, so that a killed run goes on; several processes do every
    ``world_size``-th part each, and the first one gathers them. What failed in an earlier run is tried again, by the
    first process: the disk or network may have been the reason.

    Args:
        cases: to be encoded.
        trained: the bundle.
        folder: for the parts, as :func:`~monai_diffae.apps.embedding.shards.parts_folder` names it.
        encoder_key: the image that the encoder sees.
        cutter: makes patches of scans; None: they are encoded whole.
        batch_size: images that are held on the device at once.
        workers: processes that read ahead.
        process: which one this is.

    Returns:
        None in a process that is not the first.

    Raises:
        MachineError: a worker died, or the parts of another process do not come.
    """
    at_once = images_at_once(trained.image_shape[1:])
    parts = Parts(folder, len(cases), _PART * at_once if cutter is None else _SCANS_A_PART)
    again = _failed_before(parts) if process.rank == 0 else {}
    if cutter is None and encoder_key != "image":  # a part's first image says of which size the others are to be
        for part in again:
            again[part] = list(parts.cases_of(part))
    missing = [part for part in parts.missing() if part % process.world_size == process.rank]
    todo = again | {part: list(parts.cases_of(part)) for part in missing}
    positions = [position for part in sorted(todo) for position in todo[part]]
    items = [cases[position].item() for position in positions]
    transform, keys = (trained.preprocessing, (encoder_key,)) if cutter is None else (cutter, cutter.keys)
    # a batch; but a scan that is cut is a whole volume, and keeps the encoder busy
    ahead = max(batch_size, at_once) if cutter is None else 1
    read = read_in_turn(items, transform, keys, workers, ahead)
    with progress(len(positions), f"encoding {len(positions)} cases") as advance:
        in_turn = zip(positions, items, read, strict=True)
        for part, results in groupby(in_turn, lambda result: result[0] // parts.size):
            cut = whole_images(trained, encoder_key) if cutter is None else cutter.cut
            keep = parts.write if len(todo[part]) == len(parts.cases_of(part)) else parts.add
            keep(part, *encode_in_turn(results, trained, encoder_key, cut, batch_size, advance))
    if process.rank > 0:
        return None
    parts.wait(process.world_size, PATIENCE_S)
    used, rows, failures = parts.read()
    names = () if cutter is None else cutter.place_names
    places = pd.DataFrame(rows[:, : len(names)], columns=names) if names and used else None
    return EncodedCohort([cases[position] for position in used], rows[:, len(names) :], places, failures, parts)


def _failed_before(parts: Parts) -> dict[int, list[int]]:
    """The cases of parts that are there which an earlier run could not use; other processes leave these parts alone."""
    there = set(range(len(parts))) - set(parts.missing())
    return {part: failed for part in sorted(there) if (failed := parts.failed(part))}


def whole_images(trained: TrainedBundle, key: str) -> Cut:
    """Takes scans as one image each, and refuses those of another size."""
    # where the encoder sees another image than the decoder draws, its size is that of the first one
    shapes = {key: trained.image_shape} if key == "image" else {}

    def cut(scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        shapes.setdefault(key, scan[key].shape)
        wrong = check_size(scan, shapes)
        if wrong is not None:
            raise wrong
        yield np.empty(0, np.float32), torch.from_numpy(scan[key])

    return cut


def encode_in_turn(
    results: Iterator[tuple[int, Mapping[str, Any], Arrays | Exception]],
    trained: TrainedBundle,
    key: str,
    cut: Cut,
    batch_size: int,
    advance: Callable[[], None],
) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
    """Encode scans as they are read; no more than a batch of images, and those of a scan, are kept.

    Args:
        results: positions, items as from :meth:`Case.item() <monai_diffae.data.cases.Case.item>`, and what
            :func:`~monai_diffae.data.streamed.read_in_turn` made of them.
        trained: the bundle.
        key: the image that the encoder sees.
        cut: makes images of a scan, such as :func:`whole_images`.
        batch_size: images that are held on the device at once.
        advance: called after each scan.

    Returns:
        A row an image, (N, K + D) float32, its place and z_sem; whose position each has; scans that make none.
    """
    at_once = images_at_once(trained.image_shape[1:])
    batch_size = -(-batch_size // at_once) * at_once  # so that the encoder repeats nothing
    used: list[int] = []
    failures: list[Failure] = []
    places: list[NDArray[np.float32]] = []
    waiting: list[Tensor] = []
    codes: list[Tensor] = []

    def encode() -> None:
        if waiting:
            images = torch.stack(waiting).to(trained.device)
            codes.append(encode_exactly(images, trained.inferer, trained.network).cpu())
            waiting.clear()

    for position, item, result in results:
        try:
            if isinstance(result, Exception):
                raise result
            images = list(cut(result))
        except ScanError as error:
            failures.append(failure_of(item, position, key, error))
            images = []
        for place, image in images:
            used.append(position)
            places.append(place)
            waiting.append(image)
            if len(waiting) == batch_size:
                encode()
        advance()
    encode()
    if not codes:
        return [], np.empty((0, 0), np.float32), failures
    return used, np.concatenate([np.stack(places), torch.cat(codes).numpy()], axis=1), failures


def check_any(cases: Collection[Any], failures: Sequence[Failure], what: str) -> None:
    """Refuse a cohort of which nothing is left.

    Raises:
        CohortError: with the first reason.
    """
    if not cases:
        first = failures[0]
        raise CohortError(f"all {len(failures)} {what} failed, the first '{first.case_id}': {first.reason}")
