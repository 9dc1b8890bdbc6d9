"""z_sem of images, to the bit the same whatever is encoded beside them, and of whole cohorts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_diffae.apps.bundles import TrainedBundle
from monai_diffae.apps.parts import Parts, Process
from monai_diffae.data.cases import Case
from monai_diffae.data.failures import Failure
from monai_diffae.data.streamed import Arrays, check_size, failure_of, progress, read_in_turn
from monai_diffae.errors import CohortError, DiffAEError, ScanError
from monai_diffae.inferers import DiffusionAutoencoderInferer

_MOST_AT_ONCE = 16
_VOXELS_AT_ONCE = 2**17
_PART = 16  # times what the encoder takes at once: some seconds of work

PATIENCE_S = 3600.0
"""How long the first process waits for the next part of another."""


@dataclass(frozen=True)
class EncodedCohort:
    """What :func:`encode_cohort` made.

    Attributes:
        cases: those that could be used, in the cohort's order.
        z_sem: theirs, (N, D) float32.
        failures: the others.
        parts: to be removed when all is written.
    """

    cases: list[Case]
    z_sem: NDArray[np.float32]
    failures: list[Failure]
    parts: Parts


@torch.no_grad()
def encode_exactly(images: Tensor, inferer: DiffusionAutoencoderInferer, network: nn.Module) -> Tensor:
    """z_sem (B, D) in float32, to the bit the same for an image whatever the others are, and how many.

    Convolutions of other batch sizes may take other algorithms, which differ in the last bits (4e-7 on a CPU): for
    images of one size the encoder always runs on as many, the last one repeated where they do not suffice.

    Args:
        images: (B, C, *S) in the model's range, on the network's device.
        inferer: encodes.
        network: the autoencoder, in evaluation mode.
    """
    at_once = _at_once(images.shape[2:])
    parts = []
    for part in images.split(at_once):
        padded = torch.cat([part, part[-1:].expand(at_once - len(part), *part.shape[1:])])
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            parts.append(inferer.encode(padded.float(), network)[: len(part)])
    return torch.cat(parts)


def _at_once(size: Sequence[int]) -> int:
    """How many images of a size the encoder takes: a function of the size alone; large ones go singly."""
    return min(_MOST_AT_ONCE, max(1, _VOXELS_AT_ONCE // math.prod(size)))


def encode_cohort(
    cases: Sequence[Case],
    trained: TrainedBundle,
    parts_folder: Path,
    *,
    encoder_key: str = "image",
    batch_size: int = 64,
    workers: int = 0,
    process: Process,
) -> EncodedCohort | None:
    """Read, preprocess and encode cases in one go: no more than a batch of images is kept.

    What is done is in parts on the disk, so that a killed run goes on; several processes do every
    ``world_size``-th part each, and the first one gathers them.

    Args:
        cases: to be encoded.
        trained: the bundle.
        parts_folder: for the parts; its name should say what they depend on.
        encoder_key: the image that the encoder sees.
        batch_size: images that are held on the device at once.
        workers: processes that read ahead.
        process: which one this is.

    Returns:
        None in a process that is not the first.

    Raises:
        MachineError: a worker died, or the parts of another process do not come.
    """
    at_once = _at_once(trained.image_shape[1:])
    parts = Parts(parts_folder, len(cases), _PART * at_once)
    mine = [part for part in parts.missing() if part % process.world_size == process.rank]
    positions = [position for part in mine for position in parts.cases_of(part)]
    items = [cases[position].item() for position in positions]
    keys = (encoder_key,)
    read = iter(zip(positions, read_in_turn(items, trained.preprocessing, keys, workers), strict=True))
    batch_size = -(-batch_size // at_once) * at_once  # of what the encoder takes at once, so that nothing is repeated
    with progress(len(positions), f"encoding {len(positions)} cases") as advance:
        for part, results in groupby(read, lambda result: result[0] // parts.size):
            used, z_sem, failures = _encoded(results, cases, trained, encoder_key, batch_size, advance)
            parts.write(part, used, z_sem, failures)
    if process.rank > 0:
        return None
    parts.wait(PATIENCE_S)
    used, z_sem, failures = parts.read()
    return EncodedCohort([cases[position] for position in used], z_sem, failures, parts)


def _encoded(
    results: Iterator[tuple[int, Arrays | Exception]],
    cases: Sequence[Case],
    trained: TrainedBundle,
    key: str,
    batch_size: int,
    advance: Callable[[], None],
) -> tuple[list[int], NDArray[np.float32], list[Failure]]:
    """The positions of a part's cases that could be used, their z_sem, and the others."""
    used: list[int] = []
    failures: list[Failure] = []
    waiting: list[Tensor] = []
    codes: list[Tensor] = []

    def encode() -> None:
        if waiting:
            images = torch.stack(waiting).to(trained.device)
            codes.append(encode_exactly(images, trained.inferer, trained.network).cpu())
            waiting.clear()

    # where the encoder sees another image than the decoder draws, its size is that of the part's first one
    shapes = {key: trained.image_shape} if key == "image" else {}
    for position, result in results:
        if not isinstance(result, Exception):
            shapes = shapes or {key: result[key].shape}
            result = check_size(result, shapes) or result
        if not isinstance(result, Exception):
            used.append(position)
            waiting.append(torch.from_numpy(result[key]))
        elif isinstance(result, DiffAEError) and not isinstance(result, ScanError):
            raise result
        else:
            failures.append(failure_of(cases[position].item(), position, key, result))
        if len(waiting) == batch_size:
            encode()
        advance()
    encode()
    z_sem = torch.cat(codes).numpy() if codes else np.empty((0, trained.z_channels), np.float32)
    return used, z_sem, failures


def check_any(cases: Collection[Any], failures: Sequence[Failure], what: str) -> None:
    """Refuse a cohort of which nothing is left.

    Raises:
        CohortError: with the first reason.
    """
    if not cases:
        first = failures[0]
        raise CohortError(f"all {len(failures)} {what} failed, the first '{first.case_id}': {first.reason}")
