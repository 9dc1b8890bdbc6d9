"""Encode scans to z_sem while they are read, and whole cohorts in shards."""

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
from monai_diffae.apps.embedding.shards import Shards
from monai_diffae.apps.processes import Process
from monai_diffae.bundle.loading import TrainedBundle
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure, SkippedCases
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import Arrays, check_size, log_failure, read_hashed_stream
from monai_diffae.data.workers import worker_errors
from monai_diffae.errors import CohortError, ScanError, counted
from monai_diffae.inferers.reconstruction import encode_exactly, images_at_once

_CALLS_PER_SHARD = 16  # calls of the encoder: some seconds of work
_SCANS_PER_SHARD = 4  # if each scan is cut into many patches

Cut = Callable[[Arrays], Iterator[tuple[NDArray[np.float32], Tensor]]]
"""A function that yields a scan's images ``[C, *S]``, each with an array that says where in the scan it lies."""

PATIENCE_S = 3600.0
"""How long the first process waits for the next shard of another process."""


@dataclass(frozen=True)
class EncodedCohort:
    """The result of :func:`encode_cohort`.

    Attributes:
        cases: (N,) the case of each row, in the cohort's order; with patches, a case has one row per patch.
        z_sem: (N, D) float32.
        places: where each patch lies, with the columns :attr:`PatchCutter.place_names`; None without patches.
        failures: the cases without rows.
        contents: hashes of the scans of all cases, in the cohort's order, taken while they were read.
        shards: the shards on disk, to be removed when all tables are written.
    """

    cases: list[Case]
    z_sem: NDArray[np.float32]
    places: pd.DataFrame | None
    failures: list[Failure]
    contents: list[str]
    shards: Shards


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
    failures_name: str | None = None,
) -> EncodedCohort | None:
    """Read, preprocess and encode cases, with at most one batch of images in memory; None except in the first process.

    Results are written in shards, so that an interrupted run can be resumed. Each of several processes makes every
    ``world_size``-th shard, and the first process gathers all of them. The first process also retries the cases that
    failed in an earlier run, because the disk or network may have been the reason.
    """
    at_once = images_at_once(trained.image_shape[1:])
    shards = Shards(folder, len(cases), _CALLS_PER_SHARD * at_once if cutter is None else _SCANS_PER_SHARD)
    retries = _failed_before(shards) if process.rank == 0 else {}
    if cutter is None and encoder_key != "image":  # the first image of a shard determines the size of its others
        retries = {shard: list(shards.positions(shard)) for shard in retries}
    missing = [shard for shard in shards.missing() if shard % process.world_size == process.rank]
    work = retries | {shard: list(shards.positions(shard)) for shard in missing}
    positions = [position for shard in sorted(work) for position in work[shard]]
    items = [cases[position].item() for position in positions]
    transform, keys = (trained.preprocessing, (encoder_key,)) if cutter is None else (cutter, cutter.keys)
    # read a batch ahead; a scan that is cut is a whole volume, and one keeps the encoder busy
    ahead = max(batch_size, at_once) if cutter is None else 1
    contents: dict[int, str] = {}
    skipped = SkippedCases(failures_name)
    stream = _noted(positions, read_hashed_stream(items, transform, keys, workers, ahead), contents)
    with worker_errors(), progress(len(positions), f"encoding {counted(len(positions), 'case')}") as advance:
        numbered = zip(positions, items, stream, strict=True)
        for shard, results in groupby(numbered, lambda result: result[0] // shards.size):
            cut = whole_images(trained, encoder_key) if cutter is None else cutter.cut
            save = shards.write if len(work[shard]) == len(shards.positions(shard)) else shards.add
            encoded = encode_stream(results, trained, encoder_key, cut, batch_size, advance, skipped)
            save(shard, *encoded, {position: contents.pop(position) for position in work[shard]})
    if process.rank > 0:
        return None
    shards.wait(process.world_size, PATIENCE_S)
    row_positions, rows, failures = shards.read()
    names = () if cutter is None else cutter.place_names
    places = pd.DataFrame(rows[:, : len(names)], columns=names) if names and row_positions else None
    row_cases = [cases[position] for position in row_positions]
    return EncodedCohort(row_cases, rows[:, len(names) :], places, failures, shards.contents(), shards)


def _noted(
    positions: Sequence[int], stream: Iterator[tuple[Arrays | Exception, str]], contents: dict[int, str]
) -> Iterator[Arrays | Exception]:
    """Yield the results of a stream, and store the hashes of the scans in ``contents``, by position."""
    for position, (result, content) in zip(positions, stream, strict=True):
        contents[position] = content
        yield result


def _failed_before(shards: Shards) -> dict[int, list[int]]:
    """The failed cases of the shards that an earlier run has written; other processes do not write these shards."""
    written = set(range(len(shards))) - set(shards.missing())
    return {shard: failed for shard in sorted(written) if (failed := shards.failed(shard))}


def whole_images(trained: TrainedBundle, key: str) -> Cut:
    """A function that yields each scan as one image, and raises :class:`ScanError` for scans of another size."""
    # an encoder with an image of its own takes any size: that of the first one
    shapes = {key: trained.image_shape} if key == "image" else {}

    def cut(scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        shapes.setdefault(key, scan[key].shape)
        error = check_size(scan, shapes)
        if error is not None:
            raise error
        yield np.empty(0, np.float32), torch.from_numpy(scan[key])

    return cut


def encode_stream(
    results: Iterator[tuple[int, Mapping[str, Any], Arrays | Exception]],
    trained: TrainedBundle,
    key: str,
    cut: Cut,
    batch_size: int,
    advance: Callable[[], None],
    skipped: SkippedCases | None = None,
) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
    """Encode scans as they are read; at most a batch of images and those of one scan are in memory.

    Returns the position of each row's scan; one row per image, (N, K + D) float32, its place and z_sem; and the
    failures in the order of their positions, including scans whose z_sem is not finite. ``advance`` is called after
    each scan; ``skipped`` logs the failed cases.
    """
    at_once = images_at_once(trained.image_shape[1:])
    batch_size = -(-batch_size // at_once) * at_once  # so that the encoder repeats no image
    positions: list[int] = []
    items: dict[int, Mapping[str, Any]] = {}
    failures: dict[int, Failure] = {}
    skipped = skipped or SkippedCases()
    places: list[NDArray[np.float32]] = []
    batch: list[Tensor] = []
    codes: list[Tensor] = []

    def encode_batch() -> None:
        if batch:
            images = torch.stack(batch).to(trained.device)
            codes.append(encode_exactly(images, trained.inferer, trained.network).cpu())
            batch.clear()

    def fail(position: int, error: Exception) -> None:
        failures[position] = log_failure(items[position], position, key, error, skipped)

    for position, item, result in results:
        items[position] = item
        try:
            if isinstance(result, Exception):
                raise result
            images = list(cut(result))
        except ScanError as error:
            fail(position, error)
            images = []
        for place, image in images:
            positions.append(position)
            places.append(place)
            batch.append(image)
            if len(batch) == batch_size:
                encode_batch()
        advance()
    encode_batch()
    z_sem = torch.cat(codes).numpy() if codes else np.empty((0, 0), np.float32)
    broken = {position for position, z in zip(positions, z_sem, strict=True) if not np.isfinite(z).all()}
    for position in sorted(broken):
        fail(position, ScanError("its z_sem is not finite; train the model again, or look at the scan's intensities"))
    in_order = [failures[position] for position in sorted(failures)]
    is_kept = [position not in broken for position in positions]
    if not any(is_kept):
        return [], np.empty((0, 0), np.float32), in_order
    rows = np.concatenate([np.stack(places), z_sem], axis=1)[is_kept]
    return [position for position in positions if position not in broken], rows, in_order


def check_any_encoded(cases: Collection[Any], failures: Sequence[Failure], noun: str) -> None:
    """Raise an error if all cases failed; ``noun`` is what a case is, in the plural."""
    if not cases:
        first = failures[0]
        raise CohortError(f"all {len(failures)} {noun} failed, the first is '{first.case_id}': {first.reason}")
