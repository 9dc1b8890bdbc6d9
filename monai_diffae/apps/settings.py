"""Arguments that several commands share, as small dataclasses. The text below a field is the help of its option.

Every command function takes these dataclasses, or plain mappings of their fields. On the command line and in a bundle's
JSON the fields stand beside the command's own arguments, under the same names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Le, Lt
from cyclopts import Group, Parameter, Token

from monai_diffae.data.atomic import write_atomic
from monai_diffae.diffusion.settings import DecoderName, InversionName, SolverName, SpacingName
from monai_diffae.errors import CohortError, ConfigError, quoted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Colour, Features, Uneven

with on_first_use:
    import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Split = Literal["train", "val", "test"]
Encoder = Literal["trained", "untrained", "pca", "words", "planar"]
PixelBaseline = Literal["pca", "intensity"]
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""A random seed that NumPy, scikit-learn and torch all take."""

_FEW_CASES, _MOST_WORKERS = 256, 8


def pairs(type_: Any, tokens: Sequence[Token], split: Callable[[str, str], Sequence[str]] = str.partition) -> Any:
    """``image=file patient=subject`` as a mapping; ``str.rpartition`` splits at the last ``=``."""
    values: dict[str, str] = {}
    for token in tokens:
        name, _, value = split(token.value, "=")
        if not (name and value):
            raise ValueError(f"{token.value!r} is not of the form name=value")
        if name in values:
            raise ValueError(f"{name!r} is given twice")
        values[name] = value
    return values


def _values(type_: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """``max_epochs=5 columns#image=file`` as a mapping."""
    return {name: _value(text) for name, text in pairs(type_, tokens).items()}


def _key(type_: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option that is a key of a configuration."""
    if isinstance(tokens, Mapping):  # of --network_def.encoder.z_grid
        raise ValueError("the parts of a key are separated by #, not by a dot")
    if len(tokens) > 1:
        words = " ".join(token.value for token in tokens)
        raise ValueError(f"{words!r} are several values; a list is [64,64], and arguments without a name come first")
    return _value(tokens[0].value)


def _value(text: str) -> Any:
    """A text as JSON if it can be read as JSON, else itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    try:
        return words[text.lower()] if text.lower() in words else json.loads(text)
    except ValueError:
        return text


def _numbers(type_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """``-2,0,2`` or ``-2 0 2`` as numbers."""
    return tuple(float(word) for token in tokens for word in token.value.split(",") if word.strip())


def colour_values(colour: Colour | None) -> dict[str, Any]:
    """The values of a configuration that train on colour images in this way."""
    if colour is None:
        return {}
    return {"colour": colour, **({} if colour == "refuse" else {"in_channels": {"grey": 1, "rgb": 3}[colour]})}


PlanningOrTraining = TypeVar("PlanningOrTraining", bound="Planning")
FEWEST_CALIBRATING = 19
"""Scans that calibrate anomaly maps; with fewer, no p-value can be below .05."""
NONE_GIVEN: Mapping[str, Any] = {}
"""The default of columns and overrides that are arguments of a function; every call gets a copy."""

Columns = Annotated[Mapping[str, str], Parameter(accepts_keys=False, n_tokens=-1, converter=pairs)]
LabelKinds = Annotated[
    Mapping[str, Literal["classes", "numbers"]], Parameter(accepts_keys=False, n_tokens=-1, converter=pairs)
]
NamedFiles = Annotated[Mapping[str, Any], Parameter(accepts_keys=False, n_tokens=-1, converter=pairs)]
Overrides = Annotated[Mapping[str, Any], Parameter(accepts_keys=False, n_tokens=-1, converter=_values)]
Key = Annotated[Any, Parameter(n_tokens=-1, converter=_key)]
Sequences = Annotated[Sequence[str], Parameter(consume_multiple=True)]
Numbers = Annotated[Sequence[float], Parameter(converter=_numbers)]


@Parameter(name="*", group=Group("Cases", sort_key=2))
@dataclass(frozen=True)
class Choice:
    """Which cases of a cohort a command uses: those named in ``cases``, else the first ``limit`` of ``split``."""

    cases: Sequence[str] = ()
    """Ids of single cases, in this order."""
    split: Split | None = None
    """Use only the cases of this split; by default all of them, including training cases."""
    limit: Annotated[int, Ge(1)] | None = None
    """Use only the first cases, at most this many; not used with ``cases``."""

    def check(self, splits: Mapping[str, str]) -> None:
        """Check that named cases are in the split, if one is given."""
        other = next((name for name, split in splits.items() if split != self.split), None)
        if self.cases and self.split is not None and other is not None:
            raise CohortError(f"cases: {quoted(other)} is in the split {splits[other]}, not {self.split}; omit split")


@Parameter(name="*", group=Group("Cases", sort_key=2))
@dataclass(frozen=True)
class BalancedChoice(Choice):
    """Which cases are explained: those named in ``cases``, else ``limit`` of ``split``."""

    limit: Annotated[int, Ge(1)] | None = None
    """Explain at most this many cases, drawn at random with equally many of each decision and label as far as
    possible; not used with ``cases``."""


@Parameter(name="*", group=Group("Decoding", sort_key=3))
@dataclass(frozen=True)
class Sampling:
    """How a bundle decodes images, where this differs from the bundle's configuration."""

    steps: Annotated[int, Ge(1)] | None = None
    """Network evaluations for decoding; by default the bundle's."""
    solver: SolverName | None = None
    """Solver of the probability-flow ODE; by default the bundle's."""
    spacing: SpacingName | None = None
    """How the noise levels are spaced; ``leading`` is the paper's; by default the bundle's."""
    decoder: DecoderName | None = None
    """``fast`` decodes with the 1 to 8 evaluations of the decoder that ``distill`` trains; by default ``exact``."""
    eta: Annotated[float, Ge(0), Le(1)] | None = None
    """New noise in each step of the solver ddim, 1: as in DDPM, 0: none; not for a scan's own x_T; by default the
    bundle's."""


@Parameter(name="*", group=Group("Decoding", sort_key=3))
@dataclass(frozen=True)
class Decoding(Sampling):
    """How a bundle inverts and decodes images, where this differs from the bundle's configuration."""

    invert_steps: Annotated[int, Ge(1)] | None = None
    """Network evaluations for inversion; by default as many as ``steps`` if that is given, else the bundle's."""
    inversion: InversionName | None = None
    """``implicit`` undoes the solver's steps, ``ddim`` is the paper's; by default the bundle's."""


@Parameter(name="*", group=Group("Reading", sort_key=4))
@dataclass(frozen=True)
class Reading:
    """How the scans of a cohort are found and read."""

    columns: Columns = field(default_factory=dict)
    """Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``."""
    workers: Annotated[int, Ge(0)] | None = None
    """Processes that read scans ahead; 0: none; by default one per core (at most 8) for 256 cases or more."""
    cache_dir: Path | None = None
    """Folder made by ``prepare``, from which preprocessed scans are read; those that it lacks are added."""

    def workers_for(self, num_cases: int, num_processes: int = 1) -> int:
        """The number of workers for a cohort, in each of ``num_processes`` processes on this machine."""
        if self.workers is not None:
            return self.workers
        if num_cases < _FEW_CASES:
            return 0
        return min(max((os.cpu_count() or 1) // num_processes, 1), _MOST_WORKERS)


@Parameter(name="*", group=Group("Figures", sort_key=6))
@dataclass(frozen=True)
class Figures:
    """How a command writes its charts."""

    figure_format: Literal["png", "svg", "pdf"] = "png"
    """``svg`` or ``pdf``: also write each chart as such a file, beside its PNG."""
    dpi: Annotated[int, Ge(10), Le(1200)] = 120
    """Pixels per inch of the PNG."""

    def files(self, picture: Path) -> list[Path]:
        """The files of a chart."""
        return list(dict.fromkeys([picture, picture.with_suffix(f".{self.figure_format}")]))

    def write(self, picture: Path, figure: Figure) -> None:
        """Write the files of a chart, and delete those in other formats, which may show earlier results."""
        from matplotlib import rc_context

        for suffix in {".svg", ".pdf"} - {f".{self.figure_format}"}:
            picture.with_suffix(suffix).unlink(missing_ok=True)
        with rc_context({"pdf.fonttype": 42}):  # many publishers refuse matplotlib's default, Type 3
            for file in self.files(picture):
                write_atomic(file, lambda path: figure.savefig(path, dpi=self.dpi))


@Parameter(name="*", group=Group("Results", sort_key=6))
@dataclass(frozen=True)
class Writing(Figures):
    """How a command that needs no bundle writes its results."""

    overwrite: bool = False
    """Replace existing results."""


@Parameter(name="*", group=Group("Run", sort_key=5))
@dataclass(frozen=True)
class UnbatchedRun:
    """How a command runs whose images do not depend on a batch size, to the bit."""

    device: str | None = None
    """Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one."""
    overrides: Overrides = field(default_factory=dict)
    """Values for keys of the bundle's configuration, e.g. ``slice_step=1 inferer#invert_tolerance=null``."""
    overwrite: bool = False
    """Replace existing results."""

    @property
    def batched(self) -> Run:
        """The same settings with a batch size of 1."""
        return Run(device=self.device, overrides=self.overrides, overwrite=self.overwrite, batch_size=1)


@Parameter(name="*", group=Group("Run", sort_key=5))
@dataclass(frozen=True)
class Run(UnbatchedRun):
    """How a command runs, whatever it makes."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Images on the device at once."""


@Parameter(name="*", group=Group("Training", sort_key=4))
@dataclass(frozen=True)
class Planning:
    """What is decided about a training before it is planned, where this differs from the bundle's configuration."""

    overlays: Sequence[Path] = ()
    """Configuration files that replace values of the bundle's, in this order, e.g. from its ``configs/overlays``."""
    columns: Columns = field(default_factory=dict)
    """Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``."""
    sequences: Sequences = ()
    """Sequences that become channels of the image, in this order, e.g. ``T1 FLAIR``; by default all of them, if every
    case has them."""
    colour: Colour | None = None
    """Colour images: ``refuse`` them, convert them to ``grey``, or train on ``rgb``; by default the bundle's."""
    device: str | None = None
    """Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the bundle's: the GPU if there is one."""
    overrides: Overrides = field(default_factory=dict)
    """Values for keys of the bundle's configuration, e.g. ``max_epochs=20 inferer#solver=unipc``."""

    def values(self) -> dict[str, Any]:
        """The values that replace those of the configuration, by their ids; ``overrides`` win over the others."""
        return {
            **({"device": self.device} if self.device else {}),
            **{f"columns#{word}": name for word, name in self.columns.items()},
            **({"sequences": list(self.sequences)} if self.sequences else {}),
            **colour_values(self.colour),
            **self.overrides,
        }

    def with_keys(self: PlanningOrTraining, keys: Mapping[str, Any]) -> PlanningOrTraining:
        """These decisions with further overrides, which were given as options: ``--max_epochs 20``."""
        overrides = dict(self.overrides)
        for name, value in keys.items():
            root, *rest = name.split("#")
            key = "#".join([root.replace("-", "_"), *rest])
            if key in overrides:
                raise ConfigError(f"{key}: is given twice; omit one")
            overrides[key] = value
        return replace(self, overrides=overrides)


@Parameter(name="*", group=Group("Training", sort_key=4))
@dataclass(frozen=True)
class Training(Planning):
    """How a bundle is trained, where this differs from the bundle's configuration."""

    uneven: Uneven | None = None
    """DICOM with planned uneven gaps: ``resample`` by position, or ``refuse``; by default the bundle's."""
    seed: Seed | None = None
    """Random seed; by default the bundle's."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Images per training step; by default the bundle's."""
    workers: Annotated[int, Ge(0)] | None = None
    """Processes that read scans; 0: none; by default the bundle's."""
    overwrite: bool = False
    """Start from the first step, and replace the existing model."""
    strict: bool = False
    """End with exit code 3 if any case cannot be used; by default only if more than 10 % of them cannot."""

    def values(self) -> dict[str, Any]:
        """The values that replace those of the configuration, by their ids; ``overrides`` win over the others."""
        named = {key: getattr(self, key) for key in ("seed", "batch_size", "workers", "uneven")}
        named["overwrite"] = self.overwrite or None
        return {key: value for key, value in named.items() if value is not None} | super().values()


@Parameter(name="*", group=Group("Encoder", sort_key=1))
@dataclass(frozen=True)
class Encoding:
    """What encodes the scans."""

    encoder: Encoder = "trained"
    """``trained``, or an encoder that needs no training: ``untrained``, ``pca``, ``words`` or ``planar``."""
    weights: Path | None = None
    """File of the weights of ``planar``: a state dict, ``.pth`` or ``.safetensors``. Nothing is downloaded."""
    backbone: str = "alexnet"
    """Network of ``planar``: a name of torchvision's, such as ``resnet50`` or ``vit_b_16``, or ``timm:NAME``."""
    layers: Sequence[str] = ()
    """Layers of the backbone that give the features; there is a default for AlexNet, ResNet, ConvNeXt and ViT."""
    seed: Seed = 0
    """Random seed of the weights of ``untrained``."""


@Parameter(name="*", group=Group("Comparison", sort_key=3))
@dataclass(frozen=True)
class Comparison:
    """What z_sem is compared with."""

    features: Sequence[Features] = ("z",)
    """Features of the table: ``z`` (z_sem) and ``wide`` (of ``embed --features wide``); all others are compared with
    the first."""
    baselines: NamedFiles = field(default_factory=dict)
    """Features to compare with: CSV or Parquet tables with a column id, e.g. ``radiomics=radiomics.csv``, or the
    embeddings of another model."""
    pixel_baselines: Sequence[PixelBaseline] = ()
    """Features to compute from the pixels and to compare with; these need ``bundle`` and ``cohort``."""
    together: Sequence[str] = ()
    """Also predict from several of these features side by side, e.g. ``wide planar``: ``z``, ``wide``, ``pca``,
    ``intensity`` and the names of ``baselines``."""
    bundle: Path | None = None
    """Folder of the bundle that made the embeddings; used only for ``pixel_baselines``."""
    cohort: Path | None = None
    """The cohort that was embedded: folder, CSV/TSV, MONAI datalist or single scan."""


@Parameter(name="*")
@dataclass(frozen=True)
class Topics:
    """What a report is about, beside the model itself."""

    targets: Sequence[str] = ()
    """Label columns to predict; scans are edited along the first two that z_sem predicts; by default those that are
    found."""
    towards: str | None = None
    """Class towards which scans are edited, e.g. ``malignant``; by default the rarest that is not called normal."""
    scanner: str | None = None
    """Column with the scanner: the page says how well z_sem and the baselines tell it."""
    repeat: str | None = None
    """Column that tells the scans of a patient apart: the page says how reliable z_sem is."""
    explained: Sequence[Path] = ()
    """Folders of results of ``explain`` with this bundle, to show on the page."""


@Parameter(name="*")
@dataclass(frozen=True)
class PageRun:
    """How a page and the results that it shows are made."""

    embed: bool = False
    """Copy all pictures into the page, which can then be sent as a single file of less than 15 MB."""
    device: str | None = None
    """Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one."""
    overwrite: bool = False
    """Replace existing results."""


# -- processes that share the work: those of ``torchrun``, or the jobs of a Slurm array --------------------------------


@dataclass(frozen=True)
class Process:
    """One of the processes that share the work, as ``torchrun`` numbers them among all and on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def device(self) -> str | None:
        """The GPU of this process, or None if it is the only process or there is no GPU."""
        if self.world_size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"


def this_process(part: str | None = None) -> Process:
    """This process by ``part``, such as ``3/16``, or by the environment that ``torchrun`` sets; else there is one."""
    if part is not None:
        numbers = re.fullmatch(r"(\d+)/(\d+)", part)
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ConfigError(f"part: {part!r} is not a part such as 3/16, from 1/16 to 16/16")
        return Process(int(numbers[1]) - 1, int(numbers[2]))
    if not os.environ.get("RANK") and not os.environ.get("WORLD_SIZE"):
        return Process()
    defaults = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # some launchers set only two
    rank, size, local_rank, local_size = texts = [os.environ.get(name) or text for name, text in defaults.items()]
    if not all(map(str.isdecimal, texts)) or int(rank) >= int(size) or int(local_size) == 0:
        raise ConfigError(f"{', '.join(defaults)} are {', '.join(map(repr, texts))}; use torchrun, or unset all")
    return Process(int(rank), int(size), int(local_rank), int(local_size))
