"""Counterfactuals: a case moved along a direction in z_sem, decoded with its own x_T, in its native space."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.embedding.tables import check_made_with
from monai_diffae.apps.results import checksum_of, log_to_open_run, remove_images, run_once
from monai_diffae.apps.session import CodedCase, OpenedCohort, check_choice, checksum_of_cases, open_cohort
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import patient_hash, read_embeddings, z_of
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.inferers.exact_encoding import encode_exactly
from monai_diffae.latents import Direction
from monai_diffae.latents.directions import Along
from monai_diffae.latents.targets import Kind
from monai_diffae.pictures.mosaic import draw_mosaic, in_colours
from monai_diffae.transforms import NativeSpace, check_invertible, write_native
from monai_diffae.transforms.case_images import names_of, titles_of, warn_without_dicom, write_in_space_of

logger = logging.getLogger(__name__)

AMOUNTS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
_SHOWN = 4
_HARDLY = 0.2  # of what was asked
_FAINT = 0.1  # of the model's range: an image that differs by less should not look as though it differed much


@dataclass(frozen=True)
class EditResult:
    """What :func:`edit` made.

    Attributes:
        folder: with ``images/``, ``differences/``, ``edits.csv`` and ``edits.png``.
        num_cases: cases that were edited.
        num_failed: cases that could not be used, listed in ``failures.csv``.
        monotone: the share of cases whose prediction, read off the edited images, rises from each amount to the next;
            None with a single amount, or where the encoder cannot look at the edited images.
        skipped: whether all was there already.
        moved: how far the edited images went along the direction, over the amount: the median, 1 for as far as asked;
            None where there is no amount but 0, or the encoder cannot look at them.
    """

    folder: Path
    num_cases: int
    num_failed: int
    monotone: float | None
    skipped: bool = False
    moved: float | None = None


def edit(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    direction: str | os.PathLike[str],
    amounts: Sequence[float] = AMOUNTS,
    along: Along = "pattern",
    cases: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    watch: Sequence[str | os.PathLike[str]] = (),
    embeddings: str | os.PathLike[str] | None = None,
    dicom: bool = False,
    workers: int = 0,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> EditResult:
    """Edit cases along a direction (the paper's section 4.3), and measure what moved and what should not have.

    ``out/images/<id>_<amount>`` are the edited images and ``out/differences/`` what differs from the plain
    reconstruction, both in the scan's own shape, affine and intensities; amount 0 is the plain reconstruction.
    ``out/edits.png`` shows the first cases with their differences. ``out/edits.csv`` has a row a case and amount:

    - ``asked``, ``prediction``: the probability of the positive class (or the value) of the moved z_sem, and of the
      edited image when it is encoded again;
    - ``moved``: how far the edited image went along the direction from the plain reconstruction, in standard
      deviations, as ``amount`` counts them; a warning says so if that is hardly as far as was asked;
    - ``mse``: to the plain reconstruction, in the model's range;
    - ``identity``: how far the edited image's z_sem is from the case's own, across the direction, in normalised z;
      ``nearest_other`` to the next patient's in ``embeddings``, and ``is_itself``, whether its own is nearer;
    - ``drift_<target>`` for each direction in ``watch``: how far that went along, in its standard deviations.

    Where the encoder sees another image of the case than the decoder draws, such as a second modality, it cannot say
    what became of the edited one: then ``asked`` and ``mse`` are all there is.

    Args:
        bundle: a trained bundle's folder.
        cohort: a folder, table, datalist or scan.
        out: the folder for the results.
        direction: a file of :func:`~monai_diffae.apps.synthesis.fit_direction.fit_direction`.
        amounts: how far, in standard deviations of the training cases along the direction; negative: the other way.
        along: ``pattern``, as training cases differ that differ along the direction; ``weight``, the classifier's own,
            as in the paper: see :class:`~monai_diffae.latents.Direction`.
        cases: ids; None: the first ``limit`` cases of ``split``.
        split: ``train``, ``val`` or ``test``; None: all.
        limit: at most so many cases.
        watch: files of other directions, which should stay where they are.
        embeddings: the cohort's ``embeddings.parquet``, for the distance to other patients.
        dicom: write edited images of DICOM cases also as new series of the same study, ``out/images/dicom/``; they hold
            the patient's name as their sources do.
        workers: processes that read and preprocess.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config, such as ``{"inferer#num_steps": 50}``.

    Raises:
        ConfigError: no trained bundle, a direction of another model, or ``out`` holds another result.
        CohortError: no case of such an id, none can be read, or ``embeddings`` has no other patient.

    Example:
        >>> edit("bundle", "cohort.csv", "out", direction="no.json")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no.json: there is no such file; make it with monai-diffae fit-direction
    """
    wanted, watched = read_direction(direction), [read_direction(file) for file in watch]
    wanted.line(along)  # refuses one that there is not
    amounts = _with_zero(amounts)
    check_choice(split, limit)
    _check_names_differ(watched)
    opened = open_cohort(bundle, cohort, device=device, columns=columns, overrides=overrides)
    for each in (wanted, *watched):
        each.check_fits(opened.made_from["model"], opened.trained.z_channels)
    others = None
    if embeddings is not None:
        table = read_embeddings(embeddings)
        check_made_with(embeddings, bundle)
        others = _Patients.of(table, wanted)
    chosen = opened.choose(cases, split, limit)
    trained, sees_edits = opened.trained, opened.encoder_sees_what_is_drawn
    folder = Path(out)
    table_file, picture = folder / "edits.csv", folder / "edits.png"
    made_from = {
        **opened.made_from, "cases": checksum_of_cases(chosen), "direction": file_checksum(direction),
        "amounts": amounts, "along": along, "watch": [file_checksum(file) for file in watch],
        "embeddings": None if embeddings is None else file_checksum(embeddings),
        "patients": checksum_of([case.patient for case in chosen]), "dicom": dicom,
    }  # fmt: skip

    def make() -> dict[str, Any]:
        read = opened.read(chosen, folder, workers)
        check_invertible(trained.preprocessing)
        if dicom:
            warn_without_dicom(read.cases)
        if not sees_edits:
            logger.warning(
                "the encoder sees %s, which an edit does not make: prediction, moved, identity and drift are left out",
                opened.encoder_key,
            )
        for name in ("images", "differences"):
            remove_images(folder / name)
        tables: list[pd.DataFrame] = []
        shown: list[tuple[Tensor, Tensor]] = []
        for coded in opened.coded(read, f"editing {len(read.cases)} cases"):
            z_moved = np.concatenate([wanted.move(coded.z_sem.cpu().numpy(), amount, along) for amount in amounts])
            images = opened.decode(torch.from_numpy(z_moved).to(coded.x_T), coded.x_T)
            differences = images - images[amounts.index(0)]
            z_edited = encode_exactly(images, trained.inferer, trained.network).cpu().numpy() if sees_edits else None
            tables.append(_rows(coded, amounts, wanted, along, watched, others, z_moved, z_edited, differences))
            _write(folder, opened, coded, amounts, images, differences, wanted.target if dicom else None)
            if len(shown) < _SHOWN:
                shown.append((images, differences))
        table = pd.concat(tables)
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        _draw(picture, shown, amounts, trained.model_range)
        numbers = {
            "num_cases": len(read.cases), "num_failed": len(opened.failures),
            "monotone": _monotone(table, wanted.kind), "moved": _moved(table),
        }  # fmt: skip
        log_to_open_run({name: value for name, value in numbers.items() if value is not None}, [picture], "edits")
        return numbers

    results = [table_file, picture, folder / "images", folder / "differences"]
    numbers, skipped = run_once(folder / "edits.json", results, made_from, make, overwrite=overwrite)
    moved = numbers.get("moved")  # not in the record of a first version
    _warn_if_hardly_moved(moved, along)
    return EditResult(folder, numbers["num_cases"], numbers["num_failed"], numbers["monotone"], skipped, moved)


@dataclass(frozen=True)
class _Patients:
    """The z_sem of a cohort, normalised, and whose each is."""

    z_norm: NDArray[np.floating[Any]]
    patients: NDArray[np.str_]

    @classmethod
    def of(cls, table: pd.DataFrame, direction: Direction) -> _Patients:
        if "patient" not in table or table["patient"].nunique() < 2:
            raise CohortError("the embeddings hold no two patients to compare; embed a cohort with a column patient")
        return cls(direction.statistics.normalise(z_of(table)), table["patient"].to_numpy(str))

    def nearest_other(self, z_norm: NDArray[np.floating[Any]], patient: str) -> NDArray[np.floating[Any]]:
        """The distance of each z (A, D) to the nearest of another patient (A,)."""
        z_others = self.z_norm[self.patients != patient_hash(patient)]
        return np.array([np.linalg.norm(z_others - z, axis=1).min() for z in z_norm])


def _rows(
    coded: CodedCase,
    amounts: Sequence[float],
    wanted: Direction,
    along: Along,
    watched: Sequence[Direction],
    others: _Patients | None,
    z_moved: NDArray[Any],
    z_edited: NDArray[Any] | None,
    differences: Tensor,
) -> pd.DataFrame:
    columns = {"id": coded.case.id, "amount": amounts, "asked": wanted.predict(z_moved)}
    mse = differences.square().flatten(1).mean(dim=1).cpu().numpy()
    if z_edited is None:
        return pd.DataFrame({**columns, "mse": mse})
    zero = amounts.index(0)
    z_norm, own = wanted.statistics.normalise(z_edited), wanted.statistics.normalise(coded.z_sem.cpu().numpy())
    gone = z_norm - own
    across = gone - np.outer(gone @ wanted.weight, wanted.line(along))
    distance = wanted.distance(z_edited)
    columns |= {"prediction": wanted.predict(z_edited), "moved": (distance - distance[zero]) / wanted.spread}
    columns |= {"mse": mse, "identity": np.linalg.norm(across, axis=1)}
    if others is not None:
        columns["nearest_other"] = others.nearest_other(z_norm, coded.case.patient)
        columns["is_itself"] = np.linalg.norm(gone, axis=1) < columns["nearest_other"]
    for other in watched:
        distance = other.distance(z_edited)
        columns[f"drift_{other.target}"] = (distance - distance[zero]) / other.spread
    return pd.DataFrame(columns)


def _write(
    folder: Path,
    opened: OpenedCohort,
    coded: CodedCase,
    amounts: Sequence[float],
    images: Tensor,
    differences: Tensor,
    target_in_dicom: str | None,
) -> None:
    native = NativeSpace(opened.trained.preprocessing, coded.case.item())
    for amount, image, difference in zip(names_of(amounts), images.cpu(), differences.cpu(), strict=True):
        name = f"{coded.case.id}_{amount}"
        description = None if target_in_dicom is None else f"monai_diffae edit: {target_in_dicom} {amount}"
        write_in_space_of(folder / "images", name, native, native.back(image), coded.case, description)
        file = folder / "differences" / f"{name}.nii.gz"
        write_native(file, native.back_difference(difference), native.scan, np.float32)


def _draw(
    path: Path, shown: Sequence[tuple[Tensor, Tensor]], amounts: Sequence[float], model_range: tuple[float, float]
) -> None:
    low, high = model_range
    limit = max(_FAINT * (high - low), *(float(differences.abs().max()) for _, differences in shown))
    rows: dict[str, Tensor] = {}
    for i, (images, differences) in enumerate(shown, start=1):
        rows[f"case {i}"] = images
        rows[f"difference {i} (±{limit:.2g})"] = in_colours(differences, limit, model_range=model_range)
    write_atomic(path, lambda temporary: draw_mosaic(rows, temporary, model_range, titles_of(amounts)))


def _monotone(table: pd.DataFrame, kind: Kind) -> float | None:
    """The share of cases whose prediction rises; None where there is none, or nothing to rise to."""
    if "prediction" not in table or table["amount"].nunique() < 2:
        return None
    return float(table.groupby("id", sort=False)["prediction"].apply(_rises, kind=kind).mean())


def _moved(table: pd.DataFrame) -> float | None:
    """The median share of the amount that images went; None where there is none, or no amount but 0."""
    if "moved" not in table or not table["amount"].any():
        return None
    away = table[table["amount"] != 0]
    return float((away["moved"] / away["amount"]).median())


def _warn_if_hardly_moved(moved: float | None, along: Along) -> None:
    if moved is None or moved >= _HARDLY:
        return
    why = {
        "pattern": "the decoder hardly heeds z_sem: see monai-diffae usage",
        "weight": "the weight may lead to where no case lies: compare along the pattern, and see monai-diffae usage",
    }
    logger.warning("the edited images moved %.1f %% of what was asked; %s", 100 * moved, why[along])


def _rises(predictions: pd.Series[float], kind: Kind) -> bool:
    """Whether each is above the one before; a probability of 0 or 1, to rounding, may stay so."""
    values = predictions.to_numpy()
    if kind == "continuous":
        return bool((np.diff(values) > 0).all())
    is_at_an_end = (np.maximum(values[:-1], values[1:]) < 1e-6) | (np.minimum(values[:-1], values[1:]) > 1 - 1e-6)
    return bool(((np.diff(values) > 0) | is_at_an_end).all())


def _with_zero(amounts: Sequence[float]) -> list[float]:
    """In rising order, with 0: the plain reconstruction, which everything is compared with."""
    rising = sorted({0.0, *map(float, amounts)})
    names_of(rising)  # refuses what gives no names
    return rising


def _check_names_differ(watched: Sequence[Direction]) -> None:
    targets = [direction.target for direction in watched]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise ConfigError(f"watch: two directions are for '{twice}', and would share a column; leave one out")
