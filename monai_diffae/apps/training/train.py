"""Training a bundle from Python: the same run as ``python -m monai.bundle run``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.errors import ConfigError, find_diffae_error


def train(
    bundle: str | os.PathLike[str],
    cohort: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    config: str = "train",
    overlays: Sequence[str | os.PathLike[str]] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train a bundle with one of its configs; an interrupted training goes on from its checkpoint.

    The same as ``python -m monai.bundle run --config_file DIR/configs/train.json --bundle_root DIR --dataset_dir ...``.

    Args:
        bundle: the bundle's folder.
        cohort: the data, ``dataset_dir`` in the config; what the config says when None.
        out: where the weights and curves go; into the bundle when None.
        config: which of the bundle's ``configs/*.json`` is run; ``train`` trains the autoencoder.
        overlays: further config files, laid over it in this order.
        overrides: config ids and values, such as ``{"max_epochs": 3, "base_channels": 32}``.

    Returns:
        The folder with the trained bundle.

    Raises:
        ConfigError: no such config, an unknown key, or a training that is complete already.
        CohortError: no usable set of cases.

    Example:
        >>> train("bundles/no_such_bundle", "cohort.csv")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_such_bundle: there is no configs/train.json; name a bundle's folder, ...
    """
    root = Path(bundle)
    files = [root / "configs" / f"{config}.json", *map(Path, overlays)]
    for file in files:
        if not file.is_file():
            name = root.name if file is files[0] else file.name
            what = f"configs/{config}.json" if file is files[0] else "such config file"
            raise ConfigError(f"{name}: there is no {what}; name a bundle's folder, made with monai-diffae init")
    from monai.bundle import ConfigWorkflow

    from monai_diffae.bundle.loading import set_values

    values: dict[str, Any] = {"bundle_root": str(root), **(overrides or {})}
    if cohort is not None:
        values["dataset_dir"] = str(cohort)
    if out is not None:
        values["output_dir"] = str(out)
    # it warns of every overlay that lies in another folder, and of having no logging file
    chatter = logging.getLogger("monai.bundle.workflows")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        workflow = ConfigWorkflow([str(file) for file in files], logging_file=False, workflow_type="train")
    finally:
        chatter.setLevel(level)
    # not as ConfigWorkflow's keywords: there, `tracking` (MONAI 1.6.1) is another thing than our key
    set_values(workflow.parser, values, "the config", f"configs/{config}.json")
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:
        known = find_diffae_error(error)
        if known is None or known is error:
            raise
        raise known from error
    return Path(values.get("output_dir", root))
