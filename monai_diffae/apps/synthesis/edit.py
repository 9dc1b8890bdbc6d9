"""The command ``edit``: move cases along a direction in z_sem, and decode them with their own x_T."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Group, Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult, checksum_of, failed_cases, log_to_open_run, run_once
from monai_diffae.apps.settings import Choice, Decoding, Numbers, Reading, Run
from monai_diffae.apps.synthesis.strengths import STRENGTHS, strength_names
from monai_diffae.errors import counted

Along = Literal["pattern", "weight"]
Detail = Literal["own", "model"]


@dataclass(frozen=True)
class EditResult(CommandResult):
    """The result of :func:`edit`.

    Attributes:
        folder: holds ``images/``, ``differences/``, ``edits.csv`` and ``edits.png``.
        num_cases: number of edited cases.
        num_failed: number of cases that could not be used, listed in ``failures.csv``.
        monotone: fraction of cases whose prediction rises from each strength to the next; None with a single strength,
            or if the encoder cannot look at edited images.
        achieved: median of the achieved over the requested strength, 1 for edits as strong as requested; None if 0 is
            the only strength, or the encoder cannot look at edited images.
        skipped: whether the results were complete already.
    """

    folder: Path
    num_cases: int
    num_failed: int
    monotone: float | None
    achieved: float | None
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The fraction of monotone cases, then the folder."""
        if self.monotone is not None:
            num_rising = round(self.monotone * self.num_cases)
            yield f"the prediction rises with every step in {num_rising} of {counted(self.num_cases, 'case')}"
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The number of cases, and how well the edits worked."""
        return {"num_cases": self.num_cases, "monotone": self.monotone, "achieved": self.achieved}

    @property
    def incomplete(self) -> str | None:
        """How many cases failed."""
        return failed_cases(self.num_failed, self.num_cases)


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
    reading: Reading = Reading(),
    run: Run = Run(),
) -> EditResult:
    """Edit cases along a direction: images, differences and measurements, in the scan's own space.

    Each case is inverted, its z_sem moved, and decoded with its own x_T (section 4.3 of the paper).
    ``out/differences/<id>_<strength>`` are the differences of the decoded images from the plain reconstruction, which
    is strength 0 and always included, and ``out/images/`` the edited images: by default the scan plus the difference,
    so that the scan keeps its own detail, however coarse the model is. Both have the scan's own shape, affine and
    intensities. ``out/edits.png`` shows the first cases with their differences. ``out/edits.csv`` has one row per case
    and strength, about the decoded images in the model's grid:

    - ``target``, ``prediction``: the probability of the positive class (or the value) of the moved z_sem, and that of
      the edited image, encoded again;
    - ``achieved``: how far the edited image moved along the direction from the plain reconstruction, in the units of
      ``strength``; a warning is logged if this is hardly anything;
    - ``mse``: mean squared error to the plain reconstruction, in the model's range;
    - ``identity``: change of z_sem orthogonal to the direction (normalised); with ``embeddings`` also
      ``nearest_other``: distance to the nearest other patient; and ``is_itself``: whether the edited image is still
      closest to its own case;
    - ``drift_<target>`` for each direction in ``watch``: how far the edited image moved along it, in standard
      deviations.

    If the encoder sees another image of the case than the decoder reconstructs, such as a second modality, it cannot
    encode the edited image. The table then only has ``target`` and ``mse``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        direction: Direction file, written by ``fit-direction``.
        strengths: How far to move, in standard deviations of the training cases, e.g. ``-2,0,2``; negative: the other
            way.
        along: ``pattern`` moves cases as training cases differ; ``weight`` along the classifier's weight vector, as in
            the paper.
        output: How the edited images are written and drawn.
        measurements: What is measured.
        choice: Which cases.
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder, the number of cases, and how well the edits worked.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained, a direction or the embeddings belong to
            another model, or ``out`` holds results of other inputs.
        CohortError: there is no usable case, or ``embeddings`` has no other patient.

    Example:
        >>> edit("bundle", "cohort.csv", "out", direction="no.json")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no.json: there is no such file; make it with monai-diffae fit-direction
    """
    strengths = sorted({0.0, *strengths})  # 0 is the plain reconstruction, which everything is compared with
    strength_names(strengths)  # refuses unusable strengths before anything is loaded
    from monai_diffae.apps.session import Session
    from monai_diffae.apps.synthesis.edit_table import EditTable, warn_of_small_changes
    from monai_diffae.apps.synthesis.editing import Editing
    from monai_diffae.data.file_checksums import file_checksum
    from monai_diffae.latents.representation import warn_if_unused
    from monai_diffae.pictures import check_captions

    table = EditTable.read(direction, along, strengths, measurements.watch)
    session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run)
    table = table.for_model(session.trained, measurements.embeddings)
    warn_if_unused(session.trained.z_sem_usage)
    table.direction.warn_if_chance()
    cases = session.choose(choice)
    check_captions(output.captions, {name for case in cases for name in case.labels})
    embeddings = measurements.embeddings
    made_from = session.made_from(
        cases, strengths=strengths, along=along, detail=output.detail, dicom=output.dicom,
        captions=list(output.captions), patients=checksum_of([case.patient for case in cases]),
        watch=[file_checksum(file) for file in measurements.watch], direction=file_checksum(direction),
        embeddings=None if embeddings is None else file_checksum(embeddings),
    )  # fmt: skip
    editing = Editing(session, table, out, output)

    def make() -> Mapping[str, Any]:
        read = session.read(cases, out, named=bool(choice.cases))
        figures = editing.run(read)
        numbers = {name: value for name, value in figures.items() if value is not None}
        log_to_open_run(numbers, [editing.picture], "edits")
        return figures

    figures, skipped = run_once(out / "edits.json", editing.results, made_from, make, overwrite=run.overwrite)
    warn_of_small_changes(figures["achieved"], along, table.direction)
    return EditResult(out, **figures, skipped=skipped)
