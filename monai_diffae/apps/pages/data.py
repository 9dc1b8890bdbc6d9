"""The ordinary data of a report: what commands found out about one bundle, and the labels and cases to show."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pyarrow.parquet import read_schema

from monai_diffae.apps.commands import command_line
from monai_diffae.apps.evaluation.verdicts import Verdict
from monai_diffae.apps.record import read_record, record_of
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import PageRun, Run, Topics
from monai_diffae.apps.steps import Outcome, Step, Steps
from monai_diffae.apps.training.plan import FEW_SCANS
from monai_diffae.bundle.layout import LATENT_MODEL, model_file, models_folder
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.model_file import checksum, read_description
from monai_diffae.data.atomic import write_csv
from monai_diffae.data.cases import TWINS, Case, label_names, marks_twins, safe_id
from monai_diffae.data.cohort_split import gather_slices, whole_scan
from monai_diffae.data.embeddings import label_columns, read_embeddings
from monai_diffae.data.inspection.twins import are_classes
from monai_diffae.errors import ConfigError
from monai_diffae.latents import Direction
from monai_diffae.latents.representation import LEAST_USAGE
from monai_diffae.latents.targets import read_target, reason_against

JOURNAL = "steps.json"  # the file in the folder of a page that keeps durations and warnings of the steps

# The file in the folder of a page that lists scans that are the same, but have different labels
CONFLICTS = "label_conflicts.csv"

_LARGEST_GIB = 2  # of images in memory, from which the baselines of the probes are computed
_MOST_EDITED_TARGETS = 2
_MOST_TARGETS, _MANY_TEST_PATIENTS = 5, 100
_USUAL = re.compile(r"normal|healthy|controls?|hc|negative|none|(no|non|not|without)[ _-].*")  # not what to look at


@dataclass(frozen=True)
class PageSize:
    """How much a page shows and measures."""

    steps: Sequence[int] = (5, 10, 20)  # of the decodings that are evaluated
    num_evaluated: int = 16  # cases
    num_generated: int = 32  # images that are evaluated
    num_codes: int = 500
    num_reconstructed: tuple[int, int] = (8, 4)  # images, and volumes, which take more room
    num_edited: int = 4  # cases, for each label
    num_samples: int = 16  # synthetic images


SIZE = PageSize()


@dataclass
class ReportData:
    """A bundle, and what the commands find out about it."""

    bundle: Path
    folder: Path  # of the results, with one folder per command
    cohort: Path | None = None  # None: only what needs no scans is shown
    topics: Topics = field(default_factory=Topics)
    run: PageRun = field(default_factory=PageRun)
    steps: Steps = field(default_factory=Steps)
    name: str = ""  # on the page; by default that of the bundle's folder
    root: Path | None = None  # the folder of the page; None: ``folder``
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # what became of each step, by the name of its folder

    def __post_init__(self) -> None:
        self.name = self.name or self.bundle.resolve().name

    @property
    def embeddings(self) -> Path:
        """The table of embeddings."""
        return self.folder / "embeddings" / "embeddings.parquet"

    @cached_property
    def table(self) -> pd.DataFrame:
        """The embeddings of the cohort."""
        return read_embeddings(self.embeddings)

    @cached_property
    def can_have_wide(self) -> bool | None:
        """Whether wide features are stored, or can be fitted to this cohort and stored; None: the encoder has none."""
        session = self.session
        if not hasattr(session.trained.network.encoder, "features"):
            return None
        return session.trained.has_wide or (session.can_fit_wide and len(session.cohort.split("train")) > 1)

    @cached_property
    def session(self) -> Session:
        """The bundle and the cohort, opened."""
        return Session.open(self.bundle, self.cohort or "", run=Run(device=self.run.device))

    @cached_property
    def slices(self) -> dict[str, list[Case]]:
        """The slices of each volume, by its id, if a 2D model sees volumes: the table then has a row per volume."""
        cases = self.session.cohort.cases if self.cohort is not None else []
        has_volumes = any(case.slice_index is not None for case in cases)
        return gather_slices(cases, [])[0] if has_volumes else {}

    @cached_property
    def pictured(self) -> dict[str, Case]:
        """The case that shows each case of the table, by its id: the middle slice of a volume; also all slices."""
        middle = {name: slices[len(slices) // 2] for name, slices in self.slices.items()}
        return {**middle, **{case.id: case for case in self.session.cohort.cases}}

    @cached_property
    def scan_of(self) -> dict[str, str]:
        """The row of the table to which each case belongs: the volume of a slice."""
        volumes = {case.id: name for name, slices in self.slices.items() for case in slices}
        return {case.id: volumes.get(case.id, case.id) for case in self.session.cohort.cases}

    def _slice_along(self, name: str, direction: Direction) -> str:
        """The id of the slice of a volume that shows a direction best; of an image its own id."""
        if name not in self.slices:
            return name
        slices = {case.slice_index: case.id for case in self.slices[name]}
        opened = self.session.trained.open(whole_scan(self.slices[name][0]))
        distance = direction.distance(opened.z_sem.cpu().numpy())
        best = distance.argmax() if distance.mean() > 0 else distance.argmin()
        return slices[opened.slices[best]]

    @cached_property
    def has_wide(self) -> bool:
        """Whether the table has wide features; that of an earlier call stays as it is."""
        if self.embeddings.is_file() and not self.run.overwrite:
            return "w_000" in read_schema(self.embeddings).names
        return bool(self.can_have_wide)

    @cached_property
    def labels(self) -> list[str]:
        """The labels to predict."""
        nuisances = [name for name in (self.topics.scanner, self.topics.repeat) if name in self.table]
        return find_targets(self.table.drop(columns=nuisances), self.topics.targets)

    @cached_property
    def conflicts(self) -> pd.DataFrame:
        """Scans that are the same but have different labels."""
        if not self.is_embedded:
            return label_conflicts(pd.DataFrame(), ())
        return label_conflicts(self.table, label_columns(self.table))

    @property
    def is_embedded(self) -> bool:
        """Whether there is a table of the cohort."""
        return self.result("embeddings") is not None

    @property
    def summary(self) -> dict[str, Any]:
        """What ``info`` says about the model."""
        figures: dict[str, Any] = self.result("info").figures
        return figures

    @property
    def verdicts(self) -> list[Verdict]:
        """What the probes say about each label."""
        probe = self.result("probe")
        return [] if probe is None else [Verdict(**each) for each in probe.verdicts]

    @property
    def uses_z_sem(self) -> bool:
        """Whether the decoder uses z_sem, so that edits along a direction show something."""
        usage = self.summary.get("z_sem_usage")
        return usage is None or usage >= LEAST_USAGE

    @property
    def spatial_dims(self) -> int:
        """The number of axes of the model's images."""
        return int(self.summary["spatial_dims"])

    @property
    def is_colour(self) -> bool:
        """Whether the channels of the model's images are colours."""
        return bool(self.summary["description"].get("colour") == "rgb")

    @property
    def few_images(self) -> int | None:
        """The number of training images if they are few for such a model."""
        num: int | None = read_description(model_file(self.bundle)).get("data", {}).get("train")
        return None if num is None or num >= FEW_SCANS[self.spatial_dims] else num

    @property
    def predicted(self) -> list[str]:
        """The labels that z_sem predicts better than chance."""
        return [verdict.target for verdict in self.verdicts if verdict.is_predicted]

    def read(self, file: str) -> pd.DataFrame:
        """A table that a command wrote, such as ``neighbors/outliers.csv``."""
        text = {"id": str, "neighbor": str}
        return pd.read_csv(self.folder / file, dtype=text, low_memory=False)

    def result(self, name: str) -> Any:
        """What a step returned; None if there was no such step, or if it failed."""
        return self.outcomes[name].result if name in self.outcomes else None

    def lines(self, *names: str) -> list[str]:
        """The commands of some steps as lines for a shell, without the folders that they were given."""
        folder = self.root or self.folder
        return [_shown_line(self.outcomes[name].step, folder) for name in names if name in self.outcomes]

    @cached_property
    def failures(self) -> list[dict[str, str]]:
        """The failed cases that all commands of the page listed, and the names of the lists' folders."""
        folders: dict[tuple[str, str], list[str]] = {}
        for file in sorted((self.root or self.folder).rglob("*failures.csv")):
            for row in pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records"):
                folders.setdefault((str(row["case_id"]), str(row["reason"])), []).append(file.parent.name)
        return [
            {"case": case_id, "reason": reason, "in": ", ".join(dict.fromkeys(names))}
            for (case_id, reason), names in folders.items()
        ]

    @property
    def shown_cases(self) -> list[str]:
        """The cases to reconstruct: held-out ones from both ends of the first label, or the first held-out ones."""
        if not self.is_embedded:
            return []
        names = self.examples(self.labels[0] if self.labels else None, SIZE.num_reconstructed[self.spatial_dims - 2])
        return [self.pictured[name].id for name in names]

    def examples(self, target: str | None, count: int) -> list[str]:
        """Ids of held-out cases: from both ends of a label if it is known, else the first ones."""
        examples = [] if target is None else find_examples(self.table, target, count, self.topics.towards)
        return examples or held_out_or_all(self.table)["id"].astype(str).tolist()[:count]

    def evaluate(self, bundles: Sequence[Path], folder: Path) -> None:
        """Evaluate this bundle, or several that the page compares."""
        split = held_out_split(self.table)
        title = "Evaluate the model" if len(bundles) == 1 else "Evaluate the models"
        overwrite = {"overwrite": True} if self.run.overwrite else {}
        self.steps.attempt(
            title,
            "evaluate",
            out=folder / "evaluation",
            bundle=list(bundles),
            cohort=self.cohort,
            steps=SIZE.steps,
            limit=SIZE.num_evaluated,
            draws=1,
            num_images=SIZE.num_generated,
            num_codes=SIZE.num_codes,
            split=split or "train",
            not_held_out=split is None,
            device=self.run.device,
            **overwrite,
        )
        self._keep("evaluation")

    def collect(self, *, evaluates: bool = True) -> None:
        """Run all commands; complete results are skipped. Only along labels that z_sem predicts, scans are edited."""
        self.run_common()
        if self.is_embedded:
            for target in self.predicted[:_MOST_EDITED_TARGETS] if self.uses_z_sem else ():
                self._edit(target)
            if self.uses_z_sem and not self.predicted:
                self._attempt(
                    "traversal",
                    "Traverse the main directions",
                    "decode",
                    bundle=self.bundle,
                    show="components",
                    embeddings=self.embeddings,
                )
            (self.folder / CONFLICTS).unlink(missing_ok=True)
            if len(self.conflicts):
                write_csv(self.folder / CONFLICTS, self.conflicts)
            if evaluates and self.labels:
                self._attempt(
                    "associations",
                    "Find what goes with what",
                    "associate",
                    embeddings=self.embeddings,
                    variables=self.labels,
                )
            if evaluates:
                self.evaluate([self.bundle], self.folder)
        if (models_folder(self.bundle) / LATENT_MODEL).is_file():
            self._generate()

    def describe(self) -> dict[str, Any]:
        """Run ``info`` and return its summary of the model, which must be trained."""
        if "info" not in self.outcomes:
            if "z_channels" not in self.steps.prepare("Look at the model", "info", bundle=self.bundle).figures:
                load_bundle(self.bundle, "cpu")  # raises the error that says why
            self._keep("info")
        return self.summary

    def embed(self) -> bool:
        """Run ``info`` and ``embed``; returns whether there is a table."""
        self.describe()
        if self.cohort is None:
            return False
        if self.topics.targets or self.topics.towards:
            check_targets(self.session.cohort.cases, self.topics.targets, self.topics.towards)
        wide = {"features": "wide"} if self.has_wide else {}
        pool = {"pool": "mean_std"} if self.slices else {}
        return self._attempt("embeddings", "Embed the scans", "embed", **self._opened, **wide, **pool) is not None

    def run_common(self, cases: Sequence[str] = ()) -> None:
        """Run what several models can be compared by: embed, reconstruct these cases, find neighbors, probe."""
        if not self.embed():
            return
        self._attempt(
            "reconstructions",
            "Reconstruct scans",
            "reconstruct",
            **self._opened,
            mode="both",
            grid="model",
            cases=list(cases) or self.shown_cases,
        )
        self._attempt("neighbors", "Find similar scans and outliers", "neighbors", embeddings=self.embeddings)
        self.probe()
        if self.topics.repeat is not None:
            self._attempt(
                "reliability",
                "Tell patients and scanners apart",
                "reliability",
                embeddings=self.embeddings,
                repeat=self.topics.repeat,
                scanner=self.topics.scanner,
            )

    def probe(self) -> None:
        """Run ``probe``, if there are labels."""
        if self.labels:
            self._attempt(
                "probe",
                "Predict the labels",
                "probe",
                embeddings=self.embeddings,
                targets=self.labels,
                probes=["linear"],
                skip_few_labels=True,
                nuisance=self.topics.scanner,
                **self._evaluation,
                **self._baselines,
                **({"features": ["z", "wide"]} if self.has_wide else {}),
            )

    @property
    def _evaluation(self) -> dict[str, Any]:
        """Cross-validation unless there are many test patients: a tenth of a small cohort shows strong effects only."""
        rows = held_out_or_all(self.table)
        num_patients = rows["patient"].nunique() if "patient" in rows else len(rows)
        are_many = held_out_split(self.table) is not None and num_patients >= _MANY_TEST_PATIENTS
        return {} if are_many else {"evaluation": "cv"}

    @property
    def _baselines(self) -> dict[str, Any]:
        """What z_sem is compared with: features of the pixels, if the images fit into memory."""
        summary = self.summary
        pixels = prod(summary["image_size"]) * summary.get("in_channels", 1)
        fits = len(self.table) * pixels * 4 <= _LARGEST_GIB * 1024**3
        return {"pixel_baselines": ["pca", "intensity"], **self._opened} if fits else {}

    @property
    def _opened(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "cohort": self.cohort}

    def _edit(self, target: str) -> None:
        """Edit scans from both ends of a label along its direction."""
        name = safe_id(target)
        direction = self.folder / "directions" / f"{name}.json"
        fitted = self._attempt(
            f"directions/{name}.json",
            f"Find the direction of {target}",
            "fit-direction",
            embeddings=self.embeddings,
            target=target,
            positive=find_positive(self.table, target, self.topics.towards),
        )
        if fitted is not None and not fitted.direction.may_be_chance:
            self._attempt(
                f"edits/{name}",
                f"Edit scans along {target}",
                "edit",
                **self._opened,
                direction=direction,
                captions=[target],
                cases=[self._slice_along(case, fitted.direction) for case in self.examples(target, SIZE.num_edited)],
            )

    def _generate(self) -> None:
        samples = self._attempt(
            "samples", "Generate synthetic images", "generate", bundle=self.bundle, num_images=SIZE.num_samples
        )
        if samples is not None and self.is_embedded and not self.slices:
            self._attempt(
                "samples_neighbors",
                "Find the cases nearest to the synthetic images",
                "neighbors",
                embeddings=self.embeddings,
                queries=self.folder / "samples" / "generated.parquet",
            )

    def _attempt(self, name: str, title: str, command: str, **arguments: Any) -> Any:
        """Run a step whose results go to ``folder / name``."""
        given = {**arguments, "out": self.folder / name}
        if command not in ("probe", "neighbors", "fit-direction", "associate", "reliability"):
            given["device"] = self.run.device
        if self.run.overwrite:
            given["overwrite"] = True
        result = self.steps.attempt(title, command, **given)
        self._keep(name)
        return result

    def _keep(self, name: str) -> None:
        self.outcomes[name] = self.steps.outcomes[-1]


def _shown_line(step: Step, folder: Path) -> str:
    """A step as a line for a shell; paths have no folders above ``folder``, because these may name people."""
    root = folder.resolve()

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(each) for each in value]
        if not isinstance(value, Path):
            return value
        path = value.resolve()
        return path.relative_to(root.parent) if path.is_relative_to(root) else Path(path.name)

    return command_line(step.command, {name: shown(value) for name, value in step.arguments.items()})


# -- scans that occur twice --------------------------------------------------------------------------------------------


def label_conflicts(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Scans that are twins, as ``list-scans`` says, but have different classes of a label."""
    rows = []
    for label in labels if TWINS in table and marks_twins(TWINS, table[TWINS]) else ():
        known = table[table[TWINS].notna() & table[label].notna()]
        if are_classes([None if pd.isna(value) else value for value in table[label]]):
            for group, members in known.groupby(TWINS, sort=False):
                if members[label].nunique() > 1:
                    rows += [
                        (label, group, name, value) for name, value in zip(members["id"], members[label], strict=True)
                    ]
    return pd.DataFrame(rows, columns=["label", TWINS, "id", "value"])


# -- labels that a probe can learn, and cases that show both ends of one -----------------------------------------------


def find_targets(table: pd.DataFrame, targets: Sequence[str] = ()) -> list[str]:
    """The given label columns, or at most five of those that ``probe`` predicts by default."""
    names = (name for name in label_columns(table) if reason_against(table[name].tolist(), name) is None)
    return list(targets) or list(islice(names, _MOST_TARGETS))


def check_explained(folder: Path, bundle: Path) -> None:
    """Check that a folder holds a complete result of ``explain`` with this bundle."""
    record = read_record(record_of(folder)) or {"command": None}
    is_complete = record["command"] == "explain" and record["complete"]
    if not is_complete or record["made_from"].get("model") != checksum(bundle):
        raise ConfigError(
            f"explained: {folder.name} holds no complete result of monai-diffae explain with this bundle; run it again"
        )


def check_targets(cases: Sequence[Case], targets: Sequence[str], towards: str | None = None) -> None:
    """Check that each target is a label that varies, and that one has the class, before the scans are read."""
    names = label_names(cases)
    if towards is not None and not any(str(case.labels.get(name)) == towards for case in cases for name in names):
        raise ConfigError(f"towards: no label has the class {towards!r}; check its spelling")
    for target in targets:
        if target not in names:
            raise ConfigError(f"targets: there is no label {target!r}; choose from: {', '.join(names) or 'none'}")
        read_target([case.labels.get(target) for case in cases], target)


def find_positive(table: pd.DataFrame, target: str, towards: str | None = None) -> str | None:
    """The class of a label to look at: ``towards``, or the rarest not called normal; None for numbers, or F and M."""
    values = table[target].dropna()
    counts = Counter(map(str, values))
    if towards in counts:
        return towards
    unusual = [name for name in counts if not _USUAL.fullmatch(name.lower())]  # the class to look at
    if is_numeric_dtype(values) or len(counts) < 2 or (len(counts) == 2 and len(unusual) != 1):
        return None
    return min(unusual or counts, key=lambda name: (counts[name], name))


def held_out_split(table: pd.DataFrame) -> str | None:
    """The split of the held-out cases of a table of embeddings: ``test``, else ``val``; None: it has neither."""
    splits = set(table["split"]) if "split" in table else set()
    return next((name for name in ("test", "val") if name in splits), None)


def held_out_or_all(table: pd.DataFrame) -> pd.DataFrame:
    """The held-out cases of a table of embeddings; all cases if none is held out."""
    split = held_out_split(table)
    return table if split is None else table[table["split"] == split]


def find_examples(table: pd.DataFrame, target: str, number: int, towards: str | None = None) -> list[str]:
    """Ids of held-out cases from both ends of a label, the positive class being one: first, last, second, ..."""
    labelled = held_out_or_all(table[table[target].notna()])
    positive = find_positive(table, target, towards)
    ends = labelled[target] if positive is None else labelled[target].astype(str) == positive
    ids = labelled.loc[ends.sort_values(kind="stable").index, "id"].astype(str).tolist()
    from_both_ends = [ids[i // 2] if i % 2 == 0 else ids[-1 - i // 2] for i in range(len(ids))]
    return from_both_ends[:number]
