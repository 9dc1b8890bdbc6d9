"""Strategies of active learning: which image an annotator should label next."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.label_targets import AUTO, CLASS, label_targets
from monai_diffae.label.options import check_keys
from monai_diffae.label.served_model import ServedModel
from monai_diffae.latents.selection import select
from monai_diffae.serving.answers import ConflictError

DESCRIPTIONS = {
    "mixed": "Typical images first, then those that are uncertain and far from labelled ones",
    "diversity": "The image that is farthest in z_sem from all labelled and proposed ones",
    "typical": "The centre of a region in z_sem without a labelled or proposed image",
    "outlier": "The most unusual image",
    "uncertain": "The image that a probe of the labels so far is least certain about",
}
_WITH_PROBE = ("uncertain", "mixed")


class DiffAEStrategy(Strategy):
    """A strategy ``diffae_<selection>``, which selects by the z_sem of scored images.

    An image that was proposed, by any strategy and to any annotator, is not proposed again until all have been; then
    the one that was proposed longest ago is. Images that cannot be used are never proposed.

    Args:
        selection: one of :data:`DESCRIPTIONS`.
        served: the bundle.
        folder: the app's folder.
    """

    def __init__(self, selection: str, served: ServedModel, folder: AppFolder) -> None:
        super().__init__(DESCRIPTIONS[selection])
        self._selection, self._served, self._folder = selection, served, folder

    def info(self) -> dict[str, Any]:
        """What clients show."""
        config = {"target": AUTO} if self._selection in _WITH_PROBE else {}
        return {**super().info(), "config": config}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image.

        Args:
            request: for strategies with a probe also ``target``, what the probe predicts: see
                :mod:`monai_diffae.label.label_targets`.
            datastore: the images and labels.

        Returns:
            ``id``, and the numbers behind the choice; None if all images are labelled.

        Raises:
            ConflictError: no image without a label has been scored.
            ConfigError: the request has another option, or no label has the target.
        """
        check_keys(request, {"strategy", *self.info()["config"]}, "params")
        unlabelled = datastore.get_unlabeled_images()
        if not unlabelled:
            return None
        with self._served.in_use() as trained:
            cases = EmbeddingIndex(self._folder.index).read(trained)
        rows = {id: row for row, id in enumerate(cases.ids)}
        if not rows.keys() & set(unlabelled):
            raise ConflictError("strategy: no unlabelled image is encoded yet; wait for the scoring, or send "
                                "POST /scoring/diffae_embed")  # fmt: skip
        proposed_at = proposals(datastore, [id for id in unlabelled if id in rows])
        kind, targets = self._targets(request, datastore, rows)
        done = set(cases.ids) - set(unlabelled) - targets.keys()  # labelled, but of no use to the probe
        selected = select(
            self._selection,
            cases.z_sem,
            labelled=[rows[id] for id in targets],
            labels=list(targets.values()),
            proposed=[rows[id] for id in (*done, *proposed_at)],
            kind="classes" if kind == CLASS else "numbers",
        )
        id = cases.ids[int(selected[0])] if len(selected) else min(proposed_at, key=lambda id: (proposed_at[id], id))
        numbers = {"scored": len(rows), "labelled": len(set(cases.ids) - set(unlabelled)), "proposed": len(proposed_at)}
        return {"id": id, "selection": {**numbers, "probe": kind, "probe_labels": len(targets)}}

    def _targets(
        self, request: Mapping[str, Any], datastore: Datastore, rows: Mapping[str, int]
    ) -> tuple[str | None, dict[str, Any]]:
        """The targets of the probe: ``class`` or ``volume``, and the value of each scored image with a label."""
        if self._selection not in _WITH_PROBE:
            return None, {}
        ids = [id for id in datastore.get_labeled_images() if id in rows]
        kind, targets = label_targets(datastore, ids, str(request.get("target") or AUTO))
        return kind, dict(sorted(targets.items()))


class RandomStrategy(Strategy):
    """The strategy ``random``: any image that is neither labelled nor proposed; if there is none, any without a label.

    MONAI Label's own (0.8.5) fails if the only image without a label was proposed in the same second.
    """

    def __init__(self) -> None:
        super().__init__("Any image that is neither labelled nor proposed")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image; None if all are labelled.

        Raises:
            ConfigError: the request has options.
        """
        check_keys(request, {"strategy"}, "params")
        unlabelled = datastore.get_unlabeled_images()
        if not unlabelled:
            return None
        proposed = proposals(datastore, unlabelled)
        return {"id": secrets.choice([id for id in unlabelled if id not in proposed] or unlabelled)}


def strategies(served: ServedModel, folder: AppFolder) -> dict[str, Strategy]:
    """All strategies by name."""
    own = {f"diffae_{name}": DiffAEStrategy(name, served, folder) for name in DESCRIPTIONS}
    return {**own, "random": RandomStrategy()}


def proposals(datastore: Datastore, ids: list[str]) -> dict[str, int]:
    """When each of these images was last proposed, in seconds; images that never were are left out.

    MONAI Label stores the time in the image's info after each ``next_sample``.
    """
    times: dict[str, int] = {}
    for id in ids:
        by_strategy = datastore.get_image_info(id).get("strategy") or {}
        stamps = [int(entry.get("ts", 0)) for entry in by_strategy.values() if isinstance(entry, Mapping)]
        if stamps:
            times[id] = max(stamps)
    return times
