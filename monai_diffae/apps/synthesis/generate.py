"""The command ``generate``: synthetic images of no real patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result, images_in, log_to_open_run, remove_images, run_once
from monai_diffae.apps.settings import Run, Sampling, Seed
from monai_diffae.apps.synthesis.directions import read_direction
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import np, pd, pictures, torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from monai_diffae.bundle import TrainedBundle, TrainedLatent
    from monai_diffae.latents import Direction

Side = Literal["positive", "negative"]
Format = Literal["png", "nii.gz"]

_IN_PICTURE, _COLUMNS = 32, 8
_CANDIDATES_AT_ONCE = 256
_MOST_CANDIDATES = 1000  # per requested image


@command
def generate(
    bundle: Path,
    out: Path,
    *,
    num_images: Annotated[int, Ge(1)] = 16,
    seed: Seed = 0,
    direction: Path | None = None,
    side: Side = "positive",
    min_probability: Annotated[float, Ge(0), Lt(1)] = 0.5,
    image_format: Format | None = None,
    sampling: Sampling = Sampling(),
    run: Run = Run(),
) -> Result:
    """Generate synthetic images of no real patient: z_sem from the latent DDIM, x_T from Gaussian noise.

    ``out/images/`` gets ``00000.png``, ``00001.png``, ...; ``generated.csv`` has one row per image (``id``, ``file``,
    ``seed``, ``candidate``: the number of its z_sem among all sampled ones; and with a direction the ``probability`` of
    the requested class); ``generated.parquet`` has the z_sem, as a table of embeddings; ``generated.png`` shows the
    first 32 images. An image is a function of the weights, the seed and its number (to about 1e-6 for different
    batches), so an interrupted run resumes, and more images can be added later.

    With ``direction``, a linear classifier fitted to a few labels, only the z_sem that it assigns to the requested
    class are decoded: the few-shot conditional sampling of the paper (section 4.5).

    Args:
        bundle: Folder of a trained bundle with a latent DDIM, trained by ``train-latent``.
        out: Folder for the results.
        num_images: Number of images.
        seed: Random seed of z_sem and noise.
        direction: Direction file for a label with two classes; only images of one class are generated.
        side: With a direction, the class to generate.
        min_probability: With a direction, the smallest probability of that class.
        image_format: File format; by default PNG for 2D images with 1 or 3 channels, else NIfTI.
        sampling: How to decode.
        run: How the command runs.

    Returns:
        The folder, ``num_images``, and ``accepted``: the fraction of sampled z_sem that the classifier accepted.

    Raises:
        ConfigError: an argument is out of range, the bundle is not trained or has no latent DDIM, the direction belongs
            to another model, or ``out`` holds results of other inputs.
        CohortError: the classifier accepts hardly any z_sem.

    Example:
        >>> generate("bundle", "out", num_images=0)
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: num_images: 0 is below 1
    """
    from monai_diffae.apps.session import made_from_bundle, open_bundle
    from monai_diffae.bundle import load_latent
    from monai_diffae.data.fingerprints import file_checksum

    trained = open_bundle(bundle, decoding=sampling, run=run)
    latent = load_latent(bundle, trained.device)
    class_filter = None if direction is None else _ClassFilter.read(direction, trained, side, min_probability)
    suffix = _suffix_of(image_format, trained.image_shape)
    made_from = {
        **made_from_bundle(trained, run), "seed": seed, "image_format": suffix,
        "latent_model": latent.sha256,
        "direction": None if direction is None else file_checksum(direction),
    }  # fmt: skip
    if direction is not None:
        made_from |= {"side": side, "min_probability": min_probability}
    generation = _Generation(trained, latent, class_filter, seed, suffix, out)

    def make() -> Mapping[str, Any]:
        if run.overwrite:
            remove_images(out / "images")
        figures = {"num_images": num_images, "accepted": generation.run(num_images, run.batch_size)}
        log_to_open_run(figures, [generation.picture], "generated")
        return figures

    # an interrupted run resumes with the existing images, so images of other inputs are refused even without a table
    results = [*generation.results(num_images), *images_in(out / "images")]
    figures, skipped = run_once("generate", out, results, made_from, make, overwrite=run.overwrite)
    notes = [] if direction is None else [f"accepted {figures['accepted']:.3f}"]
    return Result(out, figures, notes, skipped=skipped)


@dataclass(frozen=True)
class _ClassFilter:
    """A linear classifier that selects the z_sem of one class, ``positive`` or ``negative``."""

    direction: Direction
    side: Side
    min_probability: float

    @classmethod
    def read(cls, file: Path, trained: TrainedBundle, side: Side, min_probability: float) -> _ClassFilter:
        """Read the classifier from a direction file."""
        direction = read_direction(file)
        direction.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
        if direction.kind != "binary":
            raise ConfigError(
                f"direction: '{direction.target}' is a number; use a direction for a label with two classes"
            )
        direction.warn_if_chance()
        return cls(direction, side, min_probability)

    def probabilities(self, z_sem: Tensor) -> NDArray[np.float64]:
        """Return the probability of the requested class for each z_sem (N, D): ``[N]``."""
        positive = self.direction.predict(z_sem.numpy())
        return positive if self.side == "positive" else 1 - positive


@dataclass(frozen=True)
class _Codes:
    """Accepted z_sem (N, D), the number of each among all sampled ones, and its probability with a classifier."""

    z_sem: Tensor
    candidates: list[int]
    probabilities: list[float] | None


@dataclass(frozen=True)
class _Generation:
    """Generates the images of one seed."""

    trained: TrainedBundle
    latent: TrainedLatent
    class_filter: _ClassFilter | None
    seed: int
    suffix: str
    folder: Path

    @property
    def picture(self) -> Path:
        """The mosaic of the first images."""
        return self.folder / "generated.png"

    def results(self, num_images: int) -> list[Path]:
        """The table, the codes, the picture and the images, in this order."""
        tables = [self.folder / f"generated.{suffix}" for suffix in ("csv", "parquet")]
        return [*tables, self.picture, *self._files(num_images)]

    def run(self, num_images: int, batch_size: int) -> float:
        """Write the missing images, all tables and the picture; return the accepted fraction of sampled z_sem."""
        from monai_diffae.data.atomic import write_atomic
        from monai_diffae.data.progress import track
        from monai_diffae.transforms.writing import write_image

        codes = self._accepted_codes(num_images)
        files = self._files(num_images)
        missing = [i for i, file in enumerate(files) if not file.exists()]
        for start in track(range(0, len(missing), batch_size), f"decoding {counted(len(missing), 'image')}"):
            numbers = missing[start : start + batch_size]
            for i, image in zip(numbers, self._decode(codes, numbers), strict=True):
                file = files[i].with_name(_name(i))
                write_image(file, image, self.trained.model_range, self.suffix, self.trained.grid_affine)
        self._write_tables(codes, files)
        model_range = self.trained.model_range
        rows = _rows_of_picture(files[:_IN_PICTURE], model_range)
        write_atomic(self.picture, lambda path: pictures.draw_mosaic(rows, path, model_range))
        return num_images / (codes.candidates[-1] + 1)

    def _files(self, num_images: int) -> list[Path]:
        return [self.folder / "images" / f"{_name(i)}{self.suffix}" for i in range(num_images)]

    def _decode(self, codes: _Codes, numbers: list[int]) -> Tensor:
        from monai_diffae.diffusion.noise import image_noise

        trained = self.trained
        x_T = image_noise(trained.x_T_shape, self.seed, [codes.candidates[i] for i in numbers]).to(trained.device)
        return trained.inferer.decode(codes.z_sem[numbers].to(trained.device), x_T, trained.network)

    def _write_tables(self, codes: _Codes, files: list[Path]) -> None:
        from monai_diffae.data.atomic import write_atomic

        table_file, codes_file = self.results(0)[:2]
        names = [_name(i) for i in range(len(files))]
        columns: dict[str, Any] = {"id": names, "file": [f"images/{file.name}" for file in files], "seed": self.seed}
        columns["candidate"] = codes.candidates
        if codes.probabilities is not None:
            columns["probability"] = codes.probabilities
        table = pd.DataFrame(columns)
        z_columns = {f"z_{i:03d}": column.numpy() for i, column in enumerate(codes.z_sem.T)}
        embedding = pd.DataFrame({"id": names, **z_columns})
        write_atomic(codes_file, lambda path: embedding.to_parquet(path, index=False))
        write_atomic(table_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))

    def _accepted_codes(self, count: int) -> _Codes:
        """Sample z_sem until ``count`` are accepted."""
        if self.class_filter is None:
            _, z_sem = next(self._candidates(count))
            return _Codes(z_sem, list(range(count)), None)
        z_accepted: list[Tensor] = []
        numbers: list[int] = []
        probabilities: list[float] = []
        for start, z_sem in self._candidates(_CANDIDATES_AT_ONCE):
            probability = self.class_filter.probabilities(z_sem)
            is_accepted = probability >= self.class_filter.min_probability
            accepted = np.flatnonzero(is_accepted)[: count - len(numbers)]
            z_accepted.append(z_sem[accepted])
            numbers += [start + int(i) for i in accepted]
            probabilities += [float(probability[i]) for i in accepted]
            num_sampled = start + len(z_sem)
            if len(numbers) == count:
                break
            if num_sampled >= _MOST_CANDIDATES * count:
                raise CohortError(
                    f"the classifier accepted {len(numbers)} of {num_sampled} z_sem, but {count} are needed; "
                    "lower min_probability"
                )
        return _Codes(torch.cat(z_accepted), numbers, probabilities)

    def _candidates(self, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """Yield ``at_once`` new z_sem again and again, with the number of the first of them."""
        start = 0
        while True:
            yield start, self.latent.inferer.sample(self.latent.network, at_once, seed=self.seed, start=start).cpu()
            start += at_once


def _suffix_of(image_format: Format | None, shape: tuple[int, ...]) -> str:
    """The suffix of images ``[C, *S]``."""
    from monai_diffae.transforms.writing import image_suffix

    possible = image_suffix(shape)
    if image_format == "png" and possible != ".png":
        raise ConfigError(f"image_format: PNG cannot hold images of size {list(shape)}; choose nii.gz")
    return possible if image_format is None else f".{image_format}"


def _name(number: int) -> str:
    return f"{number:05d}"


def _rows_of_picture(files: list[Path], model_range: tuple[float, float]) -> dict[str, Tensor]:
    from monai_diffae.transforms.writing import read_image

    images = [read_image(file, model_range) for file in files]
    starts = range(0, len(images), _COLUMNS)
    return {f"{s} to {min(s + _COLUMNS, len(images)) - 1}": torch.stack(images[s : s + _COLUMNS]) for s in starts}
