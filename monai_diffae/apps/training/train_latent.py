"""The command ``train-latent``: train the latent DDIM, which samples new z_sem."""

from __future__ import annotations

from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.train import TrainResult, run_training
from monai_diffae.errors import ConfigError


@command
def train_latent(
    bundle: Path,
    cohort: Path | None = None,
    out: Path | None = None,
    *,
    embeddings: Path | None = None,
    training: Training = Training(),
) -> TrainResult:
    """Train a bundle's latent DDIM, which ``generate`` needs, or resume its training after an interruption.

    The cohort is embedded first, into ``embeddings`` in the output folder, unless that is done already. The model is
    written to ``models/latent_model.safetensors``, the curves to the folder ``latent``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: The cohort on which the bundle was trained: folder, CSV/TSV or MONAI datalist.
        out: Folder for the results and a copy of the autoencoder; by default the bundle's own.
        embeddings: Table ``embeddings.parquet`` of that cohort, made with this bundle, instead of the cohort.
        training: How to train.

    Returns:
        The folder of the bundle and the number of cases that could not be embedded.

    Raises:
        ConfigError: the bundle is not trained, there are no data, the embeddings are those of another bundle, or a key
            or value of the configuration cannot be used.
        CohortError: no usable case.

    Example:
        >>> train_latent("no_such_bundle", "cohort.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_such_bundle: there is no models/model.safetensors; train the bundle ...
    """
    unused = {"cohort": cohort is not None, "columns": bool(training.columns), "workers": training.workers is not None}
    for name in (name for name, is_given in unused.items() if is_given and embeddings is not None):
        raise ConfigError(f"{name}: has no effect if there are embeddings; omit {name} or embeddings")
    from monai_diffae.apps.command_lines import command_line
    from monai_diffae.bundle.model_file import checksum
    from monai_diffae.data.failures import count_failures

    checksum(bundle)  # raises an error if the bundle is not trained
    given = {"dataset_dir": cohort, "output_dir": out, "embeddings": embeddings}
    run = run_training("train_latent", bundle, training, given)
    failures = run.folder / "embeddings" / "failures.csv"
    num_failed = 0 if embeddings is not None else count_failures(failures)
    num_cases = len(run.workflow.parser.get_parsed_content("embedded")) + num_failed
    next_line = command_line("generate", {"bundle": run.folder, "out": "generated"})
    return TrainResult(run.folder, failures, num_failed, num_cases, next_line, training.strict)
