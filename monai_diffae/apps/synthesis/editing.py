"""The work of ``edit``: cases inverted, moved, decoded, measured, written and drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from monai_diffae.apps.results import remove_images
from monai_diffae.apps.session import CodedCase, ReadCases, Session
from monai_diffae.apps.synthesis.edit import EditedImages
from monai_diffae.apps.synthesis.edit_picture import NUM_PICTURED, PicturedCase, draw_edits, own_detail
from monai_diffae.apps.synthesis.edit_table import EditTable, achieved_share, monotone_share
from monai_diffae.apps.synthesis.strengths import strength_names
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.errors import counted
from monai_diffae.inferers import encode_exactly
from monai_diffae.pictures import caption
from monai_diffae.transforms import NativeSpace, check_invertible, write_native
from monai_diffae.transforms.case_images import warn_without_dicom, write_case_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Editing:
    """Edits the cases of a session.

    Attributes:
        session: the bundle and the cohort.
        table: the direction, the strengths, and what is measured.
        folder: the folder for the results.
        output: how the edited images are written and drawn.
    """

    session: Session
    table: EditTable
    folder: Path
    output: EditedImages

    @property
    def picture(self) -> Path:
        """The mosaic of the first cases."""
        return self.folder / "edits.png"

    @property
    def results(self) -> list[Path]:
        """The table, the picture, and the folders of images."""
        return [self.folder / "edits.csv", self.picture, self.folder / "images", self.folder / "differences"]

    def run(self, read: ReadCases) -> dict[str, Any]:
        """Edit all cases.

        Returns:
            The figures of an :class:`~monai_diffae.apps.synthesis.edit.EditResult`.

        Raises:
            ConfigError: the preprocessing cannot be inverted.
        """
        check_invertible(self.session.trained.preprocessing)
        if self.output.dicom:
            warn_without_dicom(read.cases)
        if not self.session.encoder_sees_decoded_images:
            logger.warning(
                "the encoder sees %s, which an edit does not change: prediction, achieved, identity and drift are "
                "not measured", self.session.encoder_key,
            )  # fmt: skip
        for name in ("images", "differences"):
            remove_images(self.folder / name)
        tables: list[pd.DataFrame] = []
        pictures: list[PicturedCase] = []
        for coded in self.session.coded(read, f"editing {counted(len(read.cases), 'case')}"):
            rows, images, differences = self._edit(coded)
            tables.append(rows)
            native = NativeSpace(self.session.trained.preprocessing, coded.case.item())
            self._write(coded.case, native, images, differences)
            if len(pictures) < NUM_PICTURED:
                pictures.append(self._pictured(coded.case, native, images, differences))
        table = pd.concat(tables)
        write_atomic(self.results[0], lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        draw_edits(self.picture, pictures, self.table.strengths, self.session.trained.model_range)
        return {
            "num_cases": len(read.cases), "num_failed": len(read.failures),
            "monotone": monotone_share(table, self.table.direction.kind), "achieved": achieved_share(table),
        }  # fmt: skip

    def _pictured(self, case: Case, native: NativeSpace, images: Tensor, differences: Tensor) -> PicturedCase:
        text = caption({"id": case.id, **case.labels}, self.output.captions)
        if self.output.detail == "own":
            images, differences = own_detail(native, differences)
        return PicturedCase(images, differences, text)

    def _edit(self, coded: CodedCase) -> tuple[pd.DataFrame, Tensor, Tensor]:
        """Return the rows, the edited images (A, C, *S), and their differences from the plain reconstruction."""
        trained = self.session.trained
        z_moved = self.table.moved(coded.z_sem.cpu().numpy())
        images = self.session.decode(torch.from_numpy(z_moved).to(coded.x_T), coded.x_T)
        differences = images - images[self.table.strengths.index(0)]
        z_edited = None
        if self.session.encoder_sees_decoded_images:
            z_edited = encode_exactly(images, trained.inferer, trained.network).cpu().numpy()
        mse = differences.square().flatten(1).mean(dim=1).cpu().numpy()
        rows = self.table.rows(coded.case.id, coded.case.patient, z_moved, z_edited, mse)
        return rows, images.cpu(), differences.cpu()

    def _write(self, case: Case, native: NativeSpace, images: Tensor, differences: Tensor) -> None:
        names = strength_names(self.table.strengths)
        convert = native.add_difference if self.output.detail == "own" else native.back
        plain = convert((differences if self.output.detail == "own" else images)[self.table.strengths.index(0)])
        for strength, image, difference in zip(names, images, differences, strict=True):
            name = f"{case.file_name}_{strength}"
            description = f"monai_diffae edit: {self.table.direction.target} {strength}" if self.output.dicom else None
            edited = convert(difference if self.output.detail == "own" else image)
            write_case_image(self.folder / "images", name, native, edited, case, description)
            file = self.folder / "differences" / f"{name}.nii.gz"
            clipped = native.storable(edited) - edited - (native.storable(plain) - plain)  # 0 where the file holds all
            write_native(file, native.back_difference(difference) + clipped, native.scan, np.float32)
