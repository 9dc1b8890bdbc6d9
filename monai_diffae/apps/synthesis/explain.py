"""The command ``explain``: counterfactual scans of the user's own classifier, and the labels that they change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, failed_cases, remove_images, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, UnbatchedRun
from monai_diffae.apps.synthesis.counterfactuals import SEARCH_STEPS, Finder, Found, Reference, Search
from monai_diffae.apps.synthesis.edit import EditedImages, own_detail, table_of_patients
from monai_diffae.apps.synthesis.users_model import ModelInterface, check_file, checksum, read_users_model
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.lazy import np, pd, pictures, torch, transforms

if TYPE_CHECKING:
    from torch import Tensor

    from monai_diffae.apps.session import ReadCases
    from monai_diffae.bundle import TrainedBundle
    from monai_diffae.data.atomic import PartStore
    from monai_diffae.data.cases import Case
    from monai_diffae.inferers import DiffusionAutoencoderInferer
    from monai_diffae.latents import Direction
    from monai_diffae.latents.label_changes import LabelChange
    from monai_diffae.transforms import NativeSpace

_NUM_PICTURED = 4
_LOOKED_AT = 8  # cases by which the meaning of the outputs is checked
_FOLDERS = "scans", "images", "differences"
_FILES = "counterfactuals.csv", "labels.csv", "curves.csv", "explained.png", "labels.png"


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
    choice: Choice = Choice(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Explain your classifier or regressor: the smallest change of each scan that changes its score, and what it means.

    For each case, z_sem is moved along the principal components of the training cases as little as possible, until the
    score is the requested one; x_T stays. The gradient goes through the fast decoder, or a decoding with few steps; for
    ONNX it is numerical, in the first 16 components. The exact decoder then finds the length that suffices.

    ``out/counterfactuals.csv`` has one row per case:

    - ``score``, ``to``, ``counterfactual``: the scores of the scan, requested, and of the counterfactual; ``reached``;
    - ``distance``: length of the change of normalised z_sem; ``mse``: mean squared change of the image, in the model's
      range;
    - ``outlier_p``: probability of a training case as unusual as the counterfactual, as in ``neighbors``;
      ``is_itself``: whether it is still closer to its own scan than to any other patient's;
    - ``change_<label>``: how far it moved along a label, in standard deviations.

    ``out/labels.csv`` says which labels change, more often than after random changes of the same length: a class if
    the probe's prediction changes, a number if it moves by one standard deviation. ``out/curves.csv`` has the score at
    each distance. ``out/scans``, ``out/images`` and ``out/differences`` are in the scan's own space, and
    ``out/explained.png`` and ``out/labels.png`` show them.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        model: File of your model: ``.onnx``, ``.pt2`` (torch.export) or ``.ts`` (TorchScript).
        embeddings: Table of embeddings, written by ``embed`` with this bundle; its training cases are the reference.
        interface: What your model gets, and what its outputs mean.
        search: What is searched for.
        output: How images are written and drawn.
        choice: Which cases.
        decoding: How to invert and decode.
        reading: How scans are read.
        run: How the command runs.

    Returns:
        The folder; ``num_cases``, ``num_reached``; ``num_failed``, listed in ``failures.csv``; medians of ``distance``
        and ``mse`` where the score was reached; ``labels``, one row per label; and ``omitted_labels``, with the reason.

    Raises:
        ConfigError: an argument is out of range, your model does not fit, the embeddings belong to another model, or
            ``out`` holds results of other inputs.
        CohortError: there is no usable case.
        UnsafeInputError: your model's file could run code, and is not trusted.

    Example:
        >>> explain("bundle", "cohort.csv", "out", model="no.onnx", embeddings="no.parquet")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: model: there is no file no.onnx, or it is no .onnx, .pt2 or .ts file
    """
    check_file(model)
    from monai_diffae.apps.session import Session
    from monai_diffae.data.atomic import PartStore
    from monai_diffae.data.fingerprints import file_checksum, json_digest
    from monai_diffae.latents.representation import warn_if_unused

    session = Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
    trained = session.trained
    if trained.inferer.decoder == "fast":
        raise ConfigError("decoder: the exact decoder checks what is found; omit it")
    users_model = read_users_model(model, interface, trained)
    reference = Reference(*table_of_patients(embeddings, trained))
    warn_if_unused(trained.z_sem_usage)
    cases = session.choose(choice)
    pictures.check_captions(output.captions, {name for case in cases for name in case.labels})
    fast, fast_sha256 = _search_inferer(trained)
    made_from = session.made_from(
        cases, explained=checksum(model), embeddings=file_checksum(embeddings), searched_with=fast_sha256,
        **asdict(interface), **asdict(search), detail=output.detail, dicom=output.dicom,
        captions=list(output.captions), patients=json_digest([case.patient for case in cases]),
    )  # fmt: skip
    made_from = json.loads(json.dumps(made_from))  # tuples become lists, as in the record

    def make() -> Mapping[str, Any]:
        store = PartStore(out / ".cases", made_from, replace=True)
        if run.overwrite:
            store.remove()
        read = session.read(cases, out, named=bool(choice.cases))
        with torch.no_grad():
            activation = users_model.check(read.batch(0, _LOOKED_AT)[0].to(trained.device))
        trained.network.requires_grad_(False)
        finder = Finder(session, users_model, reference, search, fast, activation)
        figures = _Explanations(finder, store, out, output).run(read)
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


def _search_inferer(trained: TrainedBundle) -> tuple[DiffusionAutoencoderInferer, str | None]:
    """The inferer of the search, by the fast decoder or with few steps, and the SHA-256 of the former."""
    from monai_diffae.bundle.layout import FAST_MODEL, models_folder
    from monai_diffae.bundle.loading import load_fast_decoder

    models = models_folder(trained.folder)
    if not (models / FAST_MODEL).is_file():
        return trained.inferer.replace(steps=min(SEARCH_STEPS, trained.inferer.steps)), None
    fast, sha256 = load_fast_decoder(models, trained.network, trained.sha256, trained.device)
    return trained.inferer.replace(fast_decoder=fast, decoder="fast"), sha256


def _notes(figures: Mapping[str, Any], name: str) -> list[str]:
    """The result in sentences; the labels that change most come first."""
    counterfactuals = counted(figures["num_cases"], "counterfactual")
    changes = (
        f"{row['num_changed']} of {row['num_cases']} change {row['label']} ({row['share']:.0%}, {row['low']:.0%} to "
        f"{row['high']:.0%}; random changes of this length: {row['random_share']:.0%})"
        + ("" if row["excess_low"] > 0 else ", which may be chance")
        for row in figures["labels"]
    )
    omitted = (f"{label} is omitted: {reason}" for label, reason in figures["omitted_labels"].items())
    return [f"{name}: {figures['num_reached']} of {counterfactuals} reach the score", *changes, *omitted]


@dataclass(frozen=True)
class _Explanations:
    """Explains the cases of a session, and writes the results."""

    finder: Finder
    store: PartStore  # of finished cases, with which an interrupted run resumes
    folder: Path
    output: EditedImages

    def run(self, read: ReadCases) -> dict[str, Any]:
        """Explain all cases, and return the figures of the result."""
        from monai_diffae.data.atomic import write_csv
        from monai_diffae.data.progress import Failure, check_any_usable, write_failures
        from monai_diffae.latents.label_changes import LabelChange
        from monai_diffae.transforms.writing import warn_without_dicom

        session = self.finder.session
        transforms.check_invertible(session.trained.preprocessing)
        if self.output.dicom:
            warn_without_dicom(read.cases)
        directions, omitted = self.finder.reference.directions(self.finder.search, session.trained.sha256)
        if not session.encoder_sees_decoded_images:
            reason = f"the encoder sees {session.encoder_key}, which a counterfactual does not change"
            directions, omitted = [], omitted | {each.target: reason for each in directions}
        self._explain(read)
        done = self.store.read().set_index("id")
        errors = done["error"].to_dict()
        failures = [Failure(case.id, case.file, errors[case.id]) for case in read.cases if errors[case.id]]
        write_failures(self.folder / "failures.csv", [*read.failures, *failures])
        cases = [case for case in read.cases if not errors[case.id]]
        check_any_usable(len(cases), failures)
        done = done.loc[[case.id for case in cases]]
        table, changes = self._judged(done, cases, directions)
        points = [(name, *point) for name, curve in done["curve"].items() for point in json.loads(curve)]
        curves = pd.DataFrame(points, columns=["id", "distance", "score"])
        write_csv(self.folder / "counterfactuals.csv", table)
        write_csv(self.folder / "curves.csv", curves)
        write_csv(
            self.folder / "labels.csv", pd.DataFrame(map(asdict, changes), columns=list(LabelChange.__annotations__))
        )
        self._draw_cases(table, done, cases)
        pictures.draw_explanation(curves, table, changes).savefig(self.folder / "labels.png", dpi=120)
        self.store.remove()
        reached = table[table["reached"]]
        medians = {name: float(reached[name].median()) if len(reached) else None for name in ("distance", "mse")}
        return {
            "num_cases": len(cases), "num_reached": len(reached), "num_failed": len(read.failures) + len(failures),
            **medians, "labels": [asdict(each) for each in changes], "omitted_labels": omitted,
        }  # fmt: skip

    def _explain(self, read: ReadCases) -> None:
        """Explain the cases that an interrupted run has not explained."""
        done = self.store.read(["error"])
        for name in () if len(done) else _FOLDERS:
            remove_images(self.folder / name)
        num_pictured = int((done["error"] == "").sum()) if len(done) else 0
        known = set(done["id"])
        left = [row for row, case in enumerate(read.cases) if case.id not in known]
        for coded in self.finder.session.coded(read, f"explaining {counted(len(left), 'case')}", left):
            row: dict[str, Any] = dict.fromkeys(("error", "row", "curve"), "") | {"images": None, "z_sem": None}
            try:
                found = self.finder.find(coded)
                self._write(coded.case, found)
                row |= {"row": json.dumps(found.row), "curve": json.dumps(found.curve)}
                if num_pictured < _NUM_PICTURED:
                    row["images"] = torch.stack([found.image, found.difference]).numpy().ravel()
                row["z_sem"] = None if found.z_sem is None else found.z_sem.ravel()
                num_pictured += 1
            except ScanError as error:
                row["error"] = str(error)
            self.store.append(pd.DataFrame([{"id": coded.case.id, **row}]))

    def _native(self, case: Case) -> NativeSpace:
        return transforms.NativeSpace(self.finder.session.trained.preprocessing, case.item())

    def _write(self, case: Case, found: Found) -> None:
        from monai_diffae.transforms.writing import write_case_image

        native, is_own = self._native(case), self.output.detail == "own"
        image = native.add_difference(found.difference) if is_own else native.back(found.image)
        text = "monai_diffae explain" if self.output.dicom else None
        write_case_image(self.folder / "images", case.file_name, native, image, case, text)
        file = self.folder / "scans" / f"{case.file_name}{native.suffix}"
        transforms.write_native(file, native.scan.array, native.scan)
        file = self.folder / "differences" / f"{case.file_name}.nii.gz"
        difference = native.storable(image) - native.scan.array if is_own else native.back_difference(found.difference)
        transforms.write_native(file, difference, native.scan, np.float32)

    def _judged(
        self, done: pd.DataFrame, cases: Sequence[Case], directions: Sequence[Direction]
    ) -> tuple[pd.DataFrame, list[LabelChange]]:
        """The rows of all counterfactuals, and how often labels change in those that reach the score."""
        from monai_diffae.latents.label_changes import label_change, travel

        table = pd.DataFrame(map(json.loads, done["row"]))
        if done["z_sem"].isna().any():
            return table, []
        codes = np.stack(done["z_sem"].tolist()).reshape(len(cases), 2 + self.finder.search.num_random, -1)
        patients = [case.patient for case in cases]
        table["outlier_p"] = self.finder.reference.outlier_p(codes[:, 1], patients)
        for each in directions:
            table[f"change_{each.target}"] = travel(each, codes[:, 0], codes[:, 1])
        reached = table.index[table["reached"]]
        if not len(reached):
            return table, []
        towards = np.sign((table["to"] - table["score"]).to_numpy(np.float64))[reached]
        before, after, random = codes[reached, 0], codes[reached, 1], codes[reached, 2:]
        patients, seed = [patients[row] for row in reached], self.finder.search.seed
        changes = [
            label_change(each, before, after, random, patients, towards=towards, seed=seed) for each in directions
        ]
        return table, sorted(changes, key=lambda change: -change.excess)

    def _draw_cases(self, table: pd.DataFrame, done: pd.DataFrame, cases: Sequence[Case]) -> None:
        """Draw the first scans beside their counterfactuals."""
        trained, panels = self.finder.session.trained, []
        for number, images in enumerate(done["images"]):
            if images is not None:
                pair = torch.tensor(images).reshape(2, *trained.image_shape)
                panels.append((number, *self._panels(cases[number], pair)))
        largest = max(float(difference.abs().max()) for *_, difference in panels)
        limit = max(0.1 * (trained.model_range[1] - trained.model_range[0]), largest)  # small differences look small
        rows = {}
        for number, pair, difference in panels:
            case, row = cases[number], table.iloc[number]
            caption = pictures.caption({"id": case.id, **case.labels}, self.output.captions)
            title = [f"case {number + 1}", caption, f"{row['score']:.2f} to {row['counterfactual']:.2f}"]
            colours = pictures.in_colours(difference, limit, model_range=trained.model_range)
            shown = pair if pair.shape[1] == 3 else pair[:, :1]
            rows["\n".join(filter(None, title))] = torch.cat([shown.expand(-1, *colours.shape[1:]), colours])
        titles = ["scan", "counterfactual", f"difference (±{limit:.2g})"]
        pictures.draw_mosaic(rows, self.folder / "explained.png", trained.model_range, titles)

    def _panels(self, case: Case, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of a scan and its counterfactual (2, C, H, W), and of their difference (1, C, H, W)."""
        image, difference = images
        if self.output.detail == "model":
            return torch.stack([image - difference, image]), difference[None]
        pair, differences = own_detail(self._native(case), torch.stack([torch.zeros_like(difference), difference]))
        return pair, differences[1:]
