"""The command ``train``: train a bundle, as ``python -m monai.bundle run`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from monai_diffae.apps.command import check_overlays, command
from monai_diffae.apps.results import FolderResult
from monai_diffae.apps.settings import Training, colour_values
from monai_diffae.errors import ConfigError, find_diffae_error

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

    from monai_diffae.apps.training.training_run import TrainingRun


_MOST_FAILED = 0.1  # of the cases of a training


@dataclass(frozen=True)
class TrainResult(FolderResult):
    """The result of a training.

    Attributes:
        folder: the trained bundle.
        failures: the list of cases that could not be used; it exists if there are any.
        num_failed: how many they are.
        num_cases: the cases of training and validation, with those that could not be used.
        next_line: the next command, as a line for a shell.
        is_strict: whether no case may fail; else at most 10 % may.
    """

    failures: Path
    num_failed: int
    num_cases: int
    next_line: str
    is_strict: bool = False

    def lines(self) -> Iterator[str]:
        """How many cases could not be used, the folder and the next command."""
        if self.num_failed and self.incomplete is None:
            yield self._failed()
        yield from super().lines()
        yield f"next: {self.next_line}"

    def pictures(self) -> list[Path]:
        """The curves, and the newest reconstructions of validation images."""
        latest = self.folder / "pictures" / "latest.png"
        return [*super().pictures(), *([latest] if latest.is_file() else [])]

    def figures(self) -> dict[str, Any]:
        """The folder, the number of cases, and how many could not be used."""
        return {**super().figures(), "num_cases": self.num_cases, "num_failed": self.num_failed}

    @property
    def incomplete(self) -> str | None:
        """How many cases were not used, if they are too many."""
        most = 0 if self.is_strict else _MOST_FAILED * self.num_cases
        return self._failed() if self.num_failed > most else None

    def _failed(self) -> str:
        failures = self.failures.relative_to(self.folder)
        return f"{self.num_failed} of {self.num_cases} cases could not be used: see {failures}"


@command
def train(
    bundle: Path,
    cohort: Path | None = None,
    out: Path | None = None,
    *,
    start_from: Path | None = None,
    minutes: Annotated[float, Gt(0), Le(100_000)] | None = None,
    training: Training = Training(),
) -> TrainResult:
    """Train a bundle's autoencoder on a cohort, fine-tune its weights, or resume its training after an interruption.

    The same run as ``python -m monai.bundle run training --config_file my_bundle/configs/train.json --dataset_dir
    scans.csv``. When it begins, it writes its values into ``configs/train.json``, so that the same command resumes it
    without its options. The folder ``models`` gets the model (``model.safetensors``), its weights for MONAI's tools
    (``model.pt``) and a checkpoint; ``curves.csv``, ``curves.png`` and ``pictures`` show the progress.

    A bundle that has weights but no checkpoint, such as ``chest_xray`` or one that ``pull`` got, is fine-tuned: a new
    training begins with its weights, and replaces them at its first save. To keep them, train a copy: ``start_from``.

    Args:
        bundle: Folder of a bundle, made with ``monai-diffae init``. With ``minutes`` it is made if it does not exist.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan; by default the ``dataset_dir`` of the configuration.
        out: Folder for the trained bundle; by default the bundle's own.
        start_from: Trained bundle with whose weights a new training begins, on any cohort: the folder is made from it,
            as by ``monai-diffae init``. It is only read.
        minutes: Time for everything: image size, network and epochs are chosen as by ``monai-diffae plan``, and the
            training ends in time. By default, all of them are as configured.
        training: How to train.

    Returns:
        The folder of the trained bundle and the number of cases that could not be used.

    Raises:
        ConfigError: the bundle or an overlay does not exist, a key or value of the configuration cannot be used, the
            training is complete already, or ``start_from`` is not trained.
        CohortError: no usable case.
        MachineError: the training does not fit into memory, or the disk is full.

    Example:
        >>> train("no_such_bundle", "cohort.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_such_bundle: there is no configs/train.json; make a bundle with ...
    """
    from monai_diffae.apps.command_lines import command_line
    from monai_diffae.data.failures import count_failures

    watch = None
    if start_from is not None:
        bundle, out = begin_from(out or bundle, start_from), None
    if minutes is not None:
        from monai_diffae.apps.training.planned import make_bundle, with_plan

        if cohort is not None and not bundle.exists():
            make_bundle(bundle, cohort, training.columns)
        _config_file(bundle, "train")
        planned = with_plan(bundle, cohort, out, training, minutes)
        training, watch = planned.training, planned.watch
    run = run_training("train", bundle, training, {"dataset_dir": cohort, "output_dir": out}, watch)
    parser = run.workflow.parser
    split_cohort = parser.get_parsed_content("cohort")
    num_cases = sum(len(split_cohort.split(name)) for name in ("train", "val")) + len(split_cohort.failures)
    data = parser.get_parsed_content("dataset_dir")
    if "inferer" in parser:
        next_line = command_line("embed", {"bundle": run.folder, "cohort": data, "out": "results"})
    else:  # it is a first stage
        overlays = ["my_model/configs/overlays/latent_space.json"]
        latent = {"overlays": overlays, "overrides": {"first_stage_bundle": str(run.folder)}}
        next_line = command_line("train", {"bundle": "my_model", "cohort": data, **latent})
    failures = run.folder / "failures.csv"
    return TrainResult(run.folder, failures, count_failures(failures), num_cases, next_line, training.strict)


def run_training(
    config: str,
    bundle: Path,
    training: Training,
    given: Mapping[str, Path | None],
    watch: Callable[[ConfigWorkflow], object] | None = None,
    values: Mapping[str, Any] | None = None,
) -> TrainingRun:
    """Run one of a bundle's training configurations.

    ``watch`` is called with the run before it trains. None in ``given`` or ``values`` stands for what the configuration
    says.
    """
    out = given.get("output_dir")
    if out is not None and not training.overwrite and _has_values(config, bundle, out):
        bundle = out
    file = _config_file(bundle, config)
    check_overlays(training.overlays)
    from monai_diffae.apps.training.training_run import open_training_run

    chosen = {key: value for key, value in (values or {}).items() if value is not None}
    values = {"bundle_root": str(bundle), **chosen, **_values(given, training)}
    run = open_training_run(file, training.overlays, values)
    try:
        run.workflow.initialize()
        if watch is not None:
            watch(run.workflow)
        run.workflow.run()
        run.workflow.finalize()
    except Exception as error:
        cause = find_diffae_error(error)
        if cause is None or cause is error:
            raise
        raise cause from error
    return run


def _has_values(config: str, bundle: Path, out: Path) -> bool:
    """Whether the configuration of the folder for the results has the values with which its training began."""
    from monai_diffae.bundle.folders import check_no_other_model

    if config != "train":  # it has the bundle's model, too
        check_no_other_model(bundle, out)
        if not (out / "models" / "model.safetensors").is_file():
            return False
    return (out / "configs" / f"{config}.json").is_file()


def begin_from(folder: Path, start_from: Path) -> Path:
    """Make a bundle with the weights of a trained one to fine-tune them; a training that did so is resumed."""
    from monai_diffae.bundle import checksum, init_bundle
    from monai_diffae.bundle.layout import model_file
    from monai_diffae.data.tensor_files import read_torch_file

    weights, checkpoint = checksum(start_from), folder / "models" / "checkpoint.pt"
    if model_file(start_from).resolve() == (folder / "models" / "model.safetensors").resolve():
        raise ConfigError(f"start_from: {folder.name} is the folder that is trained; choose a new folder, or omit it")
    if not folder.exists() or not any(folder.iterdir()):
        return init_bundle(folder, start_from)
    if checkpoint.is_file():
        begun = read_torch_file(checkpoint, "cannot be read as a checkpoint", prefix="started_from").get("started_from")
    else:
        begun = checksum(folder)
    if begun != weights:
        raise ConfigError(
            f"{folder.name}: exists, and was not made from {start_from.name}; choose a new folder, or omit start_from"
        )
    return folder


def _config_file(bundle: Path, config: str) -> Path:
    file = bundle / "configs" / f"{config}.json"
    if not file.is_file():
        raise ConfigError(
            f"{bundle.name}: there is no configs/{config}.json; make a bundle with monai-diffae init, or choose another"
        )
    return file


def _values(given: Mapping[str, Path | None], training: Training) -> dict[str, Any]:
    """The values that replace those of the configuration, by their ids; ``overrides`` win over the other arguments."""
    named = {
        **given, "seed": training.seed, "device": training.device, "batch_size": training.batch_size,
        "workers": training.workers, "uneven": training.uneven, "overwrite": training.overwrite or None,
    }  # fmt: skip
    values = {key: str(value) if isinstance(value, Path) else value for key, value in named.items()}
    columns = {f"columns#{word}": name for word, name in training.columns.items()}
    given_values = {key: value for key, value in values.items() if value is not None}
    return {**given_values, **columns, **colour_values(training.colour), **training.overrides}
