"""Scoring: encode the images of the datastore into the app's embedding index."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.datastore import image_paths
from monai_diffae.label.options import check_keys
from monai_diffae.label.served_model import ServedModel

logger = logging.getLogger(__name__)


class EmbedScoring(ScoringMethod):
    """Scoring ``diffae_embed``: encode images that are new, have changed, or were encoded with other weights.

    Args:
        served: the bundle.
        folder: the app's folder.
    """

    def __init__(self, served: ServedModel, folder: AppFolder) -> None:
        super().__init__("Encodes new and changed images to z_sem, for the strategies and for diffae_neighbors")
        self._served, self._folder = served, folder

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Update the index.

        Args:
            request: the request; there are no options.
            datastore: the images.

        Returns:
            ``images``: number of images that are encoded; ``new``, ``changed`` and ``removed`` by this call; and
            ``failed``: the reason for each image that cannot be used, by id.

        Raises:
            ConfigError: the request has options, or the bundle cannot be loaded.
        """
        check_keys(request, {"method"}, "params")
        index = EmbeddingIndex(self._folder.index)
        paths, failed = image_paths(datastore)
        with self._served.in_use() as trained:
            update = index.update(trained, paths)
            cases = index.read(trained)
        failed |= cases.failures
        new, changed, removed = len(update.new), len(update.changed), len(update.removed)
        logger.info("%d images encoded (%d new, %d changed, %d removed), %d cannot be used",
                    len(cases.ids), new, changed, removed, len(failed))  # fmt: skip
        return {"images": len(cases.ids), "new": new, "changed": changed, "removed": removed, "failed": failed}

    def is_current(self, datastore: Datastore) -> bool:
        """Whether every image of the datastore has been encoded with the present weights, or cannot be used."""
        with self._served.in_use() as trained:
            cases = EmbeddingIndex(self._folder.index).read(trained)
        return {*cases.ids, *cases.failures} >= set(datastore.list_images())
