"""The command ``explain``: counterfactual scans of the user's own classifier, and the labels that they change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import inferers, latents, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, failed_cases, remove_images, run_once
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun
from monai_diffae.apps.synthesis import edit
from monai_diffae.apps.synthesis.edit import CasePicture, EditedImages
from monai_diffae.apps.synthesis.users_model import ModelInterface, UsersModel, check_file, checksum, read_users_model
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.bundle.layout import FAST_MODEL, models_folder
from monai_diffae.data.atomic import PartStore, write_csv
from monai_diffae.data.cases import Case, PatientKey
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.data.progress import Failure, check_any_usable, write_failures
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.lazy import bundles, counterfactual, loading, np, pd, representation, sessions, tables, torch, writing
from monai_diffae.lazy import directions as lines

if TYPE_CHECKING:
    from monai_diffae.latents.statistics import Codes as Floats

_NUM_PICTURED = 4
_LOOKED_AT = 8  # cases by which the meaning of the outputs is checked
_FOLDERS = "scans", "images", "differences"
_FILES = "counterfactuals.csv", "labels.csv", "curves.csv", "explained.png", "labels.png"
_NUM_COMPONENTS = 16  # of the search by finite differences
_LEAST, _MOST = 0.8, 0.99  # probability of the other class that a counterfactual should have
_SEARCH_STEPS = 5  # of a decoding in the search, without a fast decoder
_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the change, at which the exact decoder is asked
_NUM_NEIGHBORS = 5


@Parameter(name="*", group=Group("Search", sort_key=2))
@dataclass(frozen=True)
class Search:
    """What is searched for, and how."""

    to: float | None = None
    """Score that a counterfactual should have; by default the other side of .5, as far away as the scan's score, but at
    least .8 (or .2) and at most .99 (or .01)."""
    labels: Sequence[str] = ()
    """Label columns of the embeddings that may change; by default all with two classes, and numbers."""
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

    Returns:
        The folder; ``num_cases``, ``num_reached``; ``num_failed``, listed in ``failures.csv``; medians of ``distance``
        and ``mse`` where the score was reached; ``labels``, one row per label; and ``omitted_labels``, with the reason.

    Raises:
        ConfigError: an argument is out of range, your model does not fit, the embeddings belong to another model, or
            ``out`` holds results of other inputs.
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
    tables.check_labels(reference.table, {"labels": search.labels})
    representation.warn_if_unused(trained.z_sem_usage)
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
        read = session.read(cases, out, named=bool(choice.cases), dicom=output.dicom)
        with torch.no_grad():
            fitting = users_model.checked(read.batch(0, _LOOKED_AT)[0].to(trained.device))
        trained.network.requires_grad_(False)
        finder = Finder(session, fitting, reference, search, fast)
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
    return [f"{name}: {figures['num_reached']} of {counterfactuals} reach the score", *changes, *omitted]


@dataclass(frozen=True)
class _Explanations:
    """Explains the cases of a session, and writes the results."""

    finder: Finder
    store: PartStore  # of finished cases, with which an interrupted run resumes
    folder: Path
    output: EditedImages

    def run(self, read: sessions.ReadCases) -> dict[str, Any]:
        """Explain all cases, and return the figures of the result."""
        session, folder = self.finder.session, self.folder
        transforms.check_invertible(session.trained.preprocessing)
        directions, omitted = self.finder.reference.directions(self.finder.search, session.trained.sha256)
        if not session.encoder_sees_decoded_images:
            reason = f"the encoder sees {session.encoder_key}, which a counterfactual does not change"
            directions, omitted = [], omitted | {each.target: reason for each in directions}
        self._explain(read)
        done = self.store.read().set_index("id")
        errors = done["error"].to_dict()
        failures = [Failure(case.id, case.file, errors[case.id]) for case in read.cases if errors[case.id]]
        write_failures(folder / "failures.csv", [*read.failures, *failures])
        cases = [case for case in read.cases if not errors[case.id]]
        check_any_usable(len(cases), failures)
        found = [torch.load(BytesIO(done["found"][case.id]), weights_only=True) for case in cases]
        table, changes = self._judged(found, [case.patient for case in cases], directions)
        points = [(each["row"]["id"], *point) for each in found for point in each["curve"]]
        curves = pd.DataFrame(points, columns=["id", "distance", "score"])
        labels = [asdict(each) for each in changes]
        write_csv(folder / "counterfactuals.csv", table)
        write_csv(folder / "curves.csv", curves)
        write_csv(folder / "labels.csv", pd.DataFrame(labels, columns=list(lines.LabelChange.__annotations__)))
        shown = [CasePicture(*each["picture"]) for each in found if each["picture"]]
        edit.draw_changes(folder / "explained.png", shown, ["scan", "counterfactual"], session.trained.model_range)
        pictures.draw_explanation(curves, table, changes).savefig(folder / "labels.png", dpi=120)
        self.store.remove()
        reached = table[table["reached"]]
        medians = {name: float(reached[name].median()) if len(reached) else None for name in ("distance", "mse")}
        return {
            "num_cases": len(cases), "num_reached": len(reached), "num_failed": len(read.failures) + len(failures),
            **medians, "labels": labels, "omitted_labels": omitted,
        }  # fmt: skip

    def _explain(self, read: sessions.ReadCases) -> None:
        """Explain the cases that an interrupted run has not explained."""
        done = self.store.read(["error"]).reindex(columns=["id", "error"])
        for name in () if len(done) else _FOLDERS:
            remove_images(self.folder / name)
        num_pictured, known = int((done["error"] == "").sum()), set(done["id"])
        left = [row for row, case in enumerate(read.cases) if case.id not in known]
        for coded in self.finder.session.coded(read, f"explaining {counted(len(left), 'case')}", left):
            error, file = "", BytesIO()
            try:
                found = self.finder.find(coded)
                picture = self._write(coded.case, found)
                content = {"row": found.row, "curve": found.curve, "z_sem": found.z_sem}
                torch.save({**content, "picture": tuple(picture) if num_pictured < _NUM_PICTURED else None}, file)
                num_pictured += 1
            except ScanError as reason:
                error = str(reason)
            self.store.append(pd.DataFrame([{"id": coded.case.id, "error": error, "found": file.getvalue()}]))

    def _write(self, case: Case, found: Found) -> CasePicture:
        """Write the images of a case, and return its picture."""
        native = transforms.NativeSpace(self.finder.session.trained.preprocessing, case.item())
        is_own = self.output.detail == "own"
        image = native.add_difference(found.difference) if is_own else native.back(found.image)
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
                if not search.labels and (reason := reason_against(values, name)):
                    raise ConfigError(reason)
                fitted = latents.fit_direction(
                    z_train, values, target=name, model=model, groups=patients, seed=search.seed
                )
                if fitted.may_be_chance:
                    raise ConfigError(f"label '{name}': z_sem may not predict it ({fitted.score_text}), so omit it")
                directions.append(fitted)
            except ConfigError as error:
                if search.labels:
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

    def find(self, coded: sessions.CodedCase) -> Found:
        """The counterfactual of a case."""
        start = self._values(coded, torch.zeros_like(coded.image))[0]
        target = self._target(start)
        found = self._searched(coded, target)
        length, images, values = self._checked(coded, found.change, target)
        score_of = self.users_model.score_of
        scores = [score_of(value) for value in values]
        distances = [float(found.change.norm()) * fraction for fraction in (*_FRACTIONS, length)]
        difference = images[-1:] - images[:1]
        row: dict[str, Any] = {
            "id": coded.case.id, "score": score_of(start), "to": score_of(target),
            "counterfactual": scores[-1],
            "reached": bool((values[-1] - target) * np.sign(target - start) >= 0), "distance": distances[-1],
            "mse": float((self._seen(coded, difference) - coded.image).square().mean()),
            "search_score": score_of(found.value), "exact_score": scores[_FRACTIONS.index(1.0)],
            "gradients": found.steps, "is_flat": found.is_flat,
        }  # fmt: skip
        z_sem = self._encoded(coded, difference, distances[-1], len(found.change))
        if z_sem is not None:
            z_norm = self.reference.components.statistics.normalise(z_sem[:2].numpy())
            (nearest,) = self.reference.nearest_other(z_norm[1:], coded.case.patient)
            row["is_itself"] = bool(np.linalg.norm(z_norm[1] - z_norm[0]) < nearest)
        return Found(row, sorted(zip(distances, scores, strict=True)), images[-1].cpu(), difference[0].cpu(), z_sem)

    def _target(self, start: float) -> float:
        """The requested value; by default the other side of the decision, as sure as on this one or with a margin."""
        if self.search.to is not None:
            return self.users_model.value_of(self.search.to)
        is_value = self.users_model.interface.activation == "none"
        if is_value and not 0 <= start <= 1:
            raise ConfigError(f"to: a score is {start:.4g}, which is no probability; set to to the score that you want")
        middle = 0.5 if is_value else 0.0
        least, most = (self.users_model.value_of(probability) - middle for probability in (_LEAST, _MOST))
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

    def _searched(self, coded: sessions.CodedCase, target: float) -> counterfactual.Change:
        """The change that the search finds, by the fast decoder or with few steps."""
        from monai_diffae.networks.kernels import exact_convolutions

        network, at_once = self.session.trained.network, inferers.images_at_once(coded.image.shape[2:])
        plain = self.fast.decode(coded.z_sem, network, coded.x_T)

        def part(changes: torch.Tensor) -> torch.Tensor:
            x_T = coded.x_T.expand(len(changes), *coded.x_T.shape[1:])
            decoded = self.fast.decode_with_gradient(self._moved(coded, changes), network, x_T)
            return self.users_model.values(self._seen(coded, decoded - plain))

        def value(changes: torch.Tensor) -> torch.Tensor:
            with exact_convolutions():
                return torch.cat([part(each) for each in changes.split(at_once)])

        num = len(self.reference.components.directions)
        has_gradient = self.users_model.values(coded.image.clone().requires_grad_()).requires_grad
        num = num if has_gradient else min(num, _NUM_COMPONENTS)
        evaluate = counterfactual.autograd(value) if has_gradient else counterfactual.finite_differences(value)
        largest = (2 * self.session.trained.z_channels) ** 0.5  # about the distance between two training cases
        return counterfactual.find_change(evaluate, num, target, largest=largest, device=coded.x_T.device)

    def _checked(
        self, coded: sessions.CodedCase, change: torch.Tensor, target: float
    ) -> tuple[float, torch.Tensor, list[float]]:
        """Where along a change exact decodings reach the target; the images of all fractions and of this one."""
        fractions = torch.tensor(_FRACTIONS).to(change)
        images = self._decoded(coded, torch.outer(fractions, change))
        values = self._values(coded, images - images[:1])
        length = _crossing(values, target)
        image = self._decoded(coded, length * change[None])
        (value,) = self._values(coded, image - images[:1])
        if length not in _FRACTIONS and (value - target) * (target - values[0]) < 0:  # the curve bends
            length = next(fraction for fraction in _FRACTIONS if fraction > length)
            image, value = images[[_FRACTIONS.index(length)]], values[_FRACTIONS.index(length)]
        return length, torch.cat([images, image]), [*values, value]

    def _decoded(self, coded: sessions.CodedCase, changes: torch.Tensor) -> torch.Tensor:
        at_once = inferers.images_at_once(coded.image.shape[2:])  # a fixed number, on which the last bits depend
        return sessions.decode_in_batches(self.session.trained, self._moved(coded, changes), coded.x_T, at_once)

    def _values(self, coded: sessions.CodedCase, differences: torch.Tensor) -> list[float]:
        with torch.no_grad():
            values = self.users_model.values(self._seen(coded, differences))
        if not values.isfinite().all():
            raise ScanError(f"{coded.case.id}: the output of {self.users_model.name} is not finite; check the scan")
        return [float(value) for value in values]

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


def _crossing(values: Sequence[float], target: float) -> float:
    """The smallest fraction at which a score reaches the target, interpolated; that of the closest if none does."""
    towards = 1.0 if target >= values[0] else -1.0
    gaps = [(value - target) * towards for value in values]  # at least 0: reached
    i = next((i for i, gap in enumerate(gaps) if gap >= 0), None)
    if i is None:
        return _FRACTIONS[int(np.argmax(gaps))]
    if i == 0:
        return 0.0
    low, high = _FRACTIONS[i - 1], _FRACTIONS[i]
    return low + (high - low) * min(1.0, 1.02 * gaps[i - 1] / (gaps[i - 1] - gaps[i]))
