"""The tasks that answer with an image in the scan's intensities: ``diffae_reconstruct`` and ``diffae_edit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.settings import Seed
from monai_diffae.apps.synthesis.directions import read_direction
from monai_diffae.bundle.model import Detail
from monai_diffae.errors import ConfigError
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.task import Answer, DiffAETask, NativeImage
from monai_diffae.transforms.native import fits_png

Steps = Annotated[int, Ge(0), Le(1000)]
Evaluations = Annotated[int, Ge(0), Le(10_000)]


@command
def diffae_reconstruct(
    request: Any,
    *,
    mode: Literal["z_sem", "x_T"] = "z_sem",
    steps: Steps = 0,
    draws: Annotated[int, Ge(1), Le(100)] = 1,
    seed: Seed = 0,
    max_evaluations: Evaluations = 100,
) -> Answer:
    """The scan, decoded from its codes: in the scan's own shape, affine and intensities.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.
        mode: ``z_sem`` decodes z_sem with Gaussian noise; ``x_T`` with the inverted x_T, which is near-exact.
        steps: network evaluations; 0: the bundle's own setting.
        draws: in mode ``z_sem``, the result is the mean over this many decodings.
        seed: random seed of the noise.
        max_evaluations: in mode ``x_T``, at most this many network evaluations for refining the inversion.

    Returns:
        The image; ``mse``: mean squared error in the model's range.

    Raises:
        ScanError: the scan cannot be used.
    """
    case = request.open()
    images = case.reconstruct(mode, steps=steps or None, draws=draws, seed=seed, max_evaluations=max_evaluations)
    mse = float((images - case.images).square().mean())
    image = NativeImage(case, case.back(images), fits_png(request.image, case.scan))
    return Answer({"mode": mode, "mse": mse}, image)


@command
def diffae_edit(
    request: Any,
    *,
    direction: str = "",
    strength: Annotated[float, Ge(-10), Le(10)] = 2.0,
    detail: Detail = "own",
    steps: Steps = 0,
    max_evaluations: Evaluations = 100,
) -> Answer:
    """The scan, edited along a direction in z_sem that is stored in the app's folder ``directions``.

    Args:
        request: a :class:`~monai_diffae.label.task.Request`.
        direction: name of a file in ``directions``, without ``.json``; may be omitted if there is only one.
        strength: how far to move, in standard deviations of the training cases; negative: the other way.
        detail: ``own`` adds the change to the scan, which keeps its own detail; ``model`` is the decoded image.
        steps: network evaluations; 0: the bundle's own setting.
        max_evaluations: at most this many network evaluations for refining the inversion.

    Returns:
        The image; ``prediction``: what the direction predicts for the scan and for the moved z_sem.

    Raises:
        ConfigError: there is no such direction, or it is of another model.
        ScanError: the scan cannot be used.
    """
    line = read_direction(_direction_file(request.folder, direction))
    trained = request.trained
    line.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
    case = request.open()
    codes = case.z_sem.cpu().numpy()
    moved = line.move(codes, strength)
    edited = case.edited(
        torch.from_numpy(moved).to(case.z_sem), detail=detail, steps=steps or None, max_evaluations=max_evaluations
    )
    figures = {
        "direction": line.target,
        "strength": strength,
        "detail": detail,
        "prediction": {"scan": line.predict(codes).tolist(), "edited": line.predict(moved).tolist()},
    }
    return Answer(figures, NativeImage(case, edited, fits_png(request.image, case.scan)))


class EditTask(DiffAETask):
    """The task ``diffae_edit``, whose options name the directions that the app has at the moment."""

    def config(self) -> dict[str, Any]:
        """The options, with the names of all directions."""
        return {**super().config(), "direction": direction_names(self._folder) or ""}


def direction_names(folder: AppFolder) -> list[str]:
    """The names of the files in an app's folder ``directions``, sorted."""
    return sorted(path.stem for path in folder.directions.glob("*.json")) if folder.directions.is_dir() else []


def _direction_file(folder: AppFolder, name: str) -> Path:
    names = direction_names(folder)
    if not names:
        raise ConfigError(
            "direction: the app has none; run monai-diffae fit-direction and put its file into directions"
        )
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:  # a name of the list cannot lead out of the folder
        raise ConfigError(f"direction: {name[:40]!r} is not one of {', '.join(names[:8])}")
    return folder.directions / f"{name}.json"
