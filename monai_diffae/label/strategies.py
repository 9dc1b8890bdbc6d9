"""Active learning: scoring, the strategies that propose the next image, and the targets of their probes.

MONAI Label's labels are label maps. A probe needs one value per image, which is one of these:

- the **class** that was given when the label was saved: ``params={"class": "pneumonia"}`` of ``PUT /datastore/label``;
- else the **volume** of the label map (its area for a 2D image): of all structures together, or of one structure.
"""

from __future__ import annotations

import functools
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from monai_diffae.apps.embedding.index import EmbeddingIndex
from monai_diffae.errors import ConfigError, DiffAEError
from monai_diffae.label.datastore import image_paths
from monai_diffae.label.label_app import AppFolder
from monai_diffae.label.tasks import ServedModel, check_keys
from monai_diffae.latents.selection import Selection
from monai_diffae.serving.answers import ConflictError

logger = logging.getLogger(__name__)

CLASS, VOLUME, AUTO = "class", "volume", "auto"
DESCRIPTIONS = {
    "mixed": "Typical images first, then those that are uncertain and far from labelled ones",
    "diversity": "The image that is farthest in z_sem from all labelled and proposed ones",
    "typical": "The centre of a region in z_sem without a labelled or proposed image",
    "outlier": "The most unusual image",
    "uncertain": "The image that a probe of the labels so far is least certain about",
}
_WITH_PROBE = ("uncertain", "mixed")


class EmbedScoring(ScoringMethod):
    """Scoring ``diffae_embed``: encode images that are new, have changed, or were encoded with other weights."""

    def __init__(self, served: ServedModel, folder: AppFolder) -> None:
        super().__init__("Encodes new and changed images to z_sem, for the strategies and for diffae_neighbors")
        self._served, self._folder = served, folder

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Update the index; returns numbers of images, and the reason for each that cannot be used, by id."""
        check_keys(request, {"method"})
        index = EmbeddingIndex(self._folder.index)
        paths, failed = image_paths(datastore)
        with self._served.in_use() as trained:
            update = index.update(trained, paths)
            cases = index.read(trained)
        failed |= cases.failures
        new, changed, removed = len(update.new), len(update.changed), len(update.removed)
        logger.info(
            "%d images encoded (%d new, %d changed, %d removed), %d cannot be used",
            len(cases.ids),
            new,
            changed,
            removed,
            len(failed),
        )
        return {"images": len(cases.ids), "new": new, "changed": changed, "removed": removed, "failed": failed}

    def is_current(self, datastore: Datastore) -> bool:
        """Whether every image of the datastore has been encoded with the present weights, or cannot be used."""
        with self._served.in_use() as trained:
            cases = EmbeddingIndex(self._folder.index).read(trained)
        return {*cases.ids, *cases.failures} >= set(datastore.list_images())


class DiffAEStrategy(Strategy):
    """A strategy ``diffae_<selection>``, which selects by the z_sem of scored images.

    An image that was proposed, by any strategy and to any annotator, is not proposed again until all have been; then
    the one that was proposed longest ago is. Images that cannot be used are never proposed.
    """

    def __init__(self, selection: str, served: ServedModel, folder: AppFolder) -> None:
        super().__init__(DESCRIPTIONS[selection])
        self._selection, self._served, self._folder = selection, served, folder

    def info(self) -> dict[str, Any]:
        """What clients show."""
        config = {"target": AUTO} if self._selection in _WITH_PROBE else {}
        return {**super().info(), "config": config}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image, and return its ``id`` and the numbers behind the choice; None if all are labelled."""
        check_keys(request, {"strategy", *self.info()["config"]})
        unlabelled = datastore.get_unlabeled_images()
        if not unlabelled:
            return None
        with self._served.in_use() as trained:
            cases = EmbeddingIndex(self._folder.index).read(trained)
        rows = {id: row for row, id in enumerate(cases.ids)}
        if not rows.keys() & set(unlabelled):
            raise ConflictError(
                "strategy: no unlabelled image is encoded yet; wait for the scoring, or send POST /scoring/diffae_embed"
            )
        proposed_at = proposals(datastore, [id for id in unlabelled if id in rows])
        kind, targets = self._targets(request, datastore, rows)
        done = set(cases.ids) - set(unlabelled) - targets.keys()  # labelled, but of no use to the probe
        selected = Selection(
            cases.z_sem,
            labelled=[rows[id] for id in targets],
            labels=list(targets.values()),
            proposed=[rows[id] for id in (*done, *proposed_at)],
            kind="classes" if kind == CLASS else "numbers",
        ).select(self._selection)
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
    """Any image neither labelled nor proposed, else one without a label, which MONAI Label's own (0.8.5) may refuse."""

    def __init__(self) -> None:
        super().__init__("Any image that is neither labelled nor proposed")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image; None if all are labelled."""
        check_keys(request, {"strategy"})
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
    """When each of these images was last proposed, in seconds, which MONAI Label notes in the image's info."""
    times: dict[str, int] = {}
    for id in ids:
        by_strategy = datastore.get_image_info(id).get("strategy") or {}
        stamps = [int(entry.get("ts", 0)) for entry in by_strategy.values() if isinstance(entry, Mapping)]
        if stamps:
            times[id] = max(stamps)
    return times


def label_targets(datastore: Datastore, ids: Sequence[str], target: str = AUTO) -> tuple[str, dict[str, Any]]:
    """The value of each labelled image, by id: texts for ``class``, or volumes in ml (areas in cm2) for ``volume``."""
    infos = {id: _label_info(datastore, id) for id in ids}
    classes = {id: str(info[CLASS]) for id, info in infos.items() if info.get(CLASS) not in (None, "")}
    if target == CLASS or (target == AUTO and classes):
        return CLASS, classes
    numbers = {id: None if target in (AUTO, VOLUME) else _structure(info, target) for id, info in infos.items()}
    if target not in (AUTO, VOLUME):
        numbers = {id: number for id, number in numbers.items() if number is not None}
        if infos and not numbers:
            raise ConfigError(f"target: no label has a structure {target[:40]!r}; use its name or number, or volume")
    volumes: dict[str, float] = {}
    for id, number in numbers.items():
        sizes = _sizes_of_label(datastore, id)
        if sizes is not None:
            volumes[id] = sum(sizes.values()) if number is None else sizes.get(number, 0.0)
    return VOLUME, volumes


def structure_sizes(path: Path) -> dict[int, float]:
    """The size of each structure of a label map, 0 being background: volumes in ml, or areas in cm2 for a 2D image."""
    state = path.stat()
    return dict(_sizes_in_state(str(path), state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=10_000)
def _sizes_in_state(path: str, _changed: int, _size: int) -> tuple[tuple[int, float], ...]:
    image = sitk.ReadImage(path)
    values = np.nan_to_num(np.asarray(sitk.GetArrayViewFromImage(image)), nan=0.0, posinf=0.0, neginf=0.0)
    if path.lower().endswith(".png") and image.GetNumberOfComponentsPerPixel() in (2, 4):
        values = values[..., :-1]  # transparency is not a structure
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = np.asarray((values > 0).any(axis=-1))
    numbers, counts = np.unique(np.round(values).astype(np.int64), return_counts=True)
    voxel = math.prod(image.GetSpacing()) / 10.0 ** image.GetDimension()  # mm to cm
    return tuple((int(n), float(count * voxel)) for n, count in zip(numbers, counts, strict=True) if n != 0)


def _sizes_of_label(datastore: Datastore, id: str) -> dict[int, float] | None:
    try:
        return structure_sizes(Path(datastore.get_label_uri(id, DefaultLabelTag.FINAL)))
    except (OSError, RuntimeError, DiffAEError):  # a damaged label, which the annotator can save again
        return None


def _label_info(datastore: Datastore, id: str) -> Mapping[str, Any]:
    try:
        return datastore.get_label_info(id, DefaultLabelTag.FINAL) or {}
    except DiffAEError:  # a DICOM-SEG that another program has stored
        return {}


def _structure(info: Mapping[str, Any], target: str) -> int | None:
    """The number of a structure: 3D Slicer and OHIF send names and numbers as ``label_info``."""
    if target.isdecimal():
        return int(target)
    entries = info.get("label_info")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("name") == target and str(entry.get("idx", "")).isdecimal():
            return int(entry["idx"])
    return None
