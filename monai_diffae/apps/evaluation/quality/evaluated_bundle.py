"""The bundles of an evaluation: opened, with the same held-out cases, and whether they can be compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monai_diffae.apps.evaluation.evaluate import HeldOut
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.bundle import TrainedLatent, load_latent
from monai_diffae.bundle.layout import LATENT_MODEL, models_folder
from monai_diffae.bundle.loading import preprocessing_config
from monai_diffae.data.cases import Case, spread_cases
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError

logger = logging.getLogger(__name__)

_TRAINING_CURVE = "curves.csv"


@dataclass(frozen=True)
class EvaluatedBundle:
    """One bundle of an evaluation.

    Attributes:
        name: its name in the tables.
        session: the bundle and the cohort.
        held_out: all held-out cases.
        limit: the most cases to reconstruct.
    """

    name: str
    session: Session
    held_out: list[Case]
    limit: int

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        cohort: Path,
        held_out: HeldOut,
        decoding: Decoding,
        reading: Reading,
        run: Run,
        device: str | None,
    ) -> EvaluatedBundle:
        """Load a bundle, on ``device`` unless ``run`` names one, and choose its held-out cases.

        Raises:
            ConfigError: the bundle is not trained, or the cases may have been trained on.
            CohortError: no case is in the split.
        """
        session = Session.open(folder, cohort, decoding=decoding, reading=reading, run=run, device=device)
        if session.may_hold_training_cases and not held_out.not_held_out:
            raise ConfigError(
                f"{cohort.name}: is not the cohort that {name} was trained on, and has no split, so its cases may have "
                "been trained on; add a column split (test, if these are new scans), or set not_held_out"
            )
        return cls(name, session, session.cohort.choose((), held_out.split), held_out.limit)

    @property
    def cases(self) -> list[Case]:
        """The cases to reconstruct."""
        return spread_cases(self.held_out, self.limit)

    @property
    def train(self) -> list[Case]:
        """The training cases of the cohort."""
        return self.session.cohort.split("train")

    @property
    def latent(self) -> TrainedLatent:
        """The bundle's latent DDIM.

        Raises:
            ConfigError: there is none.
        """
        return load_latent(self.session.trained.folder, self.session.trained.device)

    @property
    def made_from(self) -> dict[str, Any]:
        """What the bundle's results depend on."""
        latent = models_folder(self.session.trained.folder) / LATENT_MODEL
        return self.session.made_from(self.held_out, latent_model=file_checksum(latent) if latent.is_file() else None)

    @property
    def description(self) -> dict[str, Any]:
        """What the bundle is, as plain values."""
        trained = self.session.trained
        return {
            "name": self.name,
            "z_sem_dims": trained.z_channels,
            "image_size": list(trained.image_shape[1:]),
            "spatial_dims": len(trained.image_shape) - 1,
            "channels": trained.image_shape[0],
            "train_images_seen": _images_seen(trained.folder),
            "model": trained.sha256,
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything that an image and its errors depend on before the model sees it."""
        content = preprocessing_config(self.session.trained.config)
        content["model_range"] = list(self.session.trained.model_range)
        return dict(json.loads(json.dumps(content)))

    def differs_from(self, other: EvaluatedBundle) -> list[str]:
        """The keys of the preprocessing in which two bundles differ, so that their errors cannot be compared."""
        own, others = self.preprocessing, other.preprocessing
        return sorted(key for key in {*own, *others} if own.get(key) != others.get(key))


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders; a name that is there already gets a number.

    Example:
        >>> unique_names([Path("a/model"), Path("b/model"), Path("z16")])
        ['model', 'model (2)', 'z16']
    """
    names: list[str] = []
    for folder in folders:
        name = folder.resolve().name
        count = sum(each == name or each.startswith(f"{name} (") for each in names)
        names.append(name if count == 0 else f"{name} ({count + 1})")
    return names


def _images_seen(folder: Path) -> int | None:
    """The images that the network was shown in training, if the bundle's folder has the training's curve."""
    try:
        return int(pd.read_csv(folder / _TRAINING_CURVE)["images_seen"].max())
    except (OSError, ValueError, KeyError):
        return None
