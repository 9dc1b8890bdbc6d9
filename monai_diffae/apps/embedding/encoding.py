"""Encode scans to z_sem while they are read; whole cohorts in parts on disk, which resume and are shared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowSplitter
from monai.transforms import Compose, CopyItemsd, EnsureTyped, ResizeWithPadOrCropd, SpatialPad
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.settings import Process
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.atomic import PartStore
from monai_diffae.data.cached import ScanCache
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import numbered_columns
from monai_diffae.data.formats.scan import Floats
from monai_diffae.data.progress import Failure, SkippedCases, progress
from monai_diffae.data.scan_states import item_states
from monai_diffae.data.streamed import Arrays, check_size, log_failure, read_hashed_stream, read_stream, worker_errors
from monai_diffae.errors import ConfigError, MachineError, ScanError, counted, quoted
from monai_diffae.inferers.reconstruction import encode_exactly, images_at_once
from monai_diffae.transforms import ReadScand

_CALLS_PER_PART = 16  # calls of the encoder: some seconds of work
_SCANS_PER_PART = 4  # if each scan is cut into many patches
_POLL_S = 0.2

Cut = Callable[[Arrays], Iterator[tuple[NDArray[np.float32], Tensor]]]
"""A function that yields a scan's images ``[C, *S]``, each with an array that says where in the scan it lies."""

Encoded: TypeAlias = tuple[list[int], NDArray[np.float32], dict[int, Failure]]
"""Each row's position, its place and z_sem (N, K + D), and failures by position."""


@dataclass(frozen=True)
class EncodedCohort:
    """An encoded cohort, in its order."""

    cases: list[Case]  # (N,) the case of each row; with patches, a case has one row per patch
    codes: NDArray[np.float32]  # (N, Z) z_sem, or (N, Z + K) with wide features
    z_channels: int
    places: pd.DataFrame | None
    failures: list[Failure]  # the cases without rows
    contents: list[str]  # hashes of the scans of all cases, taken while they were read

    def columns(self, codes: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float32]]:
        """Codes as columns: ``z_000``, ..., and ``w_000``, ... for wide features."""
        z_sem, wide = np.split(codes, [self.z_channels], axis=1)
        return numbered_columns("z", z_sem) | numbered_columns("w", wide)


@dataclass(frozen=True)
class CohortEncoder:
    """Encodes cases into a store, which has one row per image or patch, or per case that failed."""

    cases: Sequence[Case]
    trained: TrainedBundle
    store: PartStore
    process: Process  # which share of the cases to encode
    cutter: PatchCutter | None = None  # cuts scans into patches; None: a scan is one image
    cache: ScanCache | None = None  # of preprocessed scans, which are not cut
    patience_s: float = 3600.0  # how long the first process waits for the next part of another one

    def encode(self, batch_size: int, workers: int, failures_name: str) -> None:
        """Encode this process's share, without what an earlier run has encoded."""
        at_once = images_at_once(self.trained.image_shape[1:])
        size = _CALLS_PER_PART * at_once if self.cutter is None else _SCANS_PER_PART
        positions = self._to_encode(size)
        items = [self.cases[position].item() for position in positions]
        transform: Callable[[Any], Any] = self.trained.preprocessing
        keys: tuple[str, ...] = (self.trained.encoder_key,)
        cut, ahead = whole_images(self.trained), max(batch_size, at_once)
        if self.cutter is not None:  # a scan that is cut is a whole volume, and one keeps the encoder busy
            transform, keys, cut, ahead = self.cutter, self.cutter.keys, self.cutter.cut, 1
        contents: dict[int, str] = {}
        skipped = SkippedCases(failures_name)

        def read() -> Iterator[Arrays | Exception]:
            if self.cache is None:
                hashed = read_hashed_stream(items, transform, keys, workers, ahead)
            else:
                hashed = self.cache.stream(items, item_states(items), transform, workers, ahead)
            for position, (result, content) in zip(positions, hashed, strict=True):
                contents[position] = content
                yield result

        with worker_errors(), progress(len(positions), f"encoding {counted(len(positions), 'case')}") as advance:
            numbered = zip(positions, items, read(), strict=True)
            for _, results in groupby(numbered, lambda result: result[0] // size):
                if self.cutter is None:  # the first image of a part decides the size of its others
                    cut = whole_images(self.trained)
                encoded = encode_stream(results, self.trained, cut, batch_size, advance, skipped)
                self.store.append(self._rows(*encoded, contents))

    def gather(self) -> EncodedCohort:
        """Wait for the parts of the other processes, and read all of them."""
        self._wait()
        table = self.store.read().sort_values(["position", "row"], kind="stable")
        rows = table[table["reason"].isna()]
        lost = table[table["reason"].notna() & ~table["position"].isin(rows["position"])]
        failures = [Failure(*each) for each in lost[["id", "file", "reason"]].itertuples(index=False)]
        contents = table.drop_duplicates("position", keep="last")["content"].tolist()
        codes = np.stack([*rows["z_sem"]]) if len(rows) else np.empty((0, 0), np.float32)
        places = None
        if self.cutter is not None and len(rows):
            places = pd.DataFrame(np.stack([*rows["place"]]), columns=self.cutter.place_names)
        cases = [self.cases[position] for position in rows["position"]]
        return EncodedCohort(cases, codes, self.trained.z_channels, places, failures, contents)

    def _to_encode(self, size: int) -> list[int]:
        """The positions of this process's share that have no z_sem yet."""
        table = self.store.read(["position", "reason"])
        encoded: set[int] = {*table["position"][table["reason"].isna()]}
        failed: set[int] = {*table["position"]} - encoded
        share = [p for p in range(len(self.cases)) if p // size % self.process.world_size == self.process.rank]
        todo = {*share} - encoded - failed
        if self.process.rank == 0:
            todo |= failed
            if self.cutter is None and self.trained.encoder_key != "image":  # see encode
                parts = {position // size for position in failed}
                todo |= {position for position in encoded if position // size in parts}
        return sorted(todo)

    def _rows(
        self,
        positions: Sequence[int],
        rows: NDArray[np.float32],
        failures: Mapping[int, Failure],
        contents: dict[int, str],
    ) -> pd.DataFrame:
        """The rows to store; their hashes are taken out of ``contents``."""
        num_places = 0 if self.cutter is None else len(self.cutter.place_names)
        made = [
            {
                "row": f"{position:09d}" + (f"/{int(row[0]):06d}" if num_places else ""),
                "position": position,
                "place": row[:num_places],
                "z_sem": row[num_places:],
                "file": None,
                "reason": None,
            }
            for position, row in zip(positions, rows, strict=True)
        ]
        lost = [
            {"row": f"{position:09d}", "position": position, "file": each.file, "reason": each.reason}
            for position, each in failures.items()
        ]
        hashes = {position: contents.pop(position) for position in {*positions, *failures}}
        for row in (*made, *lost):
            row |= {"id": self.cases[row["position"]].id, "content": hashes[row["position"]]}
        return pd.DataFrame([*made, *lost])

    def _wait(self) -> None:
        """Wait until every case has a row; the others get ``patience_s`` for each part."""
        last, since = -1, time.monotonic()
        while (num_missing := len(self.cases) - len({row[:9] for row in self.store.done()})) > 0:
            if num_missing != last:
                last, since = num_missing, time.monotonic()
            elif self.process.world_size == 1 or time.monotonic() - since > self.patience_s:
                raise MachineError(
                    f"{self.store.folder.name}: {counted(num_missing, 'case')} were not encoded by other processes, or "
                    "another run removed them; run the command again to resume"
                )
            time.sleep(_POLL_S)


def whole_images(trained: TrainedBundle) -> Cut:
    """A function that yields each scan as one image, and raises :class:`ScanError` for scans of another size."""
    key = trained.encoder_key
    # an encoder with an image of its own takes any size: that of the first one
    shapes = {key: trained.image_shape} if key == "image" else {}

    def cut(scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        shapes.setdefault(key, scan[key].shape)
        error = check_size({key: scan[key].shape}, shapes)
        if error is not None:
            raise error
        yield np.empty(0, np.float32), torch.from_numpy(scan[key])

    return cut


def encode_scans(
    items: Sequence[Mapping[str, Any]],
    trained: TrainedBundle,
    batch_size: int,
    workers: int,
    part: Callable[[int], int] = lambda position: 0,
) -> Iterator[Encoded]:
    """Read and encode whole scans; yields what :func:`encode_stream` returns for the positions of each part."""
    stream = read_stream(items, trained.preprocessing, (trained.encoder_key,), workers, ahead=batch_size)
    numbered, cut = zip(range(len(items)), items, stream, strict=True), whole_images(trained)
    with progress(len(items), f"encoding {counted(len(items), 'scan')}") as advance:
        for _, results in groupby(numbered, lambda result: part(result[0])):
            yield encode_stream(results, trained, cut, batch_size, advance)


def encode_stream(
    results: Iterator[tuple[int, Mapping[str, Any], Arrays | Exception]],
    trained: TrainedBundle,
    cut: Cut,
    batch_size: int,
    advance: Callable[[], None],
    skipped: SkippedCases | None = None,
) -> Encoded:
    """Encode scans as they are read: each row's position, its place and z_sem (N, K + D), and failures by position."""
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
            codes.append(encode_exactly(images, trained.network, trained.inferer).cpu())
            batch.clear()

    def fail(position: int, error: Exception) -> None:
        failures[position] = log_failure(items[position], position, trained.encoder_key, error, skipped)

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
    in_order = dict(sorted(failures.items()))
    is_kept = [position not in broken for position in positions]
    if not any(is_kept):
        return [], np.empty((0, 0), np.float32), in_order
    rows = np.concatenate([np.stack(places), z_sem], axis=1)[is_kept]
    return [position for position in positions if position not in broken], rows, in_order


# -- patches of scans that are larger than a model's field of view -----------------------------------------------------

_TO_PLACES = "to_places"
_MM = ("x_mm", "y_mm", "z_mm")
_PIXELS = ("row_px", "column_px")
_BACKGROUND = 0.01  # range of background values, as a fraction of the model's range: resampling changes them a little
_COPIES = (CopyItemsd, EnsureTyped)


class PatchCutter:
    """Cuts scans into patches of the model's field of view, on a grid, instead of cropping the scans to it.

    The preprocessing is applied without its last step, the crop; the scan is then padded symmetrically with the model's
    lowest value until the grid covers it. ``overlap`` is a fraction of the patches' size, 0 to less than 1.
    """

    def __init__(self, trained: TrainedBundle, overlap: float) -> None:
        self._key, self._low = trained.encoder_key, trained.model_range[0]
        self._preprocessing = _without_crop(trained.preprocessing, self._key)
        self._background = self._low + _BACKGROUND * (trained.model_range[1] - self._low)
        self._size = trained.image_shape[1:]
        self._steps = [max(1, int(side * (1 - overlap) + 1e-6)) for side in self._size]
        self.keys = (self._key, _TO_PLACES)
        self.place_names = ("patch", "of", *(_PIXELS if len(self._size) == 2 else ()), *_MM)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Preprocess and pad a case's scan, and compute the affine (K, 4) from its indices to positions."""
        image = self._preprocessing(dict(item))[self._key]
        padded_size = [
            side + step * max(0, -(-(length - side) // step))
            for length, side, step in zip(image.shape[1:], self._size, self._steps, strict=True)
        ]
        padded: MetaTensor = SpatialPad(padded_size, mode="constant", value=self._low)(image)  # type: ignore[assignment]
        return {self._key: padded, _TO_PLACES: torch.from_numpy(_to_places(padded))}

    def cut(self, scan: Arrays) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        """Yield position and image ``[C, *S]`` of each patch that is not entirely background."""
        image = torch.from_numpy(scan[self._key])
        overlaps = [side - step for side, step in zip(self._size, self._steps, strict=True)]
        # MONAI's own padding pads one side only, and leaves scans that are much smaller than a patch too small
        splitter = SlidingWindowSplitter(self._size, overlaps, pad_mode=None)
        windows = list(splitter(image[None]))
        is_background = True
        for number, (window, corner) in enumerate(windows):
            if window.max() > self._background:
                is_background = False
                centre = [start + (side - 1) / 2 for start, side in zip(corner, self._size, strict=True)]
                coordinates = scan[_TO_PLACES].astype(np.float64) @ [*centre, *[0.0] * (3 - len(centre)), 1.0]
                yield np.array([number, len(windows), *coordinates], np.float32), window[0]
        if is_background:
            raise ScanError(f"{self._key}: all patches are background; check intensity, window_hu, percentiles")


def _without_crop(preprocessing: Any, key: str) -> Compose:
    """The bundle's preprocessing without its last step; later steps that only copy are kept."""
    steps = list(Compose(preprocessing).flatten().transforms)
    last = max((i for i, step in enumerate(steps) if not isinstance(step, _COPIES)), default=0)
    copied = {name for step in steps[last + 1 :] if isinstance(step, CopyItemsd) for name in step.names}
    is_cropped = isinstance(steps[last], ResizeWithPadOrCropd) and key in {*steps[last].keys, *copied}
    if not (is_cropped and isinstance(steps[0], ReadScand)):
        raise ConfigError(
            f"patches: the bundle's preprocessing of {quoted(key)} must begin with ReadScand and end with "
            "ResizeWithPadOrCropd, which patches replace; omit patches"
        )
    rest = copy.copy(preprocessing) if isinstance(preprocessing, Compose) else Compose()
    rest.transforms = (*steps[:last], *steps[last + 1 :])
    return rest


def _to_places(image: MetaTensor) -> Floats:
    """The affine (K, 4) from an image's indices to mm (RAS+); for a 2D image, first two rows to pixels of its file."""
    affine: Floats = image.affine.numpy().astype(np.float64)
    if image.ndim == 4:
        return affine[:3]
    scan_affine: Floats = np.asarray(image.meta["scan_affine"], np.float64)
    grid_affine = np.diag([*np.linalg.norm(scan_affine[:3, :2], axis=0), 1.0, 1.0])  # as ReadScand sets it
    to_pixels = np.linalg.inv(grid_affine) @ affine
    is_picture = np.array_equal(scan_affine, np.eye(4))  # a picture has no world coordinates
    return np.concatenate([to_pixels[:2], np.full((3, 4), np.nan) if is_picture else (scan_affine @ to_pixels)[:3]])
