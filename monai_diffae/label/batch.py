"""Batch inference: a task for all images, where one bad image does not end the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from monai_diffae.errors import ConfigError
from monai_diffae.label.ids import check_id, check_tag

logger = logging.getLogger(__name__)


class BatchInference(BatchInferTask):
    """Runs a task for the images of the datastore, one after the other, and stores the images that it makes as labels.

    MONAI Label's own (0.8.5) divides by zero on a machine without a GPU, and ends at the first image that fails.
    """

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Run the batch.

        Args:
            request: ``model``, ``images`` (``all``, ``labeled``, ``unlabeled`` or a list of ids), ``label_tag``,
                ``save_label``, ``max_batch_size`` (0: no limit), and the options of the task.
            datastore: the images.
            infer: runs the task for one image.

        Returns:
            What the task returns for each image by id, or ``{"error": reason}``.

        Raises:
            ConfigError: an id, the tag, ``images`` or ``max_batch_size`` cannot be used.
        """
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL))
        images, limit = request.get("images", []), request.get("max_batch_size") or 0
        if not isinstance(images, (str, list)):
            raise ConfigError("images: must be all, labeled, unlabeled or a list of ids")
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise ConfigError(f"max_batch_size: is {limit!r}; it must be a whole number, 0 for no limit")
        ids = sorted(check_id(id) for id in self.get_images(request, datastore))
        results: dict[str, dict[str, Any]] = {}
        for id in ids[:limit] if limit > 0 else ids:
            save = request.get("save_label", True)
            try:
                result = infer({**request, "image": id, "save_label": save, "label_tag": tag}, datastore)
                if result.get("file"):
                    Path(result["file"]).unlink(missing_ok=True)
                results[id] = {key: value for key, value in result.items() if key != "file"}
            except HTTPException as error:
                results[id] = {"error": error.detail}
        num_failed = sum("error" in result for result in results.values())
        logger.info("batch: %d images done, %d failed", len(results) - num_failed, num_failed)
        return results
