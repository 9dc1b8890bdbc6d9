"""The command ``train-latent``: train the latent DDIM, which samples new z_sem; and what its configuration calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Key, Training
from monai_diffae.apps.training.train import results_folder, run_training, training_result
from monai_diffae.bundle.layout import model_file
from monai_diffae.bundle.model_file import checksum, read_description
from monai_diffae.data.cases import Case, assign_splits
from monai_diffae.data.progress import count_failures
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    import pandas as pd
    import torch

    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.latents import statistics


@command
def train_latent(
    bundle: Path,
    cohort: Path | None = None,
    out: Path | None = None,
    *,
    embeddings: Path | None = None,
    training: Training = Training(),
    **keys: Key,
) -> Result:
    """Train a bundle's latent DDIM, which ``generate`` needs, or resume its training after an interruption.

    The cohort is embedded first, into ``embeddings`` in the output folder, unless that is done already. The model is
    written to ``models/latent_model.safetensors``, the curves to the folder ``latent``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: The cohort on which the bundle was trained: folder, CSV/TSV or MONAI datalist.
        out: Folder for the results and a copy of the autoencoder; by default the bundle's own.
        embeddings: Table ``embeddings.parquet`` of that cohort, made with this bundle, instead of the cohort.
        keys: Any keys of ``configs/train_latent.json``, e.g. ``--learning_rate 0.0001``.

    Returns:
        The folder of the bundle and the number of cases that could not be embedded.

    Raises:
        ConfigError: the bundle is not trained, there are no data, the embeddings are those of another bundle, or a key
            or value of the configuration cannot be used.
        CohortError: no usable case.
    """
    training = training.with_keys(keys)
    unused = {"cohort": cohort is not None, "columns": bool(training.columns), "workers": training.workers is not None}
    for name in (name for name, is_given in unused.items() if is_given and embeddings is not None):
        raise ConfigError(f"{name}: has no effect if there are embeddings; omit {name} or embeddings")
    checksum(bundle)  # raises an error if the bundle is not trained
    given = {"dataset_dir": cohort, "output_dir": out, "embeddings": embeddings}
    workflow = run_training("train_latent", bundle, training, given)
    folder = results_folder(workflow)
    failures = folder / "embeddings" / "failures.csv"
    num_failed = 0 if embeddings is not None else count_failures(failures)
    num_cases = len(workflow.parser.get_parsed_content("embedded")) + num_failed
    next_line = command_line("generate", {"bundle": folder, "out": "generated"})
    return training_result(folder, failures, num_failed, num_cases, next_line, training.strict)


# -- what ``configs/train_latent.json`` calls --------------------------------------------------------------------------


def embedded_cohort(
    bundle: str,
    cohort: str | None,
    out: str,
    *,
    embeddings: str | None = None,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Read a cohort's embeddings, or embed the cohort into ``out`` unless that is done; processes share this."""
    from monai_diffae.apps.embedding.embed import embed

    if embeddings is not None:
        table = tables.read_embeddings(embeddings)
        table_origin.check_same_model(embeddings, bundle)
        table_origin.check_same_preprocessing(embeddings, read_description(model_file(bundle)))
        return _with_split(table)
    if cohort is None:
        raise ConfigError(
            "cohort: is required unless there are embeddings; give one of them (in a bundle run, dataset_dir or "
            "embeddings)"
        )
    device = None if device is None else str(device)
    made = embed(bundle, cohort, out, columns=columns or {}, workers=workers, device=device, overwrite=overwrite)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first process writes the table
    return _with_split(tables.read_embeddings(Path(made)))


def _with_split(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a split, which scans that are new to the autoencoder do not have."""
    if "split" in table:
        return table
    first = table.groupby(tables.patients_of(table))["id"].transform("min")  # names of patients depend on the folder
    cases = [Case(str(name), {}, str(patient)) for name, patient in zip(table["id"], first, strict=True)]
    return table.assign(split=[str(case.split) for case in assign_splits(cases)])


def training_statistics(table: pd.DataFrame) -> statistics.LatentStatistics:
    """Mean and standard deviation of the training cases' z_sem."""
    return statistics.LatentStatistics.of(tables.z_matrix(tables.split_rows(table, "train")))
