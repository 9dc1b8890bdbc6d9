"""The images behind a table of embeddings: a picture of neighbors, and reconstruction errors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from monai_diffae.apps import provenance
from monai_diffae.apps.session import ReadCases, Session, decode_in_batches, open_bundle
from monai_diffae.apps.settings import Choice, Decoding, Reading, Run
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.progress import Failure, write_failures
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError
from monai_diffae.pictures import caption, draw_cells

if TYPE_CHECKING:
    from monai_diffae.apps.evaluation.neighbors import Images

logger = logging.getLogger(__name__)

FAILURES = "neighbors_failures.csv"

_IN_PICTURE = 8


@dataclass
class CaseImages:
    """The images of the selected cases and of the table's cases; ``failures`` are the unreadable ones, by id."""

    settings: Images
    query_session: Session
    table_session: Session
    folder: Path
    tables: Sequence[Path]
    failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def open(
        cls, settings: Images, folder: Path, tables: Sequence[Path], decoding: Decoding, reading: Reading, run: Run
    ) -> CaseImages:
        """Open the cohorts with the bundle that made the embeddings, or whose preprocessing another encoder used."""
        bundle = settings.bundle or Path()
        if provenance.origin_of(tables[0])["encoder"] == "trained" or settings.reconstruction_error:
            provenance.check_same_model(tables[0], bundle)
            trained = open_bundle(bundle, decoding=decoding, run=run)
        else:
            run = replace(run, overrides={**provenance.safe_overrides(read_embeddings(tables[0])), **run.overrides})
            trained = load_untrained(bundle, run.device, run.overrides)
        cohorts = [cohort for cohort in (settings.cohort, settings.query_cohort) if cohort is not None]
        sessions = [Session.of(trained, cohort, reading=reading, run=run) for cohort in cohorts]
        return cls(settings, sessions[-1], sessions[0], folder, tables)

    @property
    def made_from(self) -> dict[str, Any]:
        """What the picture and the reconstruction errors depend on, for the record of the results."""
        settings = self.settings
        errors = {"num_reference": settings.num_reference, "seed": settings.seed}
        is_same = self.query_session is self.table_session
        sessions = [self.table_session] if is_same else [self.table_session, self.query_session]
        return self.table_session.made_from(
            decodes=settings.reconstruction_error, query_cohort=self.query_session.cohort.fingerprint,
            scans=[provenance.content_of_scans(each.cohort.cases, self.tables) for each in sessions],
            reconstruction_error=errors if settings.reconstruction_error else None,
        )  # fmt: skip

    def warn_of_differences(self, *tables: pd.DataFrame) -> None:
        """Log a warning if the images differ from those that the table, and that of the queries, were made from."""
        sessions = (self.table_session, self.query_session)
        cohorts = (self.settings.cohort, self.settings.query_cohort or self.settings.cohort)
        for file, table, session, cohort in zip(self.tables, tables, sessions, cohorts, strict=False):
            if differ := provenance.preprocessing_differences(table, session.trained.config):
                folder = session.trained.folder.resolve().name
                text = "images: the preprocessing of %s differs from that of %s: %s"
                logger.warning(text, folder, file.name, ", ".join(differ))
            provenance.warn_if_cohort_changed(table, session.cohort, str(cohort), "images")

    def reconstruction_errors(self, session: Session, ids: Sequence[str]) -> pd.DataFrame:
        """The mean squared error of decoded images in the model's range, one row per case."""
        read = self._read(session, ids)
        noise = image_noise(session.trained.x_T_shape, self.settings.seed, [0]).to(session.trained.device)
        errors = {}
        for coded in session.coded(read, f"decoding {len(read.cases)} cases"):
            x_T = torch.cat([noise.to(coded.x_T), coded.x_T])
            images = decode_in_batches(session.trained, coded.z_sem, x_T, batch_size=2)
            errors[coded.case.id] = (images - coded.image).square().flatten(1).mean(dim=1).tolist()
        return pd.DataFrame.from_dict(errors, orient="index", columns=["mse_z_sem", "mse_x_T"])

    def draw(self, path: Path, neighbors: pd.DataFrame, cases: pd.DataFrame, table: pd.DataFrame) -> None:
        """Draw the first 8 cases, each in a row with its neighbors and their distances."""
        drawn = neighbors[neighbors["rank"] <= _IN_PICTURE]
        ids = cases["id"].tolist()[:_IN_PICTURE]
        rows_of = dict(iter(drawn[drawn["id"].isin(ids)].groupby("id")))
        names = sorted({name for rows in rows_of.values() for name in rows["neighbor"]})
        case_images, neighbor_images = self._images(self.query_session, ids), self._images(self.table_session, names)
        case_captions, neighbor_captions = self._captions(cases, ids), self._captions(table, names)
        rows = []
        for i, case_id in enumerate(ids):
            cells = [(case_images.get(case_id), f"case {i + 1}{case_captions[case_id]}")]
            for name, distance in rows_of[case_id][["neighbor", "distance"]].itertuples(index=False):
                cells.append((neighbor_images.get(name), f"{distance:.3g}{neighbor_captions[name]}"))
            rows.append(cells)
        model_range = self.table_session.trained.model_range
        write_atomic(path, lambda temporary: draw_cells(rows, temporary, model_range))

    def _captions(self, table: pd.DataFrame, ids: Sequence[str]) -> dict[str, str]:
        """The captions of cases by their ids, each line on a line of its own."""
        names = self.settings.captions
        rows = table[table["id"].isin(ids)].to_dict("records")
        return {str(row["id"]): "".join(f"\n{line}" for line in caption(row, names).splitlines()) for row in rows}

    def write_failures(self) -> None:
        """Replace the list of failures, which has those of the last reading, by a list of all unreadable cases."""
        write_failures(self.folder / FAILURES, list(self.failures.values()))

    def _images(self, session: Session, ids: Sequence[str]) -> dict[str, Tensor]:
        read = self._read(session, ids)
        return {case.id: read.dataset[i]["image"] for i, case in enumerate(read.cases)}

    def _read(self, session: Session, ids: Sequence[str]) -> ReadCases:
        """Read cases by their ids; those that cannot be read become failures."""
        listed = {failure.case_id: failure for failure in session.cohort.failures}  # their headers are unreadable
        self.failures.update({name: listed[name] for name in ids if name in listed})
        readable = [name for name in ids if name not in listed]
        if not readable:
            first = listed[ids[0]]
            raise CohortError(f"none of {len(set(ids))} images can be read; the first, '{ids[0]}': {first.reason}")
        read = session.read(session.choose(Choice(cases=readable)), self.folder, FAILURES, named=True)
        self.failures.update({failure.case_id: failure for failure in read.failures})
        return read
