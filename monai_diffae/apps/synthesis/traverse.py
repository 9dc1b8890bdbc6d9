"""Walks along the principal components of a cohort's z_sem: what varies most, and how it looks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from monai_diffae.apps.embedding.tables import check_made_with
from monai_diffae.apps.results import log_to_open_run, remove_images, run_once
from monai_diffae.apps.session import checksum_of_cases, open_cohort
from monai_diffae.bundle.checksums import checksum, config_checksum, file_checksum
from monai_diffae.bundle.decoding import inferer_settings
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.embeddings import training_codes
from monai_diffae.data.progress import shown
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.latents import LatentStatistics, principal_components
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.transforms.case_images import grid_affine, names_of, titles_of, write_image


@dataclass(frozen=True)
class WalkResult:
    """What :func:`walk` made.

    Attributes:
        folder: with ``images/``, ``components.csv`` and ``walk.png``.
        explained: the share of the variance of normalised z_sem that each component has.
        skipped: whether all was there already.
    """

    folder: Path
    explained: list[float]
    skipped: bool = False


def walk(
    bundle: str | os.PathLike[str],
    embeddings: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_components: int = 3,
    amounts: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    num_noises: int = 4,
    cohort: str | os.PathLike[str] | None = None,
    case: str | None = None,
    seed: int = 0,
    device: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> WalkResult:
    """Walk from the mean z_sem, or from a case's, along the principal components of the training cases' z_sem.

    ``out/images/`` gets the images in the model's grid, named by component and amount in standard deviations; each is
    the mean over ``num_noises`` x_T, the same for all, or decoded with the case's own x_T. ``out/walk.png`` has a row a
    component, ``out/components.csv`` their standard deviation and share of the variance.

    Args:
        bundle: a trained bundle's folder.
        embeddings: the cohort's ``embeddings.parquet``, made with this bundle; its training cases count.
        out: the folder for the results.
        num_components: how many, the largest first.
        amounts: how far, in standard deviations.
        num_noises: x_T that an image is averaged over, where no case is named.
        cohort: where ``case`` is.
        case: the id of the case to start from; None: the mean z_sem.
        seed: of the noise.
        device: where to compute; the GPU if there is one when None.
        columns: what the cohort's table calls our words.
        overwrite: make it anew although it is there.
        overrides: values for keys of the bundle's config.

    Raises:
        ConfigError: no trained bundle, embeddings of another one, an argument out of range, or ``out`` holds another
            result.
        CohortError: no table of embeddings, or no case of that id.

    Example:
        >>> walk("bundle", "embeddings.parquet", "out", case="a")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: case: say --cohort, too: the cohort that it is in
    """
    if (case is None) != (cohort is None):
        raise ConfigError(
            "case: say --cohort, too: the cohort that it is in"
            if cohort is None
            else "cohort: say --case, too: the case to start from"
        )
    for name, value in {"num_components": num_components, "num_noises": num_noises}.items():
        if value < 1:
            raise ConfigError(f"{name}: at least one is needed")
    names = names_of(amounts)
    z_train = training_codes(embeddings)
    check_made_with(embeddings, bundle)
    statistics = LatentStatistics.of(z_train)
    found = principal_components(z_train, statistics, num_components)
    folder = Path(out)
    picture, table_file = folder / "walk.png", folder / "components.csv"
    if case is None or cohort is None:
        trained = load_bundle(bundle, device, overrides)
        opened, cases = None, []
        settings: dict[str, Any] = {
            "model": checksum(bundle),
            "config": config_checksum(bundle),
            **inferer_settings(trained.inferer),
            "num_noises": num_noises,
            "seed": seed,
        }
    else:
        opened = open_cohort(bundle, cohort, device=device, columns=columns, overrides=overrides)
        trained, cases, settings = opened.trained, opened.choose([case]), opened.made_from
    made_from = {
        **settings, "embeddings": file_checksum(embeddings), "num_components": num_components,
        "amounts": list(map(float, amounts)), "overrides": dict(overrides or {}), "cases": checksum_of_cases(cases),
    }  # fmt: skip
    model_range = trained.model_range

    @torch.no_grad()
    def make() -> dict[str, Any]:
        start = torch.from_numpy(statistics.mean)[None].to(trained.device)
        x_T = image_noise(trained.x_T_shape, seed, list(range(num_noises))).to(trained.device)
        source = ".png"
        if opened is not None:
            coded = next(opened.coded(opened.read(cases, folder), "inverting the case"))
            start, x_T, source = coded.z_sem, coded.x_T, coded.case.file

        def decode(z_sem: Tensor) -> Tensor:
            images = trained.inferer.decode(z_sem[None].expand(len(x_T), -1), x_T, trained.network)
            return images.mean(dim=0)

        remove_images(folder / "images")
        rows: dict[str, Tensor] = {}
        for k in shown(range(len(found.directions)), f"walking along {len(found.directions)} components"):
            z_walk = torch.from_numpy(found.walk(start.cpu().numpy(), k, amounts)).to(trained.device)
            images = torch.stack([decode(z_sem) for z_sem in z_walk])
            for name, image in zip(names, images, strict=True):
                write_image(
                    folder / "images" / f"{k + 1:03d}_{name}", image, model_range, source, grid_affine(trained.config)
                )
            rows[f"{k + 1}: {found.explained[k]:.0%}"] = images
        write_atomic(picture, lambda path: draw_mosaic(rows, path, model_range, titles_of(amounts)))
        table = pd.DataFrame({"component": range(1, len(rows) + 1), "std": found.spreads, "explained": found.explained})
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        log_to_open_run({}, [picture], "walk")
        return {"explained": [float(share) for share in found.explained]}

    results = [picture, table_file, folder / "images"]
    numbers, skipped = run_once(folder / "walk.json", results, made_from, make, overwrite=overwrite)
    return WalkResult(folder, numbers["explained"], skipped)
