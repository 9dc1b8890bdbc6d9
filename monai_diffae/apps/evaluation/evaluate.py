"""The command ``evaluate``: how good are a bundle's reconstructions, its synthetic images and its z_sem?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from cyclopts import Group, Parameter

from monai_diffae import metrics, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.evaluation import quality_tables
from monai_diffae.apps.evaluation.quality_tables import MeasuredRows, Row
from monai_diffae.apps.record import finished, run_once
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Decoding, Figures, Process, Reading, Run, Seed, Split, this_process
from monai_diffae.apps.tracking import log_to_open_run, log_to_training
from monai_diffae.bundle.config import preprocessing_config
from monai_diffae.bundle.layout import LATENT_MODEL, models_folder
from monai_diffae.data.atomic import write_csv, write_json
from monai_diffae.data.cases import Case, are_patients_known, of_patients, safe_id, spread_cases
from monai_diffae.data.fingerprints import differing_keys, file_checksum
from monai_diffae.data.progress import progress
from monai_diffae.diffusion.settings import DecoderName, SolverName
from monai_diffae.errors import ConfigError, MachineError, OmittableError, counted, one_line
from monai_diffae.lazy import on_first_use

with on_first_use:
    import pandas as pd

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps.evaluation import diagnosis, quality
    from monai_diffae.bundle import loading

logger = logging.getLogger(__name__)

_SUMMARY, _PARTS, _GENERATION = "evaluation.json", ".parts", "generation"
_FAILURES = "evaluation_failures.csv"
_TRAINING_CURVE = "curves.csv"

_Rows = Callable[[], Iterator[Row]]


@Parameter(name="*", group=Group("Cases", sort_key=2))
@dataclass(frozen=True)
class HeldOut:
    """Which cases of a cohort are evaluated: by default held-out ones only."""

    split: Split = "test"
    """Use the cases of this split."""
    limit: Annotated[int, Ge(1)] = 64
    """Use at most this many cases, evenly spread over the split."""
    not_held_out: bool = False
    """Also accept cases that may have been trained on; the results then say so."""


@Parameter(name="*", group=Group("Decoding", sort_key=3))
@dataclass(frozen=True)
class Conditions:
    """Under which conditions images are inverted and decoded: every solver with every number of steps."""

    steps: Sequence[Annotated[int, Ge(1)]] = (10, 20, 50, 100)
    """Network evaluations for decoding, and as many for inversion; one line of the tables for each."""
    solvers: Sequence[SolverName] = ()
    """Solvers of the probability-flow ODE; by default the bundle's."""
    # without n_tokens, cyclopts takes one value of a union if another option follows
    decoder: Annotated[Sequence[DecoderName] | DecoderName, Parameter(n_tokens=-1, show_choices=False)] = ()
    """``exact``, the ``fast`` one that ``distill`` trains, or both side by side; by default ``exact``."""
    draws: Annotated[int, Ge(1)] = 2
    """How many x_T each image is decoded with from z_sem alone."""
    num_images: Annotated[int, Ge(0)] = 64
    """Synthetic images to generate if the bundle has a latent DDIM, or one z_sem for all cases; none with 0, or without
    codes."""
    num_codes: Annotated[int, Ge(0)] = 2000
    """Most held-out and most training cases to encode for the figures of z_sem and of synthetic images; 0: none."""
    num_levels: Annotated[int, Ge(0)] = 10
    """Noise levels at which the use of z_sem is measured, beside its stability; 0: neither."""

    @property
    def decoders(self) -> list[DecoderName]:
        """The names in ``decoder``; none: the bundle's."""
        return [self.decoder] if isinstance(self.decoder, str) else list(self.decoder)


@Parameter(name="*", group=Group("Judges", sort_key=4))
@dataclass(frozen=True)
class Weights:
    """Weights of the networks that judge images. Nothing is downloaded."""

    alexnet: Path | None = None
    """AlexNet's weights for LPIPS; by default where torch keeps downloaded weights (TORCH_HOME)."""
    radimagenet: Path | None = None
    """A ResNet-50 of RadImageNet, whose features FID, KID, precision and recall then use, too."""

    @property
    def files(self) -> dict[str, Path]:
        """The given files by their names."""
        files = {"alexnet": self.alexnet, "radimagenet": self.radimagenet}
        return {name: file for name, file in files.items() if file is not None}


@command
def evaluate(
    out: Path,
    *,
    bundle: Sequence[Path] | Path,
    cohort: Path,
    seed: Seed = 0,
    held_out: HeldOut = HeldOut(),
    conditions: Conditions = Conditions(),
    weights: Weights = Weights(),
    reading: Reading = Reading(),
    run: Run = Run(),
    figures: Figures = Figures(),
) -> Result:
    """Measure reconstructions, synthetic images and z_sem on held-out cases, for one bundle or several side by side.

    ``out/tables.md`` has the tables in Markdown, ``out/tables/`` as CSV, and ``out/evaluation.json`` everything.
    ``reconstruction`` is from both codes: ``mse``, ``psnr``, ``ssim``, ``ms_ssim`` and ``lpips``, with ``x_T_std`` and
    ``x_T_neighbor_correlation`` (1 and 0 for perfect noise). ``z_sem_only`` is from z_sem alone with sampled x_T: the
    same metrics, and ``diversity``, the standard deviation of a voxel over several x_T. Each value is a mean over the
    cases with a 95 % interval over the patients. ``out/cases.csv`` has one row per case and condition.

    ``generation`` compares generated images with held-out cases (``fid``, ``kid``, ``mmd``, ``precision``, ``recall``)
    and with the training set (``copying_ratio``). ``z_sem`` has the use of z_sem by the decoder, its dimensions,
    MONAI's indicators of collapse, and DCI if the known factors of the virtual cohort are given.

    ``noise_levels`` has one row per noise level: ``log_snr``; the denoising loss with a case's own z_sem, with that of
    another patient, and with the mean of all other patients (``loss_own``, ``loss_other``, ``loss_mean``); the last two
    divided by the first (``z_sem_usage``, ``z_sem_usage_mean``); and ``own_is_better``, the share of cases with a lower
    loss for their own z_sem than for the other. ``stability`` has one row per change of the image (flipped, noise,
    shifted, darker, brighter, another scan of the patient): ``ratio`` and ``ratio_90``, the median and 90th percentile
    of the distance that z_sem (normalised) moves, divided by the median distance between patients; and ``rank_1``, the
    share of cases still closest to themselves. ``out/diagnosis.png`` shows both tables, for several bundles
    ``diagnosis_<bundle>.png``.

    With several bundles, ``differences`` in ``evaluation.json`` compares each with the first one, case by case. An
    interrupted run resumes. Processes of ``torchrun`` share the reconstructions; the first one writes the results.

    Args:
        out: Folder for the results.
        bundle: Folders of trained bundles.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        seed: Random seed of x_T, a function of the seed, the case's id and the number of the draw.

    Returns:
        The folder; its figures are the content of ``evaluation.json``.

    Raises:
        ConfigError: an argument is out of range, no bundle is trained, the cases may have been trained on, or ``out``
            holds results made from other things.
        CohortError: there is no held-out case.
    """
    if held_out.split == "train" and not held_out.not_held_out:
        raise ConfigError("split: train has the cases that the bundle was trained on; choose test, or set not_held_out")
    for name, file in weights.files.items():
        if not file.is_file():
            raise ConfigError(f"{name}: there is no file {file.name}; check the path, or omit it")
    folders, process = [bundle] if isinstance(bundle, Path) else list(bundle), this_process()
    decoder = "fast" if "fast" in conditions.decoders else next(iter(conditions.decoders), None)
    run = replace(run, device=run.device or process.device)
    opening = partial(
        sessions.Session.open, cohort=cohort, decoding=Decoding(decoder=decoder), reading=reading, run=run
    )
    models, omitted = _open(folders, opening, held_out, cohort.name)
    evaluation = _Evaluation(models, conditions, held_out, weights, figures, seed, out, process, omitted)
    made_from = {
        "bundles": {each.name: each.made_from for each in models},
        "steps": list(conditions.steps),
        "solvers": list(conditions.solvers),
        "draws": conditions.draws,
        "num_images": conditions.num_images,
        "num_codes": conditions.num_codes,
        "num_levels": conditions.num_levels,
        **asdict(figures),
        **asdict(held_out),
        "seed": seed,
        **({"decoder": conditions.decoders} if conditions.decoders else {}),
        **{name: file_checksum(file) for name, file in weights.files.items()},
    }
    results = [out / _SUMMARY, out / "tables.md", out / "cases.csv"]
    if process.rank:  # the first process gathers what this one measures
        if finished("evaluate", out, results, made_from, overwrite=run.overwrite) is None:
            evaluation.measure_share(run.overwrite)
        return Result(out, {"rows": [], "omitted": [], "num_cases": 0})
    make = partial(evaluation.run, run.overwrite)
    made, skipped = run_once("evaluate", out, results, made_from, make, overwrite=run.overwrite)
    content = json.loads((out / _SUMMARY).read_text())
    lines = [failed_cases(made["num_failed"], content["num_cases"], _FAILURES)]
    lines += [f"{each['bundle']} is left out" for each in content["omitted"] if each["metric"] == "all"]
    incomplete = "; ".join(line for line in lines if line) or None
    return Result(out, content, list(quality_tables.result_lines(content["rows"])), incomplete, skipped=skipped)


def _open(
    folders: Sequence[Path], opening: Callable[[Path], sessions.Session], held_out: HeldOut, cohort: str
) -> tuple[list[_EvaluatedBundle], list[dict[str, Any]]]:
    """The bundles that can be evaluated, and why the others cannot; those that are not safe are refused."""
    models: list[_EvaluatedBundle] = []
    errors: dict[str, OmittableError] = {}
    for folder, name in zip(folders, unique_names(folders), strict=True):
        try:
            session = opening(folder)
            if session.may_hold_training_cases and not held_out.not_held_out:
                raise ConfigError(
                    f"{cohort}: is not the cohort that {name} was trained on, and has no split, so its cases may have "
                    "been trained on; add a column split (test, if these are new scans), or set not_held_out"
                )
            models.append(_EvaluatedBundle(name, session, session.cohort.choose((), held_out.split)))
        except OmittableError as error:
            errors[name] = error
    if not models:
        raise next(iter(errors.values()))
    omitted = [{"bundle": name, "metric": "all", "reason": one_line(each)} for name, each in errors.items()]
    for omission in omitted:
        logger.warning("%(bundle)s is left out: %(reason)s", omission)
    return models, omitted


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders; a name that is there already gets a number."""
    names: list[str] = []
    for folder in folders:
        name = folder.resolve().name
        count = sum(each == name or each.startswith(f"{name} (") for each in names)
        names.append(name if count == 0 else f"{name} ({count + 1})")
    return names


@dataclass(frozen=True)
class _EvaluatedBundle:
    """One bundle of an evaluation: its name in the tables, and all held-out cases."""

    name: str
    session: sessions.Session
    held_out: list[Case]

    @property
    def made_from(self) -> dict[str, Any]:
        """What the bundle's results depend on."""
        latent = models_folder(self.session.trained.folder) / LATENT_MODEL
        return self.session.made_from(self.held_out, latent_model=file_checksum(latent) if latent.is_file() else None)

    @property
    def description(self) -> dict[str, Any]:
        """What the bundle is, as plain values."""
        trained = self.session.trained
        try:
            images_seen = int(pd.read_csv(trained.folder / _TRAINING_CURVE)["images_seen"].max())
        except (OSError, ValueError, KeyError):  # the folder has no curve of the training
            images_seen = None
        return {
            "name": self.name,
            "z_sem_dims": trained.z_channels,
            "image_size": list(trained.image_shape[1:]),
            "spatial_dims": len(trained.image_shape) - 1,
            "channels": trained.image_shape[0],
            "train_images_seen": images_seen,
            "model": trained.sha256,
        }

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Everything that an image and its errors depend on before the model sees it."""
        trained = self.session.trained
        return {**preprocessing_config(trained.config), "model_range": trained.model_range}


@dataclass
class _Evaluation:
    """Evaluates bundles on the held-out cases of a cohort; the others are compared with the first."""

    models: Sequence[_EvaluatedBundle]
    conditions: Conditions
    held_out: HeldOut
    weights: Weights
    figures: Figures
    seed: int
    folder: Path
    process: Process
    omitted: list[Row] = field(default_factory=list)

    def run(self, overwrite: bool = False) -> dict[str, Any]:
        """Measure everything and write all files, in the first process; ``overwrite`` ignores an interrupted run."""
        prepared = list(map(self._prepare, self.models))
        reads = [reconstructions.bundle.read for reconstructions, _, _ in prepared]
        patients = {case.id: case.patient for read in reads for case in read.cases}
        case_rows: list[Row] = []
        rows: list[Row] = []
        total = sum(images.num_evaluations for made, _, drawn in prepared for images in (made, drawn) if images)
        with progress(total, f"evaluating {', '.join(bundle.name for bundle in self.models)}") as advance:
            measured = MeasuredRows(self.folder / _PARTS, self._settings, self.process, advance, overwrite)
            for reconstructions, _, generated in prepared:
                case_rows += reconstructions.rows(measured)
                rows += [] if generated is None else generated.rows(measured)
        for _, measures, generated in prepared:
            for measure in measures:
                rows += measure()
            if generated is not None:
                generated.draw_nearest(self.folder / f"generated_{safe_id(generated.bundle.name)}.png")
        rows = quality_tables.mean_rows(case_rows, patients) + rows
        comparable = self._comparable()
        compared = [row for row in case_rows if row["bundle"] in comparable]
        self._write(rows, quality_tables.difference_rows(compared, self.models[0].name, patients), case_rows, patients)
        measured.remove()
        num_failed = max(len(read.failures) for read in reads)
        return {"num_cases": len(patients), "num_failed": num_failed, "num_omitted": len(self.omitted)}

    def measure_share(self, overwrite: bool = False) -> None:
        """Measure this process's share of the reconstructions, for the first process; in the others."""
        measured = MeasuredRows(self.folder / _PARTS, self._settings, self.process, lambda: None, overwrite)
        for bundle in self.models:
            for _ in self._prepare(bundle)[0].rows(measured):
                pass

    @property
    def _settings(self) -> dict[str, Any]:
        """What rows depend on besides the bundle and the condition."""
        settings = {"seed": self.seed, "limit": self.held_out.limit, "num_codes": self.conditions.num_codes}
        return settings | {name: file_checksum(file) for name, file in self.weights.files.items()}

    def _prepare(
        self, bundle: _EvaluatedBundle
    ) -> tuple[quality.Reconstructions, list[_Rows], quality.GeneratedImages | None]:
        """Read and encode the cases of a bundle, for its reconstructions, z_sem and synthetic images, if it has any."""
        session, trained, settings = bundle.session, bundle.session.trained, self.conditions
        omit = partial(self._omit, bundle.name)
        read = session.read(spread_cases(bundle.held_out, self.held_out.limit), self.folder, _FAILURES)
        image_quality = metrics.ImageQuality(trained.image_shape[1:], trained.model_range, self.lpips)
        for metric, reason in image_quality.omitted().items():
            omit(metric, reason)

        def encoded(cases: Sequence[Case], name: str) -> quality.EncodedCases | None:
            if not (chosen := spread_cases(cases, settings.num_codes)):
                return None
            some = session.read(chosen, self.folder, f"{name}_failures.csv")
            return quality.EncodedCases(some, session.encode(some))

        held_out, train = encoded(bundle.held_out, "held_out"), encoded(session.cohort.split("train"), "training")
        generated = None
        conditions = quality.conditions_of(trained.inferer, settings.solvers, settings.steps, settings.decoders)
        cases = quality.BundleCases(bundle.name, session, read, held_out, train, conditions, self.seed, omit)
        measures: list[_Rows] = []
        if settings.num_levels:
            measures.append(diagnosis.Diagnosis(cases, settings.num_levels).rows)
        if held_out is not None:
            measures.append(quality.CodeFigures(cases, held_out).rows)
        if held_out is not None and settings.num_images:
            try:
                latent = None if held_out.has_one_z_sem else loading.load_latent(trained.folder, trained.device)
                networks, made_from = self.feature_networks, bundle.made_from
                generated = quality.GeneratedImages(cases, held_out, latent, networks, made_from, settings.num_images)
            except OmittableError as error:
                omit(_GENERATION, str(error))
        return quality.Reconstructions(cases, image_quality, settings.draws), measures, generated

    @cached_property
    def lpips(self) -> metrics.PerceptualDistance | None:
        """LPIPS, if its weights are there."""
        try:
            trained = self.models[0].session.trained
            return metrics.PerceptualDistance(self.weights.alexnet, trained.device, trained.is_colour)
        except MachineError as error:
            self._omit(None, "lpips", str(error))
            return None

    @cached_property
    def feature_networks(self) -> dict[str, quality.FeatureNetwork]:
        """The networks for FID, KID, precision and recall for which there are weights."""
        trained = self.models[0].session.trained
        networks: dict[str, quality.FeatureNetwork] = {} if self.lpips is None else {"alexnet": self.lpips.features}
        if self.weights.radimagenet is not None:
            networks["radimagenet"] = metrics.RadImageNetFeatures(
                self.weights.radimagenet, trained.device, trained.is_colour
            )
        try:
            networks["inception"] = metrics.InceptionFeatures(trained.device, trained.is_colour)
        except MachineError as error:
            logger.debug("no features of Inception v3: %s", error)
        return networks

    def _comparable(self) -> set[str]:
        """The names of the bundles whose preprocessing is that of the first."""
        first, *others = self.models
        names = {first.name}
        for other in others:
            if differing := differing_keys(first.preprocessing, other.preprocessing):
                reason = f"the preprocessing differs from that of {first.name} in {', '.join(differing)}"
                self._omit(other.name, "differences", reason)
            else:
                names.add(other.name)
        return names

    def _omit(self, bundle: str | None, metric: str, reason: str) -> None:
        omission = {"bundle": bundle, "metric": metric, "reason": reason}
        if omission not in self.omitted:
            level = logging.INFO if metric == _GENERATION else logging.WARNING  # most bundles have no latent DDIM
            logger.log(level, "%s%s is left out: %s", "" if bundle is None else f"{bundle}: ", metric, reason)
            self.omitted.append(omission)

    def _write(
        self, rows: list[Row], differences: list[Row], case_rows: list[Row], patients: Mapping[str, str]
    ) -> None:
        num_patients, num_cases = len(set(patients.values())), len(patients)
        are_known = are_patients_known(self.models[0].held_out)
        content = {
            "bundles": [bundle.description for bundle in self.models],
            "rows": rows,
            "differences": differences,
            "omitted": self.omitted,
            "held_out": not self.held_out.not_held_out,
            "split": self.held_out.split,
            "num_cases": num_cases,
            "num_patients": num_patients,
            "knows_patients": are_known,
            "draws": self.conditions.draws,
            "seed": self.seed,
        }
        tables = quality_tables.write_tables(self.folder, rows, self._notes(content))
        write_csv(self.folder / "cases.csv", pd.DataFrame(case_rows))
        write_json(self.folder / _SUMMARY, content)
        for bundle in self.models:
            lines = dict(quality_tables.lines_of_tables([row for row in rows if row["bundle"] == bundle.name]))
            if "stability" in lines:
                name = "diagnosis" if len(self.models) == 1 else f"diagnosis_{safe_id(bundle.name)}"
                figure = pictures.draw_diagnosis(pd.DataFrame(lines["noise_levels"]), pd.DataFrame(lines["stability"]))
                self.figures.write(self.folder / f"{name}.png", figure)
        files = [*tables, *sorted(self.folder.glob("*.png"))]
        log_to_open_run(_figures(rows), [*files, self.folder / _SUMMARY], "evaluation")
        for bundle in self.models:
            own_rows = [{**row, "bundle": None} for row in rows if row["bundle"] == bundle.name]
            log_to_training(bundle.session.trained.folder, _figures(own_rows), files, "evaluation")

    def _notes(self, content: Mapping[str, Any]) -> list[str]:
        """How the tables were measured, as sentences below each other."""
        cases = counted(content["num_cases"], "case" if self.held_out.not_held_out else "held-out case")
        patients = of_patients(content["num_patients"], content["knows_patients"])
        notes = [f"Means over {cases}{patients} (split {self.held_out.split}), with 95 % intervals."]
        if self.held_out.not_held_out:
            notes.append("These cases may have been trained on: the figures are better than those of new cases.")
        for omission in self.omitted:
            bundle = f"{omission['bundle']}: " if omission["bundle"] and len(self.models) > 1 else ""
            notes.append(f"{bundle}{omission['metric']} is left out: {omission['reason']}.")
        return notes


def _figures(rows: Sequence[Row]) -> dict[str, float]:
    """The values by a name that says what they are, for MLflow."""
    names = ("bundle", "table", "solver", "steps", "features", "timestep", "change", "metric")
    return {
        "/".join(str(row[name]) for name in names if row[name] is not None): row["value"]
        for row in rows
        if row["value"] is not None
    }
