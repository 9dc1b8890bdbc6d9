"""The command ``explain``: counterfactual scans of the user's own classifier, and the labels that they change."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import inferers, latents, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, failed_cases, remove_images, run_once
from monai_diffae.apps.settings import BalancedChoice, Columns, Decoding, NamedFiles, Reading, Seed, UnbatchedRun
from monai_diffae.apps.synthesis import edit, shortcuts
from monai_diffae.apps.synthesis.edit import CasePicture, EditedImages
from monai_diffae.apps.synthesis.users_model import (
    ModelInterface,
    ScoredCase,
    UsersModel,
    check_file,
    checksum,
    read_users_model,
)  # fmt: skip
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.bundle.layout import FAST_MODEL, models_folder
from monai_diffae.data.atomic import PartStore, write_csv
from monai_diffae.data.cases import Case, PatientKey
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.data.progress import Failure, check_any_usable, track, write_failures
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.lazy import bundles, counterfactual, loading, np, pd, representation, sessions, tables, torch, writing
from monai_diffae.lazy import directions as lines

if TYPE_CHECKING:
    from monai_diffae.latents.statistics import Codes as Floats

logger = logging.getLogger(__name__)

_NUM_PICTURED = 4
_LOOKED_AT = 20  # cases by which the meaning of the outputs is checked, and what the bundle sees of them
_FOLDERS = "scans", "images", "differences"
_FILES = "counterfactuals.csv", "labels.csv", "shortcuts.csv", "curves.csv", "explained.png", "labels.png"
_NUM_COMPONENTS = 16  # of the search by finite differences
_LEAST, _MOST = 0.8, 0.99  # probability of the other class that a counterfactual should have
_SEARCH_STEPS = 5  # of a decoding in the search, without a fast decoder
_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the change, at which the exact decoder is asked
_NUM_NEIGHBORS = 5
_CANDIDATES = 5  # scans that are scored for each one that is explained, so that decisions and labels are balanced
_MOST_CLASSES = 5  # of a label that is balanced
_MOST_UNSEEN = 0.2  # share of decisions that may change if the model gets only what the bundle sees


@Parameter(name="*", group=Group("Search", sort_key=2))
@dataclass(frozen=True)
class Search:
    """What is searched for, and how."""

    to: float | None = None
    """Score that a counterfactual should have; by default the other side of .5, as far away as the scan's score, but at
    least .8 (or .2) and at most .99 (or .01)."""
    labels: Sequence[str] = ()
    """Label columns of the embeddings that may change; by default all with two classes, and numbers."""
    positive: Columns = field(default_factory=dict)
    """The class, against all others, of labels with several classes, e.g. ``subtype=virus``."""
    paste: NamedFiles = field(default_factory=dict)
    """Images of markers, by label or another name, e.g. ``marker=marker.png``: nonzero values are pasted at the same
    place of each scan; a mask of 0 and 1 pastes the scan's highest value."""
    allow_unseen: bool = False
    """Continue even if many decisions depend on detail that the bundle cannot see."""
    num_random: Annotated[int, Ge(1)] = 4
    """Random changes of the same length per case, with which the counterfactual is compared."""
    seed: Seed = 0
    """Random seed of these changes and of the bootstrap."""


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
    reading: Reading = Reading(),
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
    - ``change_<label>``: how far it moved along a label, in standard deviations.

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

    Returns:
        The folder; ``num_cases``, ``num_reached``; ``num_failed``, listed in ``failures.csv``; medians of ``distance``
        and ``mse`` where the score was reached; ``labels`` and ``shortcuts``, one row per label or marker; and
        ``omitted_labels``, with the reason.

    Raises:
        ConfigError: an argument is out of range, your model does not fit or decides by what the bundle cannot see, the
            embeddings belong to another model, or ``out`` holds results of other inputs.
        CohortError: there is no usable case.
        UnsafeInputError: your model's file could run code, and is not trusted.
    """
    check_file(model)
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
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
            users_model.values(torch.zeros(1, trained.config["in_channels"], *trained.config["image_size"]))
    tables.check_labels(reference.table, {"labels": search.labels, "positive": list(search.positive)})
    markers = {name: shortcuts.read_marker(Path(file)) for name, file in search.paste.items()}
    representation.warn_if_unused(trained.z_sem_usage)
    cases, limit = session.choose(replace(choice, limit=None)), None if choice.cases else choice.limit
    if limit is not None:
        drawn = np.random.default_rng(search.seed).permutation(len(cases))[: _CANDIDATES * limit]
        cases = [cases[row] for row in sorted(drawn)]
    pictures.check_captions(output.captions, {name for case in cases for name in case.labels})
    fast, fast_sha256 = _search_inferer(trained)
    made_from = session.made_from(
        cases, explained=checksum(model), embeddings=file_checksum(embeddings), searched_with=fast_sha256,
        **asdict(interface), **asdict(search), limit=limit, detail=output.detail, dicom=output.dicom,
        captions=list(output.captions), patients=json_digest([case.patient for case in cases]),
    )  # fmt: skip
    made_from |= {"paste": {name: file_checksum(Path(file)) for name, file in search.paste.items()}}
    made_from = json.loads(json.dumps(made_from))  # tuples become lists, as in the record

    def make() -> Mapping[str, Any]:
        store = PartStore(out / ".cases", made_from, replace=True)
        if run.overwrite:
            store.remove()
        read = session.read(cases, out, named=bool(choice.cases), dicom=output.dicom)
        looked_at = read.cases[:: -(-len(read.cases) // _LOOKED_AT)]  # evenly, as tables are often sorted
        natives = (transforms.NativeSpace(trained.preprocessing, case.item()) for case in looked_at)
        with torch.no_grad():
            fitting = users_model.checked([users_model.image(native) for native in natives])
        trained.network.requires_grad_(False)
        finder = Finder(session, fitting, reference, search, fast, output.detail)
        finder.check_seen(looked_at)
        surveyed = finder.survey(read.cases, markers) if markers or limit is not None else []
        rows = list(range(len(read.cases)))
        if limit is not None:
            decisions = [value > fitting.middle for value, _ in surveyed]
            rows = balanced_rows(strata(read.cases, decisions), limit, search.seed)
        pasted = shortcuts.summarise(
            [tests for _, tests in surveyed], [value for value, _ in surveyed], fitting.middle,
            [case.patient for case in read.cases], search.seed,
        )  # fmt: skip
        for name in markers.keys() - {row["label"] for row in pasted}:
            logger.warning("paste: all %d scored scans look as if %s was pasted already", len(surveyed), name)
        figures = _Explanations(finder, store, out, output, markers).run(read, rows, pasted)
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


def strata(cases: Sequence[Case], decisions: Sequence[bool]) -> list[list[Hashable]]:
    """What is balanced for each case: its decision, the classes of its labels, and both together."""
    values = {name: [case.labels.get(name) for case in cases] for name in (cases[0].labels if cases else ())}
    few = {name: labels for name, labels in values.items() if len(set(labels)) <= _MOST_CLASSES}
    return [
        [decision, *((name, labels[row], each) for name, labels in few.items() for each in (None, decision))]
        for row, decision in enumerate(decisions)
    ]


def balanced_rows(strata: Sequence[Sequence[Hashable]], limit: int, seed: int) -> list[int]:
    """At most ``limit`` random rows, with equally many of each stratum as far as possible."""
    left, rows, counts = list(np.random.default_rng(seed).permutation(len(strata))), list[int](), Counter[Hashable]()
    while left and len(rows) < limit:
        row = min(left, key=lambda row: sum(counts[each] for each in strata[row]))
        left.remove(row)
        counts.update(strata[row])
        rows.append(int(row))
    return sorted(rows)


def _search_inferer(trained: bundles.TrainedBundle) -> tuple[inferers.DiffusionAutoencoderInferer, str | None]:
    """The inferer of the search, by the fast decoder or with few steps, and the SHA-256 of the former."""
    models = models_folder(trained.folder)
    if not (models / FAST_MODEL).is_file():
        return trained.inferer.replace(steps=min(_SEARCH_STEPS, trained.inferer.steps)), None
    fast, sha256 = loading.load_fast_decoder(models, trained.network, trained.sha256, trained.device)
    return trained.inferer.replace(fast_decoder=fast, decoder="fast"), sha256


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
    return [reached, *changes, *shortcuts.sentences(figures["shortcuts"]), *omitted]


@dataclass(frozen=True)
class _Explanations:
    """Explains the cases of a session, and writes the results."""

    finder: Finder
    store: PartStore  # of finished cases, with which an interrupted run resumes
    folder: Path
    output: EditedImages
    markers: Mapping[str, Floats]

    def run(self, read: sessions.ReadCases, rows: Sequence[int], pasted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Explain the cases in some rows, and return the figures of the result, with those of the test by pasting."""
        session, folder = self.finder.session, self.folder
        transforms.check_invertible(session.trained.preprocessing)
        directions, omitted = self.finder.reference.directions(self.finder.search, session.trained.sha256)
        if not session.encoder_sees_decoded_images:
            reason = f"the encoder sees {session.encoder_key}, which a counterfactual does not change"
            directions, omitted = [], omitted | {each.target: reason for each in directions}
        test = shortcuts.DirectTest(directions, tables.z_matrix(self.finder.reference.training), self.markers)
        self._explain(read, rows, test)
        chosen = [read.cases[row] for row in rows]
        done = self.store.read().set_index("id")
        errors = done["error"].to_dict()
        failures = [Failure(case.id, case.file, errors[case.id]) for case in chosen if errors[case.id]]
        write_failures(folder / "failures.csv", [*read.failures, *failures])
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
        edit.draw_changes(folder / "explained.png", shown, ["scan", "counterfactual"], session.trained.model_range)
        pictures.draw_explanation(curves, table, changes).savefig(folder / "labels.png", dpi=120)
        self.store.remove()
        reached = table[table["reached"]]
        medians = {name: float(reached[name].median()) if len(reached) else None for name in ("distance", "mse")}
        return {
            "num_cases": len(cases), "num_reached": len(reached), "num_failed": len(read.failures) + len(failures),
            **medians, "labels": labels, "shortcuts": tested, "omitted_labels": omitted,
        }  # fmt: skip

    def _explain(self, read: sessions.ReadCases, rows: Sequence[int], test: shortcuts.DirectTest) -> None:
        """Explain the cases that an interrupted run has not explained."""
        done = self.store.read(["error"]).reindex(columns=["id", "error"])
        for name in () if len(done) else _FOLDERS:
            remove_images(self.folder / name)
        num_pictured, known = int((done["error"] == "").sum()), set(done["id"])
        left = [row for row in rows if read.cases[row].id not in known]
        for coded in self.finder.session.coded(read, f"explaining {counted(len(left), 'case')}", left):
            error, file = "", BytesIO()
            try:
                case = self.finder.scored(coded.case)
                found = self.finder.find(coded, case)
                picture = self._write(coded.case, case.native, found)
                tests = list(test.rows(case, self.finder.tested(coded, case.native, test)))
                content: dict[str, Any] = {"row": found.row, "curve": found.curve, "z_sem": found.z_sem}
                content |= {"start": found.start, "tests": tests}
                torch.save({**content, "picture": tuple(picture) if num_pictured < _NUM_PICTURED else None}, file)
                num_pictured += 1
            except ScanError as reason:
                error = str(reason)
            self.store.append(pd.DataFrame([{"id": coded.case.id, "error": error, "found": file.getvalue()}]))

    def _write(self, case: Case, native: transforms.NativeSpace, found: Found) -> CasePicture:
        """Write the images of a case, and return its picture."""
        is_own = self.output.detail == "own"
        image = self.finder.array(native, found.image, found.difference)
        text = "monai_diffae explain" if self.output.dicom else None
        writing.write_case_image(self.folder / "images", case.file_name, native, image, case, text)
        file = self.folder / "scans" / f"{case.file_name}{native.suffix}"
        transforms.write_native(file, native.scan.array, native.scan)
        file = self.folder / "differences" / f"{case.file_name}.nii.gz"
        difference = native.storable(image) - native.scan.array if is_own else native.back_difference(found.difference)
        transforms.write_native(file, difference, native.scan, np.float32)
        both = torch.stack([found.image - found.difference, found.image])
        changes = torch.stack([torch.zeros_like(found.difference), found.difference])
        images, differences, caption = self.output.picture(case, native, both, changes)
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


@dataclass(frozen=True)
class Reference:
    """The table of embeddings: the training cases define distances, components and the directions of labels."""

    table: pd.DataFrame
    key: PatientKey  # of the patients' hashes

    @cached_property
    def training(self) -> pd.DataFrame:
        """The rows of the training cases; all rows if the table has no splits."""
        return tables.training_rows(self.table)

    @cached_property
    def components(self) -> latents.PrincipalComponents:
        """The principal components of the training cases, along which a change is searched."""
        return latents.principal_components(tables.z_matrix(self.training))

    @cached_property
    def nearest_other(self) -> Callable[[Floats, str], Floats]:
        """A function from normalised z_sem (A, D) and a patient to the distances (A,) to the nearest other patient."""
        return edit.nearest_other_patient(self.table, self.key, self.components.statistics)

    def directions(self, search: Search, model: str) -> tuple[list[latents.Direction], dict[str, str]]:
        """The directions of labels, fitted to the training cases, and why others have none."""
        from monai_diffae.latents.targets import reason_against

        z_train, patients = tables.z_matrix(self.training), self.training["patient"].tolist()
        directions, omitted = [], {}
        for name in search.labels or tables.label_columns(self.table):
            values = self.training[name].tolist()
            try:
                if name not in {*search.labels, *search.positive} and (reason := reason_against(values, name)):
                    raise ConfigError(reason)
                fitted = latents.fit_direction(
                    z_train, values, target=name, model=model, groups=patients, seed=search.seed,
                    positive=search.positive.get(name),
                )  # fmt: skip
                if fitted.may_be_chance:
                    raise ConfigError(f"label '{name}': z_sem may not predict it ({fitted.score_text}), so omit it")
                directions.append(fitted)
            except ConfigError as error:
                if name in {*search.labels, *search.positive}:
                    raise
                omitted[name] = str(error)
        return directions, omitted

    def outlier_p(self, z_sem: Floats, patients: Sequence[str]) -> Floats:
        """The p-values (N,) of z_sem (N, D) among the training cases."""
        reference = self.training["patient"].tolist()
        return latents.outlier_scores(
            z_sem, tables.z_matrix(self.training), k=min(_NUM_NEIGHBORS, len(set(reference)) - 1),
            groups=[self.key.hash(patient) for patient in patients], reference_groups=reference,
        ).p_values  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A counterfactual; images (C, *S) in the model's range."""

    row: dict[str, Any]
    start: float  # value of the scan
    curve: list[tuple[float, float]]  # distance and score
    image: torch.Tensor  # as the model decodes it
    difference: torch.Tensor
    z_sem: torch.Tensor | None  # (2 + R, D): of the scan, the counterfactual, and random changes of the same length


@dataclass(frozen=True)
class Finder:
    """Finds the counterfactual of a case."""

    session: sessions.Session
    users_model: UsersModel
    reference: Reference
    search: Search
    fast: inferers.DiffusionAutoencoderInferer  # of the search
    detail: edit.Detail

    def array(self, native: transforms.NativeSpace, image: torch.Tensor, difference: torch.Tensor) -> Floats:
        """What is written of a decoded image (C, *S) that differs from the plain reconstruction."""
        return native.add_difference(difference) if self.detail == "own" else native.back(image)

    def scored(self, case: Case) -> ScoredCase:
        """A case with the scores of the user's model."""
        return ScoredCase(
            case.id, transforms.NativeSpace(self.session.trained.preprocessing, case.item()), self.users_model
        )

    def survey(self, cases: Sequence[Case], markers: Mapping[str, Floats]) -> list[tuple[float, list[dict[str, Any]]]]:
        """The value of each scan, NaN if there is none, and its rows of the test by pasting."""
        surveyed: list[tuple[float, list[dict[str, Any]]]] = []
        for case in track(cases, f"scoring {counted(len(cases), 'scan')}"):
            scored = self.scored(case)
            try:
                surveyed.append((scored.value(), list(shortcuts.paste_rows(scored, markers))))
            except ScanError:  # is told when the case is explained
                surveyed.append((np.nan, []))
        return surveyed

    def check_seen(self, cases: Sequence[Case]) -> None:
        """Refuse a model whose decisions change if it gets only what the bundle sees of a scan."""
        num, middle, size = 0, self.users_model.middle, " x ".join(map(str, self.session.trained.config["image_size"]))
        if not self.users_model.interface.takes_scan:
            text = "%s: gets the bundle's images, %s; if it takes the scans themselves, set input_size or input_from"
            logger.info(text, self.users_model.name, size)
            return
        for case in map(self.scored, cases):
            with suppress(ScanError):  # is told when the case is explained
                seen = case.stored_value(case.native.back(case.native.image))
                num += (case.value() > middle) != (seen > middle)
        decides = f"{self.users_model.name}: decides otherwise in {num} of {counted(len(cases), 'scan')}"
        text = f"{decides} if it only gets what the bundle sees, {size}"
        if num > _MOST_UNSEEN * len(cases) and not self.search.allow_unseen:
            raise ConfigError(
                f"{text}, so this cannot explain it; use a bundle with a larger image_size, or set allow_unseen"
            )
        logger.info("%s", text)

    def find(self, coded: sessions.CodedCase, case: ScoredCase) -> Found:
        """The counterfactual of a case."""
        start = case.value()
        target = self._target(start)
        found = self._searched(coded, case, target)
        fractions = torch.tensor(_FRACTIONS).to(found.change)
        images = self._decoded(coded, torch.outer(fractions, found.change)).cpu()
        values = [case.stored_value(self.array(case.native, image, image - images[0])) for image in images]
        towards = float(np.sign(target - start)) or 1.0
        crossing = _crossing(values, target, towards)
        reaching = [each for each, value in zip(_FRACTIONS, values, strict=True) if (value - target) * towards >= 0]
        for length in (crossing, *(each for each in reaching if each > crossing)):  # the curve may bend
            image = self._decoded(coded, length * found.change[None]).cpu()[0]
            value = case.stored_value(self.array(case.native, image, image - images[0]))
            if reached := bool(length > 0 and (value - target) * towards >= 0):
                break
        score_of, difference = self.users_model.score_of, (image - images[0])[None].to(coded.image)
        distances = [float(found.change.norm()) * fraction for fraction in (*_FRACTIONS, length)]
        scores = [score_of(each) for each in (*values, value)]
        row: dict[str, Any] = {
            "id": coded.case.id, "score": score_of(start), "to": score_of(target), "counterfactual": scores[-1],
            "reached": reached, "distance": distances[-1],
            "mse": float((self._seen(coded, difference) - coded.image).square().mean()),
            "search_score": score_of(found.value), "exact_score": scores[_FRACTIONS.index(1.0)],
            "gradients": found.steps, "is_flat": found.is_flat,
        }  # fmt: skip
        z_sem = self._encoded(coded, difference, distances[-1], len(found.change))
        if z_sem is not None:
            z_norm = self.reference.components.statistics.normalise(z_sem[:2].numpy())
            (nearest,) = self.reference.nearest_other(z_norm[1:], coded.case.patient)
            row["is_itself"] = bool(np.linalg.norm(z_norm[1] - z_norm[0]) < nearest)
        points = sorted(zip(distances, scores, strict=True))
        return Found(row, start, points, image, difference[0].cpu(), z_sem)

    def _target(self, start: float) -> float:
        """The requested value; by default the other side of the decision, as sure as on this one or with a margin."""
        if self.search.to is not None:
            return self.users_model.value_of(self.search.to)
        middle, output_range = self.users_model.middle, self.users_model.interface.output_range
        ends = [_LEAST, _MOST]
        if output_range:
            ends = [min(output_range) + each * abs(output_range[1] - output_range[0]) for each in ends]
        least, most = (self.users_model.value_of(each) - middle for each in ends)
        gap = min(max(least, abs(start - middle)), most)
        return middle + (gap if start < middle else -gap)

    def _moved(self, coded: sessions.CodedCase, changes: torch.Tensor) -> torch.Tensor:
        """z_sem (N, D) of a case after changes (N, K) of its components."""
        components = self.reference.components
        basis = torch.from_numpy(components.directions[: changes.shape[1]]).to(changes)
        return coded.z_sem + changes @ basis * torch.from_numpy(components.statistics.std).to(changes)

    def _seen(self, coded: sessions.CodedCase, differences: torch.Tensor) -> torch.Tensor:
        """The scan with decoded differences (N, C, *S), as the user's model and the encoder see it."""
        return (coded.image + differences).clamp(*self.session.trained.model_range)

    def _searched(self, coded: sessions.CodedCase, case: ScoredCase, target: float) -> counterfactual.Change:
        """The change that the search finds, by the fast decoder or with few steps."""
        from monai_diffae.networks.kernels import exact_convolutions

        network, at_once = self.session.trained.network, inferers.images_at_once(coded.image.shape[2:])
        plain = self.fast.decode(coded.z_sem, network, coded.x_T)

        def part(changes: torch.Tensor) -> torch.Tensor:
            x_T = coded.x_T.expand(len(changes), *coded.x_T.shape[1:])
            decoded = self.fast.decode_with_gradient(self._moved(coded, changes), network, x_T)
            images = [self.users_model.image(case.native, each) for each in decoded - plain]
            return self.users_model.values(torch.cat(images)).to(changes)

        def value(changes: torch.Tensor) -> torch.Tensor:
            with exact_convolutions():
                return torch.cat([part(each) for each in changes.split(at_once)])

        num = len(self.reference.components.directions)
        has_gradient = self.users_model.values(self.users_model.image(case.native).requires_grad_()).requires_grad
        num = num if has_gradient else min(num, _NUM_COMPONENTS)
        evaluate = counterfactual.autograd(value) if has_gradient else counterfactual.finite_differences(value)
        largest = (2 * self.session.trained.z_channels) ** 0.5  # about the distance between two training cases
        return counterfactual.find_change(evaluate, num, target, largest=largest, device=coded.x_T.device)

    def _decoded(self, coded: sessions.CodedCase, changes: torch.Tensor) -> torch.Tensor:
        at_once = inferers.images_at_once(coded.image.shape[2:])  # a fixed number, on which the last bits depend
        return sessions.decode_in_batches(self.session.trained, self._moved(coded, changes), coded.x_T, at_once)

    def tested(
        self, coded: sessions.CodedCase, native: transforms.NativeSpace, test: shortcuts.DirectTest
    ) -> list[Floats]:
        """The scan (C, *native S) after each change of a direct test."""
        z_sem, seed = coded.z_sem.cpu().numpy(), seed_of(self.search.seed, coded.case.id)
        random = image_noise((z_sem.shape[1],), seed, [self.search.num_random]).cpu().numpy()[0]
        moved = test.moves(z_sem, random / np.linalg.norm(random))
        z_all = torch.cat([coded.z_sem, torch.from_numpy(moved).to(coded.z_sem)])
        at_once = inferers.images_at_once(coded.image.shape[2:])
        images = sessions.decode_in_batches(self.session.trained, z_all, coded.x_T, at_once).cpu()
        return [native.add_difference(image - images[0]) for image in images[1:]]

    def _encoded(
        self, coded: sessions.CodedCase, difference: torch.Tensor, distance: float, num: int
    ) -> torch.Tensor | None:
        """z_sem of scan, counterfactual and random changes; None if the encoder cannot look at decoded images."""
        trained = self.session.trained
        if not self.session.encoder_sees_decoded_images:
            return None
        seed = seed_of(self.search.seed, coded.case.id)
        random = image_noise((num,), seed, list(range(self.search.num_random))).to(coded.x_T.device)
        random *= distance / random.norm(dim=1, keepdim=True)
        images = self._decoded(coded, torch.cat([torch.zeros_like(random[:1]), random]))
        seen = self._seen(coded, torch.cat([difference, images[1:] - images[:1]]))
        encoded = inferers.encode_exactly(seen, trained.network, trained.inferer)
        return torch.cat([coded.z_sem, encoded]).cpu()


def _crossing(values: Sequence[float], target: float, towards: float) -> float:
    """The smallest fraction at which a score reaches the target, interpolated; that of the closest if none does."""
    gaps = [(value - target) * towards for value in values]  # at least 0: reached
    i = next((i for i, gap in enumerate(gaps) if gap >= 0), None)
    if i is None:
        return _FRACTIONS[int(np.argmax(gaps))]
    if i == 0:
        return 0.0
    low, high = _FRACTIONS[i - 1], _FRACTIONS[i]
    return low + (high - low) * min(1.0, 1.02 * gaps[i - 1] / (gaps[i - 1] - gaps[i]))
