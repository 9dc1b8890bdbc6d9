"""Opens what the page shows: the bundle, the cohort, its embeddings and the directions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.apps.command_lines import command_line
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.provenance import check_same_model, warn_of_other_preprocessing
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.apps.synthesis.combination import Axes
from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.bundle import TrainedLatent, load_latent
from monai_diffae.bundle.layout import LATENT_MODEL, models_folder
from monai_diffae.explorer.atlas import Atlas
from monai_diffae.explorer.exploration import Exploration
from monai_diffae.explorer.recipes import Caller
from monai_diffae.explorer.studio import Studio
from monai_diffae.explorer.thumbnails import Thumbnails
from monai_diffae.latents.representation import warn_if_unused

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The files of a page, which puts its own into ``out``; embeddings are made first if they are None."""

    bundle: Path
    cohort: Path
    out: Path
    embeddings: Path | None = None
    directions: Sequence[Path] = ()


def open_exploration(files: Files, num_components: int, decoding: Decoding, reading: Reading, run: Run) -> Exploration:
    """Open everything, and embed the cohort if there is no table."""
    directions = {str(file): read_direction(file) for file in files.directions}
    session = Session.open(files.bundle, files.cohort, decoding=decoding, reading=reading, run=run)
    trained = session.trained
    for direction in directions.values():
        direction.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
    warn_if_unused(trained.z_sem_usage)
    embeddings = files.embeddings or _embedded(files, reading, run)
    check_same_model(embeddings, files.bundle)
    warn_of_other_preprocessing(embeddings, trained)
    atlas = Atlas.open(embeddings, session.cohort.cases, num_components)
    num_missing = len(session.cohort.cases) - len(atlas.cases)
    if num_missing:
        logger.warning("%d cases of the cohort are not in %s, and not on the map", num_missing, embeddings.name)
    studio = Studio(session, Axes(directions, atlas.components))
    seconds = studio.warm_up()
    logger.info("one network evaluation takes %.0f ms: previews take %d", 1000 * seconds, studio.preview_steps)
    thumbnails = Thumbnails(session, atlas, files.out / "thumbnails")
    caller = Caller(files.bundle, files.cohort, embeddings, decoding, reading, run)
    return Exploration(atlas, studio, thumbnails, caller, _latent(session))


def _embedded(files: Files, reading: Reading, run: Run) -> Path:
    """The table of embeddings; made as by the command ``embed``, which skips it if it is complete."""
    arguments = {"bundle": str(files.bundle), "cohort": str(files.cohort), "out": str(files.out)}
    logger.info("$ %s", command_line("embed", arguments))
    return embed(files.bundle, files.cohort, files.out, reading=reading, run=run).path


def _latent(session: Session) -> TrainedLatent | None:
    bundle = session.trained.folder
    return load_latent(bundle, session.trained.device) if (models_folder(bundle) / LATENT_MODEL).is_file() else None
