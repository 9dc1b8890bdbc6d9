"""The command ``explain``: counterfactual scans of the user's own classifier, and the labels that they change."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae import bundle as bundles
from monai_diffae import latents, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import NONE_GIVEN, BalancedChoice, Columns, Decoding, Reading, UnbatchedRun
from monai_diffae.apps.synthesis import edit, shortcuts
from monai_diffae.apps.synthesis.edit import CasePicture, EditedImages
from monai_diffae.apps.synthesis.finder import (
    Finder,
    Found,
    Reference,
    Search,
    balanced_rows,
    search_inferer,
    strata,
)
from monai_diffae.apps.synthesis.users_model import ModelInterface, check_file, checksum, read_users_model
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import PartStore, write_csv
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.progress import Failure, check_any_usable, track, write_failures
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import directions as lines
    from monai_diffae.latents import representation
    from monai_diffae.transforms import writing

if TYPE_CHECKING:
    from monai_diffae.latents.statistics import Codes as Floats

logger = logging.getLogger(__name__)

_NUM_PICTURED = 4
_LOOKED_AT = 20  # cases by which the meaning of the outputs is checked, and what the bundle sees of them
_FOLDERS = "scans", "images", "differences"
_FILES = "counterfactuals.csv", "labels.csv", "shortcuts.csv", "curves.csv", "explained.png", "labels.png"
_CANDIDATES = 5  # scans that are scored for each one that is explained, so that decisions and labels are balanced


@command
def explain(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    model: Path,
    embeddings: Path,
    interface: ModelInterface = ModelInterface(),
    search: Search = Search(),
    output: EditedImages = EditedImages(),
    choice: BalancedChoice = BalancedChoice(),
    decoding: Decoding = Decoding(),
    columns: Columns = NONE_GIVEN,
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Explain your classifier or regressor: the smallest change of each scan that changes its score, and what it means.

    For each case, z_sem is moved along the principal components of the training cases as little as possible, until the
    score is the requested one; x_T stays. The gradient goes through the fast decoder, or a decoding with few steps; for
    ONNX it is numerical, in the first 16 components. The exact decoder then finds the length that suffices. Scores are
    those of the scan and of the written file.

    ``out/counterfactuals.csv`` has one row per case:

    - ``score``, ``to``, ``counterfactual``: the scores of the scan, requested, and of the written image; ``reached``;
    - ``distance``: length of the change of normalised z_sem; ``mse``: mean squared change of the image, in the model's
      range;
    - ``outlier_p``: probability of a training case as unusual as the counterfactual, as in ``neighbors``;
      ``is_itself``: whether it is still closer to its own scan than to any other patient's;
    - ``change_<label>``: how far it moved along a label, in standard deviations;
    - ``change_in_mask`` and ``mask_share``, or ``change_of_brightness`` and ``change_outside``: as in ``edit``.

    ``out/labels.csv`` says which labels change, more often than after random changes of the same length: a class if
    the probe's prediction changes, a number if it moves by one standard deviation. ``out/shortcuts.csv`` is a direct
    test: each label alone is moved to its other side, and each marker of ``paste`` is pasted; it counts the decisions
    that change in the files, and in those of a control that looks for the marker only. ``out/curves.csv`` has the score
    at each distance. ``out/scans``, ``out/images`` and ``out/differences`` are in the scan's own space, and
    ``out/explained.png`` and ``out/labels.png`` show them.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        model: File of your model: ``.onnx``, ``.pt2`` (torch.export) or ``.ts`` (TorchScript).
        embeddings: Table of embeddings, written by ``embed`` with this bundle; its training cases are the reference.
        columns: Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``.

    Returns:
        The folder; ``num_cases``, ``num_reached``; ``num_failed``, listed in ``failures.csv``; medians of ``distance``
        and ``mse`` where the score was reached, and there also the means of the shares of the change;
        ``labels`` and ``shortcuts``, one row per label or marker; and ``omitted_labels``, with the reason.

    Raises:
        ConfigError: an argument is out of range, your model does not fit or decides by what the bundle cannot see, the
            embeddings belong to another model, or ``out`` holds results of other inputs.
        CohortError: there is no usable case.
        UnsafeInputError: your model's file could run code, and is not trusted.
    """
    check_file(model)
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=Reading(columns), run=run.batched)
    trained = session.trained
    if trained.inferer.settings.decoder == "fast":
        raise ConfigError("decoder: the exact decoder checks what is found; omit it")
    users_model = read_users_model(model, interface, trained)
    if search.to is not None:
        users_model.value_of(search.to)  # refuses what is no score
    reference = Reference(*edit.table_of_patients(embeddings, trained))
    if reference.training["patient"].nunique() < 2:
        raise ConfigError("embeddings: the training cases are of one patient, and two are needed; embed more patients")
    if interface.input_size or not interface.takes_scan:
        with torch.no_grad():  # before scans are read: does it take such images?
            users_model.values(torch.zeros(1, *trained.image_shape))
    tables.check_labels(reference.table, {"labels": search.labels, "positive": list(search.positive)})
    markers = {name: shortcuts.read_marker(Path(file)) for name, file in search.paste.items()}
    representation.warn_if_unused(trained.z_sem_usage)
    cases, limit = session.choose(replace(choice, limit=None)), None if choice.cases else choice.limit
    if limit is not None:
        drawn = np.random.default_rng(search.seed).permutation(len(cases))[: _CANDIDATES * limit]
        cases = [cases[row] for row in sorted(drawn)]
    pictures.check_captions(output.captions, {name for case in cases for name in case.labels})
    fast, fast_sha256 = search_inferer(trained)
    made_from = session.made_from(
        cases,
        uses_masks=True,
        explained=checksum(model),
        embeddings=file_checksum(embeddings),
        searched_with=fast_sha256,
        **asdict(interface),
        **asdict(search),
        limit=limit,
        **output.made_from(cases),
    )
    made_from |= {"paste": {name: file_checksum(Path(file)) for name, file in search.paste.items()}}
    made_from = json.loads(json.dumps(made_from))  # tuples become lists, as in the record

    def make() -> Mapping[str, Any]:
        store = PartStore(out / ".cases", made_from, replace=True)
        if run.overwrite:
            store.remove()
        read = session.opened(cases, out, "reading", named=bool(choice.cases), dicom=output.dicom)
        usable = [opened.case for opened in read]
        looked_at = usable[:: -(-len(usable) // _LOOKED_AT)]  # evenly, as tables are often sorted
        with torch.no_grad():
            fitting = users_model.checked([users_model.image(trained.open(case).native) for case in looked_at])
        trained.network.requires_grad_(False)
        finder = Finder(session, fitting, reference, search, fast, output.detail)
        finder.check_seen(looked_at)
        surveyed = finder.survey(usable, markers) if markers or limit is not None else []
        chosen = usable
        if limit is not None:
            decisions = [value > fitting.middle for value, _ in surveyed]
            chosen = [usable[row] for row in balanced_rows(strata(usable, decisions), limit, search.seed)]
        pasted = shortcuts.summarise(
            [tests for _, tests in surveyed],
            [value for value, _ in surveyed],
            fitting.middle,
            [case.patient for case in usable],
            search.seed,
        )
        for name in markers.keys() - {row["label"] for row in pasted}:
            logger.warning("paste: all %d scored scans look as if %s was pasted already", len(surveyed), name)
        figures = _Explanations(finder, store, out, output, markers).run(chosen, read.failures, pasted)
        numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        log_to_open_run(numbers, [out / "explained.png", out / "labels.png"], "explained")
        return figures

    results = [out / name for name in (*_FILES, *_FOLDERS)]
    figures, skipped = run_once("explain", out, results, made_from, make, overwrite=run.overwrite)
    num_cases, num_reached = figures["num_cases"], figures["num_reached"]
    missed = f"{num_cases - num_reached} of {counted(num_cases, 'case')} did not reach the score: see {_FILES[0]}"
    reasons = failed_cases(figures["num_failed"], num_cases), missed if num_reached < num_cases else None
    incomplete = "; ".join(filter(None, reasons)) or None
    return Result(out, figures, _notes(figures, users_model.name), incomplete, skipped=skipped)


def _notes(figures: Mapping[str, Any], name: str) -> list[str]:
    """The result in sentences; the labels that change most come first."""
    counterfactuals = counted(figures["num_cases"], "counterfactual")
    changes = (
        f"{row['num_changed']} of {row['num_cases']} change {row['label']} ({row['share']:.0%}, {row['low']:.0%} to "
        f"{row['high']:.0%}; random changes of this length: {row['random_share']:.0%}; "
        f"{row['mean_change']:+.2f} SD as the score rises)"
        f"{', which may be chance' if row['num_changed'] and row['excess_low'] <= 0 else ''}"
        for row in figures["labels"]
    )
    omitted = (f"{label} is omitted: {reason}" for label, reason in figures["omitted_labels"].items())
    reached = f"{name}: {figures['num_reached']} of {counterfactuals} reach the score in the written file"
    return [reached, *edit.mask_notes(figures), *changes, *shortcuts.sentences(figures["shortcuts"]), *omitted]


@dataclass(frozen=True)
class _Explanations:
    """Explains the cases of a session, and writes the results."""

    finder: Finder
    store: PartStore  # of finished cases, with which an interrupted run resumes
    folder: Path
    output: EditedImages
    markers: Mapping[str, Floats]

    def run(
        self, chosen: Sequence[Case], unread: Sequence[Failure], pasted: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Explain the cases and return the figures of the result, with those of the test by pasting."""
        session, folder = self.finder.session, self.folder
        transforms.check_invertible(session.trained.preprocessing)
        directions, omitted = self.finder.reference.directions(self.finder.search, session.trained.sha256)
        if not session.encoder_sees_decoded_images:
            reason = f"the encoder sees {session.encoder_key}, which a counterfactual does not change"
            directions, omitted = [], omitted | {each.target: reason for each in directions}
        test = shortcuts.DirectTest(directions, tables.z_matrix(self.finder.reference.training), self.markers)
        self._explain(chosen, test)
        done = self.store.read().set_index("id")
        errors = done["error"].to_dict()
        failures = [Failure(case.id, case.file, errors[case.id]) for case in chosen if errors[case.id]]
        write_failures(folder / "failures.csv", [*unread, *failures])
        cases = [case for case in chosen if not errors[case.id]]
        check_any_usable(len(cases), failures)
        found = [torch.load(BytesIO(done["found"][case.id]), weights_only=True) for case in cases]
        patients = [case.patient for case in cases]
        table, changes = self._judged(found, patients, directions)
        users_model, seed = self.finder.users_model, self.finder.search.seed
        tests, starts = [each["tests"] for each in found], [each["start"] for each in found]
        tested = [*pasted, *shortcuts.summarise(tests, starts, users_model.middle, patients, seed)]
        points = [(each["row"]["id"], *point) for each in found for point in each["curve"]]
        curves = pd.DataFrame(points, columns=["id", "distance", "score"])
        labels = [asdict(each) for each in changes]
        write_csv(folder / "counterfactuals.csv", table)
        write_csv(folder / "curves.csv", curves)
        columns = ["label", *lines.ChangeShare.__annotations__, "mean_change"]
        write_csv(folder / "labels.csv", pd.DataFrame(labels, columns=columns))
        write_csv(folder / "shortcuts.csv", pd.DataFrame(tested, columns=list(shortcuts.COLUMNS)))
        shown = [CasePicture(*each["picture"]) for each in found if each["picture"]]
        edit.draw_changes(folder / "explained.png", shown, ["scan", "counterfactual"], session.trained)
        pictures.draw_explanation(curves, table, changes).savefig(folder / "labels.png", dpi=120)
        self.store.remove()
        reached = table[table["reached"]]
        medians = {name: float(reached[name].median()) if len(reached) else None for name in ("distance", "mse")}
        return {
            "num_cases": len(cases),
            "num_reached": len(reached),
            "num_failed": len(unread) + len(failures),
            **medians,
            **edit.mean_shares(reached),
            "labels": labels,
            "shortcuts": tested,
            "omitted_labels": omitted,
        }

    def _explain(self, chosen: Sequence[Case], test: shortcuts.DirectTest) -> None:
        """Explain the cases that an interrupted run has not explained."""
        done = self.store.read(["error"]).reindex(columns=["id", "error"])
        for name in () if len(done) else _FOLDERS:
            remove_images(self.folder / name)
        num_pictured, known = int((done["error"] == "").sum()), set(done["id"])
        left = [case for case in chosen if case.id not in known]
        for case in track(left, f"explaining {counted(len(left), 'case')}"):
            error, file = "", BytesIO()
            try:
                scored = self.finder.scored(case)
                found = self.finder.find(scored)
                picture = self._write(scored.opened, found)
                tests = list(test.rows(scored, self.finder.tested(scored.opened, test)))
                content: dict[str, Any] = {"row": found.row, "curve": found.curve, "z_sem": found.z_sem}
                content |= {"start": found.start, "tests": tests}
                torch.save({**content, "picture": tuple(picture) if num_pictured < _NUM_PICTURED else None}, file)
                num_pictured += 1
            except ScanError as reason:
                error = str(reason)
            self.store.append(pd.DataFrame([{"id": case.id, "error": error, "found": file.getvalue()}]))

    def _write(self, opened: bundles.ModelCase, found: Found) -> CasePicture:
        """Write the images of a case, and return its picture."""
        case, native, is_own = opened.case, opened.native, self.output.detail == "own"
        image = native.edited(found.image, found.difference, self.output.detail)
        text = "monai_diffae explain" if self.output.dicom else None
        writing.write_case_image(self.folder / "images", case.file_name, native, image, case, text)
        file = self.folder / "scans" / f"{case.file_name}{native.scan.suffix}"
        transforms.write_native(file, native.scan.array, native.scan)
        file = self.folder / "differences" / f"{case.file_name}.nii.gz"
        difference = native.storable(image) - native.scan.array if is_own else native.back_difference(found.difference)
        transforms.write_native(file, difference, native.scan, np.float32)
        found.row.update(edit.shares_in_mask(opened, difference))
        both = torch.stack([found.image - found.difference, found.image])
        changes = torch.stack([torch.zeros_like(found.difference), found.difference])
        images, differences, caption = self.output.picture(opened, both, changes)
        scores = "{score:.2f} to {counterfactual:.2f}".format(**found.row)
        scores += "" if found.row["reached"] else f" (missed {found.row['to']:.2f})"
        return CasePicture(images, differences[1:], "\n".join(filter(None, [caption, scores])))

    def _judged(
        self, found: Sequence[Mapping[str, Any]], patients: Sequence[str], directions: Sequence[latents.Direction]
    ) -> tuple[pd.DataFrame, list[lines.LabelChange]]:
        """The rows of all counterfactuals, and how often labels change in those that reach the score."""
        table = pd.DataFrame([each["row"] for each in found])
        if found[0]["z_sem"] is None:
            return table, []
        codes = torch.stack([each["z_sem"] for each in found]).numpy()
        table["outlier_p"] = self.finder.reference.outlier_p(codes[:, 1], patients)
        for each in directions:
            table[f"change_{each.target}"] = lines.travel(each, codes[:, 0], codes[:, 1])
        reached = table.index[table["reached"]]
        if not len(reached):
            return table, []
        towards = np.sign((table["to"] - table["score"]).to_numpy(np.float64))[reached]
        codes, patients, seed = codes[reached], [patients[row] for row in reached], self.finder.search.seed
        changes = [lines.label_change(each, codes, patients, towards=towards, seed=seed) for each in directions]
        return table, sorted(changes, key=lambda change: -change.excess)
