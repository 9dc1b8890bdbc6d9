"""Encoders that need no training: random weights, and principal components of the pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import read_stream
from monai_diffae.errors import CohortError
from monai_diffae.latents.components import PixelComponents
from monai_diffae.networks.encoder_adapter import PixelEncoder

logger = logging.getLogger(__name__)

_BATCH_BYTES = 2**29
_READ_AHEAD = 16


def open_baseline(
    encoder: Literal["untrained", "pca"],
    bundle: Path,
    cohort: Path,
    *,
    reading: Reading,
    run: Run,
    device: str | None = None,
    seed: int = 0,
) -> Session:
    """Open a cohort with an encoder that needs no training, in the place of a trained bundle's."""
    trained = load_untrained(bundle, run.device or device, run.overrides, seed)
    session = Session.of(trained, cohort, reading=reading, run=run)
    return session if encoder == "untrained" else _with_components(session)


def _with_components(session: Session) -> Session:
    """The session with an encoder fitted to the images of its training cases."""
    trained = session.trained
    batches = training_images(session, trained.z_channels + 1, text="principal components")
    components = PixelComponents.fit(batches, trained.z_channels)
    if len(components.axes) < trained.z_channels:
        logger.info("pca: %d components, as there are not more images or pixels", len(components.axes))
    encoder = PixelEncoder(components.mean, components.axes).to(trained.device).eval()
    sha256 = digest(components.mean, components.axes)
    return replace(session, trained=replace(trained, network=encoder, sha256=sha256))


def training_images(
    session: Session, num_least: int, *, text: str, most_cases: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """The images of readable training cases, in batches of bounded memory and at least ``num_least`` images."""
    key, cases = session.encoder_key, [case for case in session.cohort.cases if case.split == "train"]
    cases = cases[:: 1 if most_cases is None else -(-len(cases) // most_cases) or 1]
    items: list[dict[str, Any]] = [case.item() for case in cases]
    stream = read_stream(
        items, session.trained.preprocessing, (key,), session.reading.workers_for(len(cases)), _READ_AHEAD
    )
    batch: list[NDArray[np.float32]] = []
    is_first = True
    with progress(len(cases), f"fitting {text} to {len(cases)} training cases") as advance:
        for result in stream:
            # cases that cannot be used are listed as failures when they are encoded
            if not isinstance(result, Exception) and (not batch or result[key].shape == batch[0].shape):
                batch.append(result[key])
                size = max(num_least, _BATCH_BYTES // batch[0].nbytes)
                if len(batch) == 2 * size:  # so that the last batch has at least ``size``
                    yield np.stack(batch[:size])
                    is_first, batch = False, batch[size:]
            advance()
    if is_first and len(batch) < 2:
        raise CohortError(
            f"encoder: {text} are fitted to training images, but only {len(batch)} of {len(cases)} "
            "training cases can be used; give a cohort with training cases"
        )
    yield np.stack(batch)
