"""The command ``generate``: synthetic images of no real patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from cyclopts import Parameter

from monai_diffae import bundle as bundles
from monai_diffae import latents, pictures
from monai_diffae.apps.command import command
from monai_diffae.apps.record import images_in, remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Run, Sampling, Seed
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import numpy as np
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.data import embeddings as tables
    from monai_diffae.transforms import writing

Side = Literal["positive", "negative"]
Format = Literal["png", "nii.gz"]

_IN_PICTURE, _COLUMNS = 32, 8
_CANDIDATES_AT_ONCE = 256
_MOST_CANDIDATES = 1000  # per requested image


@Parameter(name="*")
@dataclass(frozen=True)
class Images:
    """Which images are generated."""

    num_images: Annotated[int, Ge(1)] = 16
    """Number of images."""
    seed: Seed = 0
    """Random seed of z_sem and noise."""
    image_format: Format | None = None
    """File format; by default PNG for 2D images in grey or colour, else NIfTI."""


@Parameter(name="*")
@dataclass(frozen=True)
class Condition:
    """Of which class the images are."""

    direction: Path | None = None
    """Direction file for a label with two classes; only images of one class are generated."""
    side: Side = "positive"
    """With a direction, the class to generate."""
    min_probability: Annotated[float, Ge(0), Lt(1)] = 0.5
    """With a direction, the smallest probability of that class."""


@command
def generate(
    bundle: Path,
    out: Path,
    *,
    images: Images = Images(),
    condition: Condition = Condition(),
    sampling: Sampling = Sampling(),
    run: Run = Run(),
) -> Result:
    """Generate synthetic images of no real patient: z_sem from the latent DDIM, x_T from Gaussian noise.

    ``out/images/`` gets ``00000.png``, ``00001.png``, ...; ``generated.csv`` has one row per image (``id``, ``file``,
    ``seed``, ``candidate``: the number of its z_sem among all sampled ones; and with a direction the ``probability`` of
    the requested class); ``generated.parquet`` has the z_sem, as a table of embeddings; ``generated.png`` shows the
    first 32 images. An image is a function of the weights, the seed and its number, so an interrupted run resumes, and
    more images can be added later. With ``direction``, only z_sem that it assigns to the requested class are decoded:
    the few-shot conditional sampling of the paper (section 4.5).

    Args:
        bundle: Folder of a trained bundle with a latent DDIM, trained by ``train-latent``.
        out: Folder for the results.

    Returns:
        The folder, ``num_images``, and ``accepted``: the fraction of sampled z_sem that the classifier accepted.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained or has no latent DDIM, the direction belongs
            to another model, or ``out`` holds results of other inputs.
        CohortError: the classifier accepts hardly any z_sem.
    """
    trained = sessions.open_bundle(bundle, decoding=sampling, run=run)
    latent = bundles.load_latent(bundle, trained.device)
    direction = None if condition.direction is None else read_direction(condition.direction, trained)
    if direction is not None:
        if direction.kind != "binary":
            raise ConfigError(f"direction: '{direction.target}' is a number; use one for a label with two classes")
        direction.warn_if_chance()
    suffix = writing.image_suffix(trained.image_shape, is_colour=trained.is_colour)
    if images.image_format == "png" and suffix != ".png":
        raise ConfigError(f"image_format: PNG cannot hold images of size {list(trained.image_shape)}; choose nii.gz")
    suffix = suffix if images.image_format is None else f".{images.image_format}"
    num_images, seed, picture = images.num_images, images.seed, out / "generated.png"
    made_from = {
        **sessions.made_from_bundle(trained, run),
        "seed": seed,
        "image_format": suffix,
        "latent_model": latent.sha256,
        "direction": None,
    }
    if condition.direction is not None:
        made_from |= {**vars(condition), "direction": file_checksum(condition.direction)}
    files = [out / "images" / f"{i:05d}{suffix}" for i in range(num_images)]

    def sample(count: int, start: int = 0) -> torch.Tensor:
        return latent.inferer.sample(latent.network, count, seed=seed, start=start).cpu()

    def make() -> Mapping[str, Any]:
        if run.overwrite:
            remove_images(out / "images")
        if direction is None:
            codes = _Codes(sample(num_images), list(range(num_images)), None)
        else:
            codes = _accepted_codes(num_images, sample, direction, condition)
        _write_images(trained, codes, seed, files, suffix, run.batch_size)
        _write_tables(codes, made_from, files, out)
        drawn = [writing.read_image(file, trained.model_range) for file in files[:_IN_PICTURE]]
        parts = enumerate(trained.shown(torch.stack(drawn)).split(_COLUMNS))
        rows = {f"{i * _COLUMNS} to {i * _COLUMNS + len(part) - 1}": part for i, part in parts}
        write_atomic(picture, lambda path: pictures.draw_mosaic(rows, path))
        figures = {"num_images": num_images, "accepted": num_images / (codes.candidates[-1] + 1)}
        log_to_open_run(figures, [picture], "generated")
        return figures

    # an interrupted run resumes with the existing images, so images of other inputs are refused even without a table
    results = [out / "generated.csv", out / "generated.parquet", picture, *files, *images_in(out / "images")]
    figures, skipped = run_once("generate", out, results, made_from, make, overwrite=run.overwrite)
    notes = [] if condition.direction is None else [f"accepted {figures['accepted']:.3f}"]
    return Result(out, figures, notes, skipped=skipped)


@dataclass(frozen=True)
class _Codes:
    """Accepted z_sem (N, D), the number of each among all sampled ones, and its probability with a classifier."""

    z_sem: torch.Tensor
    candidates: list[int]
    probabilities: list[float] | None


def _accepted_codes(
    count: int, sample: Callable[[int, int], torch.Tensor], direction: latents.Direction, condition: Condition
) -> _Codes:
    """Sample z_sem until ``count`` are accepted."""
    z_accepted: list[torch.Tensor] = []
    numbers: list[int] = []
    probabilities: list[float] = []
    while len(numbers) < count:
        start = _CANDIDATES_AT_ONCE * len(z_accepted)
        if start >= _MOST_CANDIDATES * count:
            raise CohortError(
                f"the classifier accepted {len(numbers)} of {start} z_sem, but {count} are needed; lower "
                "min_probability"
            )
        z_sem = sample(_CANDIDATES_AT_ONCE, start)
        positive = direction.predict(z_sem.numpy())
        values = positive if condition.side == "positive" else 1 - positive
        accepted = np.flatnonzero(values >= condition.min_probability)[: count - len(numbers)].tolist()
        z_accepted.append(z_sem[accepted])
        numbers += [start + i for i in accepted]
        probabilities += values[accepted].tolist()
    return _Codes(torch.cat(z_accepted), numbers, probabilities)


def _write_images(
    trained: bundles.TrainedBundle, codes: _Codes, seed: int, files: list[Path], suffix: str, batch_size: int
) -> None:
    """Decode and write the images that do not exist."""
    missing = [i for i, file in enumerate(files) if not file.exists()]
    for start in track(range(0, len(missing), batch_size), f"decoding {counted(len(missing), 'image')}"):
        numbers = missing[start : start + batch_size]
        x_T = image_noise(trained.x_T_shape, seed, [codes.candidates[i] for i in numbers]).to(trained.device)
        images = trained.inferer.decode(codes.z_sem[numbers].to(trained.device), trained.network, x_T)
        for i, image in zip(numbers, images, strict=True):
            file = files[i].with_name(f"{i:05d}")
            trained.write_image(file, image, suffix)


def _write_tables(codes: _Codes, made_from: Mapping[str, Any], files: list[Path], out: Path) -> None:
    """Write the table of the images, and that of their z_sem, which says as those of ``embed`` what it is made from."""
    names = [f"{i:05d}" for i in range(len(files))]
    columns = {"id": names, "file": [f"images/{file.name}" for file in files], "seed": made_from["seed"]}
    columns["candidate"] = codes.candidates
    if codes.probabilities is not None:
        columns["probability"] = codes.probabilities
    embedding = pd.DataFrame({"id": names, **tables.numbered_columns("z", codes.z_sem.numpy())})
    embedding.attrs["monai_diffae"] = {"made_from": dict(made_from)}
    write_atomic(out / "generated.parquet", lambda path: embedding.to_parquet(path, index=False))
    write_csv(out / "generated.csv", pd.DataFrame(columns))
