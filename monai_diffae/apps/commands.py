"""The list of commands. Their help, options, checks and bundle runs are made from it."""

import inspect
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command."""

    module: str  # the file with its function, which has the same name; importing it loads neither torch nor MONAI
    group: str  # its heading in the help
    arguments: str  # an example for its help
    config: str | None = None  # the file of its bundle run in ``configs/``; None: it has no bundle run

    @property
    def function(self) -> str:
        """The name of its function."""
        return self.module.rpartition(".")[2]

    @property
    def name(self) -> str:
        """The word after ``monai-diffae``."""
        return self.function.replace("_", "-")

    @property
    def example(self) -> str:
        """A line for a shell."""
        return f"monai-diffae {self.name} {self.arguments}"

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        function: Callable[..., Any] = getattr(import_module(f"monai_diffae.{self.module}"), self.function)
        return function

    def declared(self) -> Callable[..., Any]:
        """The function as it is written, with its settings dataclasses and without the checks of its arguments."""
        return inspect.unwrap(self.load())


_START, _TRAIN, _EMBED, _MAKE, _EVALUATE = "Start", "Train", "Embed", "Make images", "Evaluate"
_ANNOTATE, _SHARE = "Annotate with MONAI Label", "Share"

COMMANDS: tuple[Command, ...] = (
    Command("apps.pages.demo", _START, "--out demo"),
    Command("apps.pages.start", _START, "scans/ first_hour --minutes 10"),
    Command("apps.training.sample_data", _START, "virtual --num-patients 200"),
    Command("apps.training.list_scans", _START, "scans scans.csv --table participants.csv"),
    Command("apps.training.verify", _START, "scans.csv verified"),
    Command("apps.training.init", _START, "my_model --bundle diffae_2d"),
    Command("apps.training.plan", _START, "scans.csv --minutes 30"),
    Command("apps.training.prepare", _TRAIN, "my_model scans.csv prepared --part 3/16"),
    Command("apps.training.train", _TRAIN, "my_model scans.csv --minutes 30"),
    Command("apps.training.train_latent", _TRAIN, "my_model scans.csv"),
    Command("apps.training.distill", _TRAIN, "my_model scans.csv --steps 4"),
    Command("apps.training.import_official", _TRAIN, "last.ckpt my_model"),
    Command("apps.training.export", _TRAIN, "my_model exported --format onnx", "inference.json"),
    Command("apps.embedding.embed", _EMBED, "my_model scans.csv embedded --columns image=file", "inference.json"),
    Command("apps.synthesis.reconstruct", _MAKE, "my_model scans.csv reconstructed --limit 8", "inference.json"),
    Command("apps.synthesis.generate", _MAKE, "my_model generated --num-images 64", "inference.json"),
    Command("apps.synthesis.decode", _MAKE, "my_model mixed --cohort scans.csv --case case-1 --blend case-2"),
    Command("apps.synthesis.fit_direction", _MAKE, "embedded/embeddings.parquet sex.json --target sex"),
    Command("apps.synthesis.edit", _MAKE, "my_model scans.csv edited --direction sex.json --limit 8"),
    Command(
        "apps.synthesis.explain",
        _EVALUATE,
        "my_model scans.csv explained --model net.onnx --activation sigmoid --embeddings embeddings.parquet",
    ),
    Command("apps.study.predict", _EVALUATE, "my_model new_scans predicted --labelled embedded/embeddings.parquet"),
    Command("apps.evaluation.probe", _EVALUATE, "embedded/embeddings.parquet probed --targets age"),
    Command("apps.evaluation.neighbors", _EVALUATE, "embedded/embeddings.parquet near --cases case-1"),
    Command(
        "apps.study.reliability", _EVALUATE, "embedded/embeddings.parquet reliable --repeat visit --scanner scanner"
    ),
    Command(
        "apps.study.harmonize", _EVALUATE, "embedded/embeddings.parquet even.parquet --scanner scanner --protect age"
    ),
    Command("apps.study.associate", _EVALUATE, "embedded/embeddings.parquet associated --variables age sex"),
    Command("apps.study.stability", _EVALUATE, "a/embeddings.parquet stable --with b/embeddings.parquet"),
    Command("apps.evaluation.anomaly", _EVALUATE, "my_model scans.csv unusual --split test"),
    Command("apps.evaluation.evaluate", _EVALUATE, "evaluated --bundle my_model --cohort scans.csv", "evaluate.json"),
    Command("apps.pages.report", _EVALUATE, "my_model report --cohort scans.csv"),
    Command("explorer.explore", _EVALUATE, "--bundle my_model --cohort scans.csv"),
    Command("apps.evaluation.info", _EVALUATE, "my_model"),
    Command("apps.sharing.push", _SHARE, "my_model owner/my-model --tag v1"),
    Command("apps.sharing.pull", _SHARE, "owner/my-model my_copy --revision v1"),
    Command("label.label_app", _ANNOTATE, "my_app --bundle my_model"),
    Command("label.label_server", _ANNOTATE, "my_app scans"),
)

FORMER = {
    "interpolate": "decode --show path",
    "combine": "decode",
    "vary": "decode --show variations",
    "traverse": "decode --show components",
    "calibrate": "anomaly --calibrate-with",
    "diagnose": "evaluate",
    "grade": "predict --labelled direction.json",
}
"""Former names of commands, and what to type now."""


def find_command(name: str) -> Command:
    """The command of this name, such as ``fit-direction``."""
    return next(command for command in COMMANDS if command.name == name)


def command_line(name: str, arguments: Mapping[str, Any]) -> str:
    """The line for a shell that calls a command with these arguments, without those that are None, False or empty."""
    words = ["monai-diffae", name]
    # the arguments that need no name stand first
    for key, parameter in inspect.signature(find_command(name).load()).parameters.items():
        value = arguments.get(key)
        if value is None or value is False or value in ((), [], {}):
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            words.append(f"--{key.replace('_', '-')}")
        words += _words(value)
    return shlex.join(words)


def _words(value: Any) -> Iterator[str]:
    if value is True:
        return
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield f"{key}={each if isinstance(each, str) else json.dumps(each, separators=(',', ':'))}"
    elif isinstance(value, (list, tuple)):
        yield from map(str, value)
    else:
        yield str(value)
