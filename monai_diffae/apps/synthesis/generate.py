"""The command ``generate``: synthetic images of no real patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from monai_diffae.apps.command import command
from monai_diffae.apps.result_files import images_in
from monai_diffae.apps.results import CommandResult, log_to_open_run, remove_images, run_once
from monai_diffae.apps.settings import Run, Sampling, Seed

Side = Literal["positive", "negative"]
Format = Literal["png", "nii.gz"]


@dataclass(frozen=True)
class GenerateResult(CommandResult):
    """The result of :func:`generate`.

    Attributes:
        folder: holds ``images/``, ``generated.csv``, ``generated.parquet`` and ``generated.png``.
        num_images: number of images.
        accepted: fraction of sampled z_sem that the classifier accepted; 1 without a direction.
        is_filtered: whether a direction was given.
        skipped: whether the results were complete already.
    """

    folder: Path
    num_images: int
    accepted: float = 1.0
    is_filtered: bool = False
    skipped: bool = False

    def lines(self) -> Iterator[str]:
        """The accepted fraction if there was a choice, then the folder."""
        if self.is_filtered:
            yield f"accepted {self.accepted:.3f}"
        yield str(self.folder)

    def figures(self) -> dict[str, Any]:
        """The number of images and the accepted fraction."""
        return {"num_images": self.num_images, "accepted": self.accepted}


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
) -> GenerateResult:
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
        The folder, the number of images and the accepted fraction.

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
    from monai_diffae.apps.synthesis.generation import ClassFilter, Generation, generated_suffix
    from monai_diffae.bundle import load_latent
    from monai_diffae.data.file_checksums import file_checksum

    trained = open_bundle(bundle, decoding=sampling, run=run)
    latent = load_latent(bundle, trained.device)
    class_filter = None if direction is None else ClassFilter.read(direction, trained, side, min_probability)
    suffix = generated_suffix(image_format, trained.image_shape)
    made_from = {
        **made_from_bundle(trained, run), "seed": seed, "image_format": suffix,
        "latent_model": latent.sha256,
        "direction": None if direction is None else file_checksum(direction),
    }  # fmt: skip
    if direction is not None:
        made_from |= {"side": side, "min_probability": min_probability}
    generation = Generation(trained, latent, class_filter, seed, suffix, out)

    def make() -> Mapping[str, Any]:
        if run.overwrite:
            remove_images(out / "images")
        figures = {"num_images": num_images, "accepted": generation.run(num_images, run.batch_size)}
        log_to_open_run(figures, [generation.picture], "generated")
        return figures

    # an interrupted run resumes with the existing images, so images of other inputs are refused even without a table
    results = [*generation.results(num_images), *images_in(out / "images")]
    figures, skipped = run_once(out / "generated.json", results, made_from, make, overwrite=run.overwrite)
    return GenerateResult(out, figures["num_images"], figures["accepted"], direction is not None, skipped)
