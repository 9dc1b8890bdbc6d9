"""The list of commands. Their help, options, checks and bundle runs are generated from the functions in this list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: the word after ``monai-diffae``.
        function: its function, as ``module:name`` below the package; importing it loads neither torch nor MONAI.
        group: its heading in the help.
        example: a command line for its help.
        config: the file of its bundle run in ``configs/``; None: it has no bundle run.
    """

    name: str
    function: str
    group: str
    example: str
    config: str | None = None

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, name = self.function.split(":")
        function: Callable[..., Any] = getattr(import_module(f"monai_diffae.{module}"), name)
        return function

    def declared(self) -> Callable[..., Any]:
        """The function as it is written, with its settings dataclasses and without the checks of its arguments."""
        return inspect.unwrap(self.load())


def _command(name: str, module: str, group: str, example: str, *, run: bool = False, room: str = "apps") -> Command:
    function = name.replace("-", "_")
    config = f"{function}.json" if run else None
    example = f"monai-diffae {name} {example}"
    return Command(name, f"{room}.{module}:{function}", group, example, config)


_START, _TRAIN, _EMBED, _MAKE, _EVALUATE = "Start", "Train", "Embed", "Make images", "Evaluate"
_ANNOTATE, _SHARE = "Annotate with MONAI Label", "Share"

COMMANDS: tuple[Command, ...] = (
    _command("demo", "training.demo", _START, "--out demo"),
    _command("start", "pages.start", _START, "scans/ first_hour --minutes 10"),
    _command("sample-data", "training.sample_data", _START, "virtual --num-patients 200"),
    _command("list-scans", "training.list_scans", _START, "scans scans.csv --table participants.csv"),
    _command("verify", "training.verify", _START, "scans.csv verified"),
    _command("init", "training.init", _START, "my_model --bundle diffae_2d"),
    _command("plan", "training.plan", _START, "scans.csv --minutes 30"),
    _command("train", "training.train", _TRAIN, "my_model scans.csv --minutes 30"),
    _command("train-latent", "training.train_latent", _TRAIN, "my_model scans.csv"),
    _command("distill", "training.distill", _TRAIN, "my_model scans.csv --steps 4"),
    _command("import-official", "training.import_official", _TRAIN, "last.ckpt my_model"),
    _command("export", "training.export", _TRAIN, "my_model exported --format onnx", run=True),
    _command("embed", "embedding.embed", _EMBED, "my_model scans.csv embedded --columns image=file", run=True),
    Command(
        "reconstruct",
        "apps.synthesis.reconstruct:reconstruct",
        _MAKE,
        "monai-diffae reconstruct my_model scans.csv reconstructed --limit 8",
        "inference.json",
    ),
    _command("generate", "synthesis.generate", _MAKE, "my_model generated --num-images 64", run=True),
    _command("interpolate", "synthesis.interpolate", _MAKE, "my_model scans.csv morph --start case-1 --end case-2"),
    _command("combine", "synthesis.combine", _MAKE, "my_model scans.csv mixed --case case-1 --blend case-2"),
    _command("vary", "synthesis.vary", _MAKE, "my_model scans.csv variations --case case-1"),
    _command("traverse", "synthesis.traverse", _MAKE, "my_model embedded/embeddings.parquet traversed"),
    _command("fit-direction", "synthesis.fit_direction", _MAKE, "embedded/embeddings.parquet sex.json --target sex"),
    _command("edit", "synthesis.edit", _MAKE, "my_model scans.csv edited --direction sex.json --limit 8"),
    _command("grade", "synthesis.grade", _MAKE, "embedded/embeddings.parquet grades.csv --direction sick.json"),
    _command("probe", "evaluation.probe", _EVALUATE, "embedded/embeddings.parquet probed --targets age"),
    _command("neighbors", "evaluation.neighbors", _EVALUATE, "embedded/embeddings.parquet near --cases case-1"),
    _command("calibrate", "evaluation.calibrate", _EVALUATE, "my_model normal_scans.csv"),
    _command("anomaly", "evaluation.anomaly", _EVALUATE, "my_model scans.csv unusual"),
    _command("diagnose", "evaluation.diagnose", _EVALUATE, "my_model scans.csv diagnosed"),
    _command("evaluate", "evaluation.evaluate", _EVALUATE, "evaluated --bundle my_model --cohort scans.csv", run=True),
    _command("report", "pages.report", _EVALUATE, "my_model report --cohort scans.csv"),
    _command("compare", "pages.compare", _EVALUATE, "compared --bundle a b --cohort scans.csv"),
    _command("explore", "explore", _EVALUATE, "--bundle my_model --cohort scans.csv", room="explorer"),
    _command("info", "evaluation.info", _EVALUATE, "my_model"),
    _command("push", "sharing.push", _SHARE, "my_model owner/my-model --tag v1"),
    _command("pull", "sharing.pull", _SHARE, "owner/my-model my_copy --revision v1"),
    _command("label-app", "label_app", _ANNOTATE, "my_app --bundle my_model", room="label"),
    _command("label-server", "label_server", _ANNOTATE, "my_app scans", room="label"),
)
