"""The command ``edit``: move cases along a direction in z_sem, and decode them with their own x_T."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import inferers, latents, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import NONE_GIVEN, Choice, Columns, Decoding, Numbers, Reading, UnbatchedRun
from monai_diffae.apps.synthesis.fit_direction import STRENGTHS, read_direction, strength_names, strength_titles
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.cases import Case, PatientKey, key_beside
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Detail

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import representation
    from monai_diffae.transforms import writing

if TYPE_CHECKING:
    Floats = npt.NDArray[np.floating[Any]]

logger = logging.getLogger(__name__)

_NUM_PICTURED = 4
_PANEL_PX, _PLANE_PX = 224, 112  # per side of a 2D image and of a plane of a volume, or the model's if it is larger
_LEAST_SCALE = 0.1  # end of the colour scale, as a fraction of the model's range: small differences should look small
_SHARE = "share_"  # before the name of a channel
_LEAST_TISSUE = 0.1  # of the model's range above its lowest value; noise of the air is below it
_LEAST_ODDS = 2.0  # of a change at a lesion; if whole scans of gliomas (FLAIR) get brighter, they are 1.2
_LEAST_ACHIEVED = 0.2  # fraction of the requested strength; below it, a warning is logged

Along = Literal["pattern", "weight"]


@Parameter(name="*", group=Group("Measurements", sort_key=2))
@dataclass(frozen=True)
class Measurements:
    """What is measured in edited images, beside the direction itself."""

    watch: Sequence[Path] = ()
    """Files of other directions, along which cases should not move."""
    embeddings: Path | None = None
    """Table of embeddings of the cohort, for the distance to other patients."""


@Parameter(name="*", group=Group("Images", sort_key=2))
@dataclass(frozen=True)
class EditedImages:
    """How edited images are written and drawn."""

    detail: Detail = "own"
    """``own`` adds the change to the scan, which keeps its own detail; ``model`` writes what the model decodes."""
    dicom: bool = False
    """Also write edited DICOM cases as new series of the same study, ``out/images/dicom``. They contain the patient's
    name, as their sources do."""
    captions: Sequence[str] = ()
    """What ``edits.png`` says about a case: ``id`` and names of labels; by default nothing."""

    def made_from(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What the images of cases depend on, for the record of a result."""
        patients = json_digest([case.patient for case in cases])
        return {"detail": self.detail, "dicom": self.dicom, "captions": list(self.captions), "patients": patients}

    def picture(self, opened: bundles.ModelCase, images: torch.Tensor, differences: torch.Tensor) -> CasePicture:
        """The picture of a case, with the detail and caption that are asked for."""
        if self.detail == "own":
            images, differences = _own_detail(opened.native, differences)
        caption = pictures.caption({"id": opened.id, **opened.case.labels}, self.captions)
        return CasePicture(images, differences, caption)


@command
def edit(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    direction: Path,
    strengths: Numbers = STRENGTHS,
    along: Along = "pattern",
    output: EditedImages = EditedImages(),
    measurements: Measurements = Measurements(),
    choice: Choice = Choice(),
    decoding: Decoding = Decoding(),
    columns: Columns = NONE_GIVEN,
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Edit cases along a direction: images, differences and measurements, in the scan's own space.

    Each case is inverted, its z_sem moved, and decoded with its own x_T (section 4.3 of the paper).
    ``out/differences/<id>_<strength>`` are the differences of the decoded images from the plain reconstruction
    (strength 0, always included), and ``out/images/`` the edited images: by default the scan plus the difference. Both
    have the scan's own shape, affine and intensities. ``out/edits.png`` shows the first cases. ``out/edits.csv`` has
    one row per case and strength, about the decoded images in the model's grid:

    - ``target``, ``prediction``: the probability of the positive class (or the value) of the moved z_sem, and that of
      the edited image, encoded again;
    - ``achieved``: how far the edited image moved along the direction, in the units of ``strength``;
    - ``mse``: mean squared error to the plain reconstruction, in the model's range;
    - with several sequences, ``share_<sequence>`` of each: its mean absolute change in the model's range, divided by
      the sum over all sequences;
    - ``identity``: change of z_sem orthogonal to the direction (normalised); with ``embeddings`` also
      ``nearest_other``, the distance to the nearest other patient, and ``is_itself``, whether the edited image is still
      closest to its own case;
    - ``drift_<target>`` for each direction in ``watch``: how far it moved along that one, in standard deviations;
    - ``change_in_mask``, for cases whose mask marks a voxel of the field of view: the share of the absolute change, in
      the model's range, inside the mask; and ``mask_share``, the share by chance: that of the mask among the voxels of
      the field of view that are in it or above the lowest tenth of the model's range;
    - ``change_of_brightness`` and ``change_outside``, for cases without a mask: the share of the squared change that is
      the mean change of all voxels above that tenth, and the share in the other, dark voxels.

    An encoder that sees another image than the decoder reconstructs, such as a second modality, cannot encode the
    edited image. The table then only has ``target``, ``mse`` and the shares.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        direction: Direction file, written by ``fit-direction``.
        strengths: How far to move, in standard deviations of the training cases, e.g. ``-2,0,2``.
        along: ``pattern`` moves cases as training cases differ; ``weight`` along the classifier's weights, as in the
            paper.
        columns: Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``.

    Returns:
        The folder; ``num_cases``; ``num_failed``, listed in ``failures.csv``; ``monotone``, the fraction of cases whose
        prediction rises from each strength to the next; ``achieved``, the median of the achieved over the requested
        strength; with several sequences the mean of each ``share_<sequence>``; and the means of ``change_in_mask`` and
        ``mask_share``, or of ``change_of_brightness`` and ``change_outside``. ``monotone`` and ``achieved`` are None if
        they cannot be measured.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, a direction or the embeddings belong to
            another model, or ``out`` holds results of other inputs.
        CohortError: there is no usable case.
    """
    strengths = sorted({0.0, *strengths})  # 0 is the plain reconstruction, which everything is compared with
    strength_names(strengths)  # refuses equal names before anything is loaded
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=Reading(columns), run=run.batched)
    trained, embeddings = session.trained, measurements.embeddings
    line, *watch = (read_direction(file, trained) for file in (direction, *measurements.watch))
    if len({each.target for each in watch}) < len(watch):
        raise ConfigError("watch: two directions are for the same label, and would share a column; omit one")
    nearest_other = None
    if embeddings is not None:
        nearest_other = nearest_other_patient(*table_of_patients(embeddings, trained), line.statistics)
    representation.warn_if_unused(trained.z_sem_usage)
    line.warn_if_chance()
    cases = session.choose(choice)
    pictures.check_captions(output.captions, {name for case in cases for name in case.labels})
    made_from = session.made_from(
        cases,
        uses_masks=True,
        strengths=strengths,
        along=along,
        **output.made_from(cases),
        watch=[file_checksum(file) for file in measurements.watch],
        direction=file_checksum(direction),
        embeddings=None if embeddings is None else file_checksum(embeddings),
    )
    results = [out / name for name in ("edits.csv", "edits.png", "images", "differences")]

    def make() -> Mapping[str, Any]:
        opened = session.opened(cases, out, "editing", named=bool(choice.cases), dicom=output.dicom)
        figures = _Edits(session, line, along, strengths, watch, nearest_other, out, output).run(opened)
        numbers = {name: value for name, value in figures.items() if value is not None}
        log_to_open_run(numbers, [out / "edits.png"], "edits")
        return figures

    figures, skipped = run_once("edit", out, results, made_from, make, overwrite=run.overwrite)
    _warn_of_small_changes(figures["achieved"], along, line)
    num_cases, notes = figures["num_cases"], []
    is_moved = figures["achieved"] is None or figures["achieved"] >= _LEAST_ACHIEVED
    if figures["monotone"] is not None and is_moved:
        num_rising = round(figures["monotone"] * num_cases)
        notes.append(f"the prediction rises with every step in {num_rising} of {counted(num_cases, 'case')}")
    shares = [f"{name.removeprefix(_SHARE)} {share:.0%}" for name, share in figures.items() if name.startswith(_SHARE)]
    if shares:
        notes.append(f"share of the change: {', '.join(shares)}")
    notes += mask_notes(figures)
    return Result(out, figures, notes, failed_cases(figures["num_failed"], num_cases), skipped=skipped)


@dataclass(frozen=True)
class _Edits:
    """Edits and measures the cases of a session; ``strengths`` are ascending, and one of them is 0."""

    session: sessions.Session
    direction: latents.Direction
    along: Along
    strengths: Sequence[float]
    watch: Sequence[latents.Direction]
    nearest_other: Callable[[Floats, str], Floats] | None
    folder: Path
    output: EditedImages

    def run(self, cases: sessions.OpenedCases) -> dict[str, Any]:
        """Edit all cases, and return the figures of the result."""
        transforms.check_invertible(self.session.trained.preprocessing)
        if not self.session.encoder_sees_decoded_images:
            logger.warning(
                "the encoder sees %s, which an edit does not change: prediction, achieved, identity and drift are "
                "not measured",
                self.session.encoder_key,
            )
        edited: list[pd.DataFrame] = []
        shown: list[CasePicture] = []
        for opened in cases:
            if not edited:  # an earlier result stays if no case can be used
                remove_images(self.folder / "images")
                remove_images(self.folder / "differences")
            rows, images, differences = self._edit(opened)
            changes = self._write(opened, images, differences)
            edited.append(rows.join(pd.DataFrame(shares_in_mask(opened, change) for change in changes)))
            if len(shown) < _NUM_PICTURED:
                shown.append(self.output.picture(opened, images, differences))
        table = pd.concat(edited)
        write_csv(self.folder / "edits.csv", table)
        titles = strength_titles(self.strengths)
        draw_changes(self.folder / "edits.png", shown, titles, self.session.trained)
        return {
            "num_cases": len(edited),
            "num_failed": len(cases.failures),
            "monotone": _monotone_share(table, self.direction.kind),
            "achieved": _achieved_share(table),
            **{str(name): share for name, share in table.filter(regex=f"^{_SHARE}").mean().dropna().items()},
            **mean_shares(table),
        }

    def _edit(self, opened: bundles.ModelCase) -> tuple[pd.DataFrame, torch.Tensor, torch.Tensor]:
        """Return the rows, the edited images (A, C, *S), and their differences from the plain reconstruction."""
        trained = self.session.trained
        z_sem = opened.z_sem.cpu().numpy()
        z_moved = np.concatenate([self.direction.move(z_sem, strength, self.along) for strength in self.strengths])
        images = opened.decode(torch.from_numpy(z_moved).to(opened.images))
        differences = images - images[self.strengths.index(0)]
        z_edited = None
        if self.session.encoder_sees_decoded_images:
            z_edited = inferers.encode_exactly(images, trained.network, trained.inferer).cpu().numpy()
        changes = {"mse": differences.square().flatten(1).mean(dim=1).cpu().numpy()}
        if len(trained.channel_names) > 1:
            sizes = differences.abs().flatten(2).mean(dim=2)
            shares = (sizes / sizes.sum(dim=1, keepdim=True)).T.cpu().numpy()  # NaN if nothing changes
            changes |= dict(zip((f"{_SHARE}{name}" for name in trained.channel_names), shares, strict=True))
        rows = self._rows(opened.case, z_moved, z_edited, changes)
        return rows, images.cpu(), differences.cpu()

    def _write(
        self, opened: bundles.ModelCase, images: torch.Tensor, differences: torch.Tensor
    ) -> list[npt.NDArray[np.float32]]:
        """Write the images and differences of a case, and return the latter, in its own space."""
        native, zero, detail, written = opened.native, self.strengths.index(0), self.output.detail, []
        plain = native.edited(images[zero], differences[zero], detail)
        for strength, image, difference in zip(strength_names(self.strengths), images, differences, strict=True):
            name = f"{opened.case.file_name}_{strength}"
            description = f"monai_diffae edit: {self.direction.target} {strength}" if self.output.dicom else None
            edited = native.edited(image, difference, detail)
            writing.write_case_image(self.folder / "images", name, native, edited, opened.case, description)
            file = self.folder / "differences" / f"{name}.nii.gz"
            clipped = native.storable(edited) - edited - (native.storable(plain) - plain)  # 0 where the file holds all
            written.append(native.back_difference(difference) + clipped)
            transforms.write_native(file, written[-1], native.scan, np.float32)
        return written

    def _rows(
        self, case: Case, z_moved: Floats, z_edited: Floats | None, changes: Mapping[str, Floats]
    ) -> pd.DataFrame:
        """One row per strength; ``z_edited`` (A, D) is None if the encoder cannot look at edited images."""
        columns: dict[str, Any] = {"id": case.id, "strength": self.strengths, "target": self.direction.predict(z_moved)}
        if z_edited is None:
            return pd.DataFrame({**columns, **changes})
        z_case = z_moved[self.strengths.index(0)]
        z_norm = self.direction.statistics.normalise(z_edited)
        change = z_norm - self.direction.statistics.normalise(z_case)
        orthogonal = change - np.outer(change @ self.direction.weight, self.direction.line(self.along))
        columns |= {"prediction": self.direction.predict(z_edited), "achieved": self._travel(self.direction, z_edited)}
        columns |= {**changes, "identity": np.linalg.norm(orthogonal, axis=1)}
        if self.nearest_other is not None:
            columns["nearest_other"] = self.nearest_other(z_norm, case.patient)
            columns["is_itself"] = np.linalg.norm(change, axis=1) < columns["nearest_other"]
        columns |= {f"drift_{each.target}": self._travel(each, z_edited) for each in self.watch}
        return pd.DataFrame(columns)

    def _travel(self, direction: latents.Direction, z_edited: Floats) -> Floats:
        """How far edited images moved along a direction from the plain reconstruction, in standard deviations."""
        distance = direction.distance(z_edited)
        return (distance - distance[self.strengths.index(0)]) / direction.std


def table_of_patients(embeddings: Path, trained: bundles.TrainedBundle) -> tuple[pd.DataFrame, PatientKey]:
    """Embeddings by this bundle, of two patients or more, and the key of their hashes."""
    table_origin.check_same_model(embeddings, trained.folder)
    table_origin.warn_of_other_preprocessing(embeddings, trained)
    table = tables.read_embeddings(embeddings)
    if "patient" not in table or table["patient"].nunique() < 2:
        raise CohortError("embeddings: the table has no two patients to compare; embed a cohort with a column patient")
    return table, key_beside(embeddings, tables.patient_key_name(table))


def nearest_other_patient(
    table: pd.DataFrame, key: PatientKey, statistics: latents.LatentStatistics
) -> Callable[[Floats, str], Floats]:
    """A function from normalised z_sem (A, D) and a patient to their distances (A,) to the nearest other patient."""
    z_all, patients = statistics.normalise(tables.z_matrix(table)), table["patient"].to_numpy(str)

    def nearest(z_norm: Floats, patient: str) -> Floats:
        z_others = z_all[patients != key.hash(patient)]
        return np.array([np.linalg.norm(z_others - z, axis=1).min() for z in z_norm])

    return nearest


def _monotone_share(table: pd.DataFrame, kind: str) -> float | None:
    """Return the fraction of cases whose prediction rises; None without predictions, or with one strength only."""
    if "prediction" not in table or table["strength"].nunique() < 2:
        return None
    return float(table.groupby("id", sort=False)["prediction"].apply(_rises, kind=kind).mean())


def _achieved_share(table: pd.DataFrame) -> float | None:
    """Return the median of achieved over requested strength; None if it is not measured, or 0 is the only strength."""
    if "achieved" not in table or not table["strength"].any():
        return None
    edits = table[table["strength"] != 0]
    return float((edits["achieved"] / edits["strength"]).median())


def _warn_of_small_changes(achieved: float | None, along: Along, direction: latents.Direction) -> None:
    """Log a warning if edited images moved by less than a fifth of what was requested."""
    if achieved is None or achieved >= _LEAST_ACHIEVED:
        return
    reason = "the decoder hardly uses z_sem: see z_sem_usage of monai-diffae evaluate"
    if along == "weight":
        reason = "the weight may point away from all cases: try along pattern, and see monai-diffae evaluate"
    if direction.may_be_chance:
        reason = (
            f"the direction '{direction.target[:60]}' may be chance (cross-validated {direction.score_text}), along "
            "which images need not change"
        )
    logger.warning("the edited images moved by %.1f %% of the requested strength; %s", 100 * achieved, reason)


def _rises(predictions: pd.Series[float], kind: str) -> bool:
    """Whether each prediction is above the one before. A probability that rounds to 0 or 1 may stay the same."""
    values = predictions.to_numpy()
    if kind == "continuous":
        return bool((np.diff(values) > 0).all())
    is_saturated = (np.maximum(values[:-1], values[1:]) < 1e-6) | (np.minimum(values[:-1], values[1:]) > 1 - 1e-6)
    return bool(((np.diff(values) > 0) | is_saturated).all())


def shares_in_mask(opened: bundles.ModelCase, change: npt.NDArray[np.float32]) -> dict[str, float]:
    """Where a change ``[C, *native S]`` lies: shares inside the case's mask and by chance; without one, in the dark."""
    mask, native = opened.mask, opened.native
    if not change.any() or (mask is not None and not (mask & native.field).any()):
        return {}
    low, high = opened.trained.model_range
    is_tissue = (native.to_model_range(native.scan.array) > low + _LEAST_TISSUE * (high - low)).any(axis=0)
    is_tissue &= native.field
    difference = native.to_model_range(change) - native.to_model_range(np.zeros_like(change))
    if mask is None:
        squares, tissue = np.square(difference, dtype=np.float64), difference[:, is_tissue]
        brighter = np.square(tissue.sum(axis=1, dtype=np.float64)).sum() / max(is_tissue.sum(), 1)
        shares = {"change_of_brightness": brighter, "change_outside": squares[:, ~is_tissue].sum()}
        return {name: float(share / squares.sum()) for name, share in shares.items()}
    size = np.abs(difference).sum(axis=0, dtype=np.float64)
    inside = mask & native.field
    chance = inside.sum() / (inside | is_tissue).sum()
    return {"change_in_mask": float(size[inside].sum() / size.sum()), "mask_share": float(chance)}


def mean_shares(table: pd.DataFrame) -> dict[str, float]:
    """The means of :func:`shares_in_mask` over cases, if any case has them."""
    names = ["change_in_mask", "mask_share", "change_of_brightness", "change_outside"]
    by_case = table.filter(names).groupby(table["id"]).mean()
    return {str(name): float(share) for name, share in by_case.mean().dropna().items()}


def mask_notes(figures: Mapping[str, Any]) -> list[str]:
    """Where the change lies, in one sentence, which says so if voxels of the mask change little more than others."""
    if "change_in_mask" not in figures:
        if "change_outside" not in figures:  # nothing changed, or it is a result of an earlier version
            return []
        dark = f"{figures['change_outside']:.0%} lies where the scan is dark, as around a head"
        return [
            f"without masks: {figures['change_of_brightness']:.0%} of the squared change is the same brightness "
            f"for all tissue, and {dark}"
        ]
    share, chance = figures["change_in_mask"], figures["mask_share"]
    if share * (1 - chance) < _LEAST_ODDS * chance * (1 - share):
        return [f"the change is not at the lesion: {share:.0%} of it lies in the mask ({chance:.0%} by chance)"]
    return [f"the change lies in the mask: {share:.0%} ({chance:.0%} by chance)"]


class CasePicture(NamedTuple):
    """The changed images of a case, or pictures of them, and their differences, (A, C, *S) in the model's range."""

    images: torch.Tensor
    differences: torch.Tensor
    caption: str


def _own_detail(native: transforms.NativeSpace, differences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (A, C, H, W) as fine as the scan, up to a size: the case with the differences added, and these alone."""
    array, size = native.to_model_range(native.scan.array), native.image.shape[1:]
    sides = max(_PANEL_PX, *size), max(_PLANE_PX, *size)
    edited = (native.storable(native.add_difference(difference)) for difference in differences)
    changes = [native.to_model_range(image) - array for image in edited]
    panels = torch.stack([pictures.fitted(each, native.scan.affine, sides, background=0.0) for each in changes])
    plain = pictures.fitted(array, native.scan.affine, sides, background=float(array.min()))
    return plain + panels, panels


def draw_changes(
    path: Path, cases: Sequence[CasePicture], titles: Sequence[str], trained: bundles.TrainedBundle
) -> None:
    """Draw changed images, and below them their differences in colour; beside them, if they are fewer."""
    low, high = trained.model_range
    limit = max(_LEAST_SCALE * (high - low), *(float(case.differences.abs().max()) for case in cases))
    rows: dict[str, torch.Tensor] = {}
    for i, case in enumerate(cases, start=1):
        name = "\n".join(filter(None, [f"case {i}", case.caption]))
        images = trained.shown(case.images)
        colours = pictures.in_colours(case.differences, limit, is_colour=trained.is_colour)
        if len(colours) == len(titles):
            rows[name], rows[f"difference {i} (±{limit:.2g})"] = images, colours
        else:
            rows[name] = torch.cat([images, colours])
    if len(rows) == len(cases):
        titles = [*titles, f"difference (±{limit:.2g})"]
    height, width = cases[0].images.shape[-2:]
    footing = pictures.pixels.PLANES if width > height else ""  # volumes, already in three planes
    if len(names := trained.channel_names) > 1:
        footing = f"{', '.join(names)}. {footing}"
    write_atomic(path, lambda file: pictures.draw_mosaic(rows, file, titles, footing))
