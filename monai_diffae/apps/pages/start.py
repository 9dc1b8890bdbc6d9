"""The command ``start``: from a folder of scans to a model, a table, a probe and pictures."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le
from cyclopts import Parameter

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.pages.report import page_result
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import FEWEST_CALIBRATING, Columns, PageRun, Sequences, Topics
from monai_diffae.apps.steps import Steps
from monai_diffae.bundle import layout
from monai_diffae.data.atomic import write_json
from monai_diffae.data.cases import are_patients_known, of_patients
from monai_diffae.data.scan_states import cohort_fingerprint
from monai_diffae.errors import CohortError, ConfigError, OmittableError, OtherResultsError, counted, one_line
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np

    from monai_diffae.apps import html
    from monai_diffae.apps import session as sessions
    from monai_diffae.apps.pages import data as page_data
    from monai_diffae.apps.pages import sections
    from monai_diffae.apps.training import plan as plans
    from monai_diffae.apps.training import speed as speeds
    from monai_diffae.data import cohorts, embeddings
    from monai_diffae.data.inspection import twins

_FEWEST_PATIENTS, _FEW_PATIENTS = 10, 200
_NUM_UNUSUAL = 8  # cases
_COARSE = 4  # voxels of the model, in those of the scans
_SHIPPED = {2: ("chest_xray", "chest X-rays"), 3: ("hippocampus", "MR volumes around a hippocampus")}
_OVERLAYS = ["words.json"]  # of the training: z_sem predicts more, see docs/probes.md
_SLICES = {"bundle": Path("diffae_2d"), "overrides": {"slice_range": [0.2, 0.8], "slice_step": 1}}  # nearly all slices

logger = logging.getLogger(__name__)


@Parameter(name="*")
@dataclass(frozen=True)
class Hour:
    """What ``start`` does, and for how long."""

    minutes: Annotated[float, Gt(0), Le(100_000)] = 10.0
    """Duration of the training; the other steps take a few minutes more."""
    targets: Sequence[str] = ()
    """Label columns to predict; scans are edited along the first two that z_sem predicts; by default those that are
    found."""
    towards: str | None = None
    """Class towards which scans are edited, e.g. ``malignant``; by default the rarest that is not called normal."""
    sequences: Sequences = ()
    """Sequences that become channels of the image, in this order, e.g. ``T1 FLAIR``; by default all of them, if every
    case has them."""
    device: str | None = None
    """Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one."""


@Parameter(name="*")
@dataclass(frozen=True)
class Listing:
    """How the scans of a folder and their labels are found."""

    table: Path | None = None
    """Table with labels to join to a folder, such as ``participants.csv``."""
    id_column: str | None = None
    """Column of this table that names the scans, e.g. ``MRID``; by default found by its name."""
    patient_pattern: str | None = None
    r"""Regular expression that finds the patient in the path of a scan, e.g. ``patient\d+``; by default each scan of a
    folder is a patient."""
    columns: Columns = field(default_factory=dict)
    """Names that a table uses for image, id, patient or split, e.g. ``image=file patient=subject``."""


@command
def start(cohort: Path, out: Path, *, hour: Hour = Hour(), listing: Listing = Listing(), yes: bool = False) -> Result:
    """Look at scans, train a model for some minutes, and show what it learned: table, probe, neighbors, edits, page.

    Everything is done by ordinary commands, which are shown as they run and are listed on the page. The same command
    resumes after an interruption: complete steps are skipped.

    Args:
        cohort: Folder of scans, CSV/TSV or MONAI datalist. In a folder, ids are the names of the files; if these name
            patients, use the table of ``list-scans --ids hashed``.
        out: Folder for the model and all results.
        yes: Start without asking; this is also done if nobody can answer, as in a script.

    Returns:
        The folder, the ``page``, the ``outcomes`` of all steps, and ``next_lines``: what can be done next.

    Raises:
        CohortError: no usable scan, or too few.
        ConfigError: an argument cannot be used, or ``out`` holds something else.
        MachineError: the disk is full, or the training does not fit into memory.
    """
    first = FirstHour(cohort, out, hour, {name: value for name, value in vars(listing).items() if value})
    first.plan()
    summary = list(first.summary())
    print(*summary, sep="\n", file=sys.stderr)
    if not yes and sys.stdin.isatty() and input("Start? [Y/n] ").strip().lower() not in ("", "y", "yes"):
        return Result(notes=["not started: nothing was trained"], content={"outcomes": ()})
    data = first.run()
    shipped = first.try_shipped(data)
    logger.info("\nWrite the page")
    values, next_lines = sections.Report([data]).values(), list(first.next_lines(data, shipped))
    if shipped is not None:
        values["answers"].insert(0, first.shipped_answer(shipped))
    if remark := first.record.get("remark"):  # not in those of earlier versions
        values["answers"].append({"kind": "open", "text": remark, "advice": ""})
    page = html.write_page(
        out / "index.html",
        "start.html",
        **values,
        summary=summary,
        next_lines=next_lines,
        outcomes=first.steps.with_earlier(),
    )
    return page_result(page, first.steps.outcomes, values["answers"], next_lines)


def _lost_detail(plan: plans.Plan) -> str:
    """Why a 3D model with the voxels of a plan would see too little of the scans; empty if it would not."""
    if "spacing_mm" not in plan.settings:
        return ""
    voxel_mm, scan_mm = np.array(plan.settings["spacing_mm"]), np.median(plan.survey.spacings_mm, axis=0)
    shown = " x ".join(f"{mm:g}" for mm in voxel_mm)
    if (voxel_mm / scan_mm.min()).max() >= _COARSE:
        return f"in the given time, a 3D model has voxels of {shown} mm, and the scans have {scan_mm.min():.2g} mm"
    return ""


def _predict_line(data: page_data.ReportData, out: str) -> str:
    given = {"bundle": data.bundle, "cohort": "new_scans", "out": out, "labelled": data.embeddings}
    return command_line("predict", {**given, "targets": data.predicted})


@dataclass
class FirstHour:
    """What ``start`` does with a cohort; ``record`` is what was asked for and decided, as in ``start.json``."""

    cohort: Path
    out: Path
    hour: Hour
    listing: Mapping[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    table: Path = field(init=False)  # of the scans
    model: Path = field(init=False)  # the bundle's folder

    def __post_init__(self) -> None:
        self.table, self.model = self.out / "scans.csv", self.out / "model"

    @cached_property
    def steps(self) -> Steps:
        """The commands that were run."""
        return Steps(self.out / page_data.JOURNAL, keeps_lines=True)

    def plan(self) -> None:
        """List the scans, and plan the training unless that was done by an earlier call."""
        try:
            listed = self._list()
        except OtherResultsError as error:
            raise self._other("scans or labels") from error
        cases = cohorts.read_cohort(self.table)
        page_data.check_targets(cases, self.hour.targets, self.hour.towards)
        request = {"cohort": cohort_fingerprint(cases), "minutes": self.hour.minutes}
        if self.hour.sequences:
            request["sequences"] = list(self.hour.sequences)
        self.record = self._read_record(request)
        if self.record:
            return
        plan, remark = self._plan(listed)
        patients = of_patients(listed.listing.num_patients, are_patients_known(listed.listing.cases))
        size = " x ".join(map(str, plan.settings["image_size"]))
        spacing = " x ".join(f"{mm:g}" for mm in plan.settings.get("spacing_mm", ()))
        summary = [
            f"{counted(len(listed.listing.cases), 'scan')}{patients}; "
            f"labels: {', '.join(listed.listing.labels) or 'none'}",
            *filter(None, [remark]),
            *filter(None, [plan.incomplete]),
            f"training of {plan.bundle}: images of {size}{f' voxels of {spacing} mm' if spacing else ' pixels'}, "
            f"about {counted(plan.settings['max_epochs'], 'epoch')}; the training measures the speed again",
            *plan.time_lines(),
        ]
        self.record = {
            "request": request,
            "bundle": plan.bundle,
            "settings": plan.settings,
            "overlays": _OVERLAYS,
            "summary": summary,
            "remark": remark,
            "is_trained": False,
        }

    def _plan(self, listed: Any) -> tuple[plans.Plan, str]:
        """The plan, of slices where volumes would be too few or too coarse, and a remark on what is lost."""
        planning: dict[str, Any] = {"cohort": self.table, "minutes": self.hour.minutes}
        colour = "grey" if listed.appearance.colour else None
        planning |= {"device": self.hour.device, "sequences": self.hour.sequences, "colour": colour}
        has_volumes, num_patients = bool(listed.appearance.of_dims(3)), listed.listing.num_patients
        lost = "a 3D model would see too few volumes"
        if not has_volumes or num_patients >= _FEWEST_PATIENTS:
            plan = self.steps.prepare("Plan the training", "plan", **planning).plan
            lost = _lost_detail(plan)
            if not lost or num_patients >= _FEW_PATIENTS:
                return plan, lost and f"Fine detail is lost: {lost}; give more minutes."
        try:
            plan = self.steps.prepare("Plan the training on slices", "plan", **planning, **_SLICES).plan
        except CohortError as error:  # the first slices are those at the end of a volume, which may be empty
            if num_patients < _FEWEST_PATIENTS:
                raise
            logger.warning("slices cannot be used: %s", error)
            return plan, f"Fine detail is lost: {lost}; give more minutes."
        pooled = "A volume has the mean and the standard deviation of its slices' z_sem; pictures show one slice."
        return plan, f"The model is trained on slices: {lost}. {pooled}"

    def _list(self) -> Any:
        """List the scans, with twins as one patient unless they are in different splits."""
        arguments = {"cohort": self.cohort, "out": self.table, **self.listing}
        try:
            return self.steps.prepare("List the scans", "list-scans", **arguments, group_duplicates=True)
        except twins.SeparatedTwins:
            return self.steps.prepare("List the scans", "list-scans", **arguments)

    def _other(self, what: str) -> ConfigError:
        return ConfigError(f"{self.out.name}: holds what start made with other {what}; choose another out")

    def _read_record(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not (self.out / "start.json").is_file():
            return {}
        record: dict[str, Any] = json.loads((self.out / "start.json").read_text(encoding="utf-8"))
        earlier = record["request"]
        differ = [
            f"{name} ({earlier.get(name):g})" if name == "minutes" else name
            for name, value in request.items()
            if earlier.get(name) != value
        ]
        if differ:
            raise self._other(", ".join(differ))
        return record

    def summary(self) -> Iterator[str]:
        """What is going to be done."""
        yield from self.record["summary"]
        if self.record["is_trained"]:
            yield f"the training in {self.model} is complete"
        else:
            begun = "is resumed" if (self.model / layout.MODELS / layout.CHECKPOINT).is_file() else "begins"
            yield f"the training {begun} in {self.model}; Ctrl-C interrupts it, and the same command resumes it"
        yield f"then the scans are embedded, and labels predicted: some minutes more; see {self.out / 'index.html'}"

    def run(self) -> page_data.ReportData:
        """Train, embed, and find out what was learned."""
        self._train()
        topics, run = Topics(self.hour.targets, self.hour.towards), PageRun(device=self.hour.device)
        data = page_data.ReportData(self.model, self.out, self.table, topics, run, self.steps, self.cohort.stem)
        data.collect(evaluates=False)
        return data

    def _train(self) -> None:
        write_json(self.out / "start.json", self.record)
        if not self.model.is_dir():
            self.steps.prepare("Make a bundle", "init", out=self.model, bundle=self.record["bundle"])
        if self.record["is_trained"]:
            return
        self.steps.prepare(
            "Train",
            "train",
            bundle=self.model,
            cohort=self.table,
            minutes=self.hour.minutes,
            device=self.hour.device,
            overlays=[layout.overlay(self.model, file) for file in self.record.get("overlays", ())],
            overrides={key: value for key, value in self.record["settings"].items() if key not in speeds.TIME_KEYS},
        )
        self.record["is_trained"] = True
        write_json(self.out / "start.json", self.record)

    def try_shipped(self, data: page_data.ReportData) -> page_data.ReportData | None:
        """A shipped model that knows the scans, if they are few, and what it predicts."""
        settings, is_few = self.record["settings"], data.few_images is not None or bool(data.slices)
        takes_them = not settings.get("sequences") and settings.get("colour", "refuse") == "refuse"
        if not (takes_them and is_few and data.is_embedded) or self.record.get("no_shipped_model"):
            return None
        name, scans = _SHIPPED[3 if data.slices else data.spatial_dims]
        model, steps = self.out / name, Steps(self.out / page_data.JOURNAL)
        shipped = page_data.ReportData(model, model, self.table, data.topics, data.run, steps)
        try:
            if not model.is_dir():
                steps.prepare(f"Try {name}, a shipped model of {scans}", "init", out=model, bundle=name)
            if shipped.embed() and sessions.count_unlike(model, embeddings.z_matrix(shipped.table)) == 0:
                shipped.probe()
                self.steps.outcomes += steps.outcomes
                return shipped
        except OmittableError as error:
            logger.warning("%s cannot be tried: %s", name, one_line(error))
        logger.info("%s is left out", name)
        shutil.rmtree(model, ignore_errors=True)
        write_json(self.out / "start.json", {**self.record, "no_shipped_model": True})
        return None

    @staticmethod
    def shipped_answer(shipped: page_data.ReportData) -> dict[str, str]:
        """What the page says of a shipped model, before all else."""
        sentences = [f"{each.sentence} {each.against}" for each in shipped.verdicts if each.is_predicted]
        sentences.append(
            "If it was trained on some of these scans, this is too high. Its commands come first in \u201cWhat to do "
            "next\u201d; all below is about the model trained here."
        )
        text = f"{shipped.name}, a shipped model that was trained for longer, knows scans like these."
        return {"kind": "good", "text": text, "advice": " ".join(sentences)}

    def next_lines(
        self, data: page_data.ReportData, shipped: page_data.ReportData | None = None
    ) -> Iterator[tuple[str, str]]:
        """What can be done next: explanations and lines for a shell."""
        topics = {"targets": list(self.hour.targets), "towards": self.hour.towards}
        if shipped is not None:
            page = {"bundle": shipped.bundle, "cohort": self.table, "out": shipped.folder, **topics}
            yield f"Make a page like this one for {shipped.name}:", command_line("report", page)
            if shipped.predicted:
                title = f"Predict the labels of new scans with {shipped.name}:"
                yield title, _predict_line(shipped, f"predicted_{shipped.name}")
        opened = {"bundle": self.model, "cohort": self.table}
        directions = [data.folder / name for name in data.outcomes if name.startswith("directions/")]
        edited = [file for file in directions if data.result(f"edits/{file.stem}") is not None]
        embedded = {} if data.slices else {"embeddings": data.embeddings}  # of single images
        yield (
            "Open a page with a map of all scans, and sliders that edit them:",
            command_line("explore", {**opened, **embedded, "directions": edited}),
        )
        yield (
            "Make a report to send around, also with the quality of the images:",
            command_line("report", {**opened, "out": self.out, **topics}),  # all is reused
        )
        if data.predicted:
            yield "Predict the labels of new scans:", _predict_line(data, "predicted")
        splits = Counter(data.table.get("split", ()) if data.is_embedded else ())
        if splits["test"] and splits["val"] >= FEWEST_CALIBRATING:  # val has calibrated the maps
            unusual = {**opened, "out": self.out / "anomaly", "split": "test"}
            target = next(iter(data.labels), None)
            both_ends = data.examples(target, _NUM_UNUSUAL) if target is not None and not data.slices else []
            tested = set(data.table.loc[data.table["split"] == "test", "id"].astype(str))
            unusual |= {"cases": both_ends} if both_ends and tested.issuperset(both_ends) else {"limit": _NUM_UNUSUAL}
            yield "Show what is unusual inside scans:", command_line("anomaly", unusual)
        is_clear = not data.verdicts or any(verdict.answer != "unclear" for verdict in data.verdicts)
        if data.slices or (data.few_images is None and is_clear):
            longer = {
                "cohort": self.table,
                "out": f"{self.out}_longer",
                "minutes": 60,
                "targets": list(self.hour.targets),
                "device": self.hour.device,
            }
            better = "a model of volumes, if its voxels can be finer then" if data.slices else "a better model"
            yield f"Train {better}, for an hour:", command_line("start", longer)
