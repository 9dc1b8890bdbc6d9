"""The command ``prepare``: read and preprocess every scan once, for trainings and embeddings that share the files."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result, failed_cases
from monai_diffae.apps.settings import Key, Planning, Reading, this_process
from monai_diffae.apps.training.plan import read_training_config
from monai_diffae.bundle.code import check_code
from monai_diffae.bundle.config import OF_ONE_SPLIT, build, check_image_size, check_rules, sequence_values
from monai_diffae.data.progress import track, write_failures
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

    from monai_diffae.bundle import parser as parsing
    from monai_diffae.data import cached, cohort_split


@command
def prepare(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    part: str | None = None,
    workers: Annotated[int, Ge(0)] | None = None,
    planning: Planning = Planning(),
    **keys: Key,
) -> Result:
    """Read and preprocess every scan of a cohort once, for trainings and embeddings that share the files.

    ``train``, ``embed`` and other commands read these files with ``--cache-dir``, whatever the number of processes and
    restarts; without them, each training reads the scans itself. Give the same overlays and keys as to ``train``:
    images of another preprocessing are refused. Only new and changed scans are read again, and those that failed.

    Processes of ``torchrun`` share the work. So do the jobs of a Slurm array with ``part``; run the command without it
    when all have ended: it prepares what is missing, and checks all images. The folder shows the patients like the
    scans, and takes 4 bytes per voxel that the model sees.

    Args:
        bundle: Folder of a bundle, or the name of a shipped one.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan; all splits are prepared.
        out: Folder for the files, on a disk that all processes see.
        part: Prepare this part of the cases only, e.g. ``3/16``.
        workers: Processes that read scans; 0: none; by default one per core (at most 8) for 256 cases or more.
        planning: What changes the preprocessing, as for ``train``.
        keys: Any keys of the bundle's configuration, e.g. ``--image_size [96,96]``.

    Returns:
        The folder; ``num_cases``, the images in it, and ``num_failed``, cases that failed, listed in ``failures.csv``.

    Raises:
        ConfigError: the bundle does not exist, a key cannot be used, or ``out`` holds images of another preprocessing.
        CohortError: no usable case.
        MachineError: the disk is full, or a worker died.

    Example:
        >>> prepare("no_bundle", ".", "../out")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: bundle: there is no 'no_bundle'; choose one of: ...
    """
    planning, process = planning.with_keys(keys), this_process(part)
    files = [file.name for file in out.glob("[!.]*")]
    if out.is_file() or (files and not any(name.startswith("part-") for name in files)):
        raise ConfigError(f"out: {out.name} holds other files than those of prepare; choose a new folder")
    parser = read_training_config(bundle, planning.overlays)
    check_code(planning.overrides, "overrides", places=False)
    paths = {"bundle_root": str(bundle), "dataset_dir": str(cohort), "output_dir": str(out)}
    parsing.set_values(parser, {**paths, **planning.values()}, "the configuration", "configs/train.json")
    parser.update(sequence_values(parser.get("sequences", []), parser.get("encoder_sequences", [])))
    check_rules(parser.get())
    for key in OF_ONE_SPLIT:
        if parser.get(key) != "@preprocessing":
            raise ConfigError(f"{key}: prepare reads all splits alike; change preprocessing, or train without prepare")
    first_stage = build(parser, "first_stage", torch.nn.Module) if "first_stage" in parser else None
    with torch.device("meta"):
        network = build(parser, "network_def", torch.nn.Module)
    check_image_size(network, parser.get_parsed_content("image_size"), first_stage)
    split = build(parser, "cohort", cohort_split.SplitCohort)
    items = [case.item() for case in split.cases]
    dataset_values = {
        "data": UserList(items),  # not a list, in whose texts MONAI replaces "#"
        "random_transform": None,
        "cache_dir": str(out),
        "output_dir": None,
        "num_workers": Reading(workers=workers).workers_for(len(items), process.local_world_size),
        "rank": process.rank,
        "world_size": process.world_size,
    }
    parser.update({f"train#dataset#{name}": value for name, value in dataset_values.items()})
    dataset = build(parser, "train#dataset", cached.CachedCases)
    if part is not None:
        dataset.fill_cache()
        return Result(None, notes=[f"part {part} is prepared; when all are, run the command without --part"])
    failures = [*split.failures, *dataset.prepare().failures]
    for index in track(range(0 if process.rank else len(dataset)), f"checking {counted(len(dataset), 'image')}"):
        dataset[index]
    list_of_failures = out / "failures.csv"
    if process.rank == 0:
        write_failures(list_of_failures, failures)
    line = command_line("train", {"bundle": bundle, "cohort": cohort, **vars(planning)})
    return Result(
        out,
        {"num_cases": len(dataset), "num_failed": len(failures)},
        incomplete=failed_cases(len(failures), len(dataset), list_of_failures.name),
        next=[f"next: {line} --cache_dir {out}"],
        content={"failures": list_of_failures},
    )
