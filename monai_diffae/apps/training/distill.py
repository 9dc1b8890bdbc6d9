"""The command ``distill``: train a decoder with 1 to 8 evaluations on trajectories of the bundle's own decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from monai_diffae import engines, inferers, metrics
from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Key, Reading, Run, Training
from monai_diffae.apps.training.train import results_folder, run_training, training_result
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.atomic import check_space
from monai_diffae.data.cases import spread_cases
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.errors import CohortError, ConfigError, counted
from monai_diffae.lazy import on_first_use

with on_first_use:
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.inferers import paths


@command
def distill(
    bundle: Path,
    cohort: Path,
    out: Path | None = None,
    *,
    steps: Annotated[int, Ge(1), Le(8)] | None = None,
    training: Training = Training(),
    **keys: Key,
) -> Result:
    """Train a bundle's fast decoder, or resume its training after an interruption.

    It gives nearly the same images as the bundle's own decoder, with few network evaluations. Encoding and inversion
    do not change. ``reconstruct``, ``edit``, ``generate`` and the other commands that make images use it with
    ``--decoder fast``. It starts from the bundle's decoder, and learns from the cohort's scans with their codes, and
    from mixed codes. The model is written to ``models/fast_model.safetensors``, the curves to the folder ``fast``.

    Args:
        bundle: Folder of a trained bundle.
        cohort: The cohort on which the bundle was trained: folder, CSV/TSV or MONAI datalist.
        out: Folder for the results and a copy of the autoencoder; by default the bundle's own.
        steps: Network evaluations of the fast decoder, 1 to 8; by default the bundle's: 4.
        keys: Any keys of ``configs/distill.json``, e.g. ``--learning_rate 0.0001``.

    Returns:
        The folder of the bundle and the number of cases that could not be used.

    Raises:
        ConfigError: the bundle is not trained, or a key or value of the configuration cannot be used.
        CohortError: no usable case for training or validation.
    """
    training = training.with_keys(keys)
    checksum(bundle)  # raises an error if the bundle is not trained
    given = {"dataset_dir": cohort, "output_dir": out}
    workflow = run_training("distill", bundle, training, given, values={"steps": steps})
    folder, read = results_folder(workflow), workflow.parser.get_parsed_content("teaching_cases")
    num_cases = len(read.cases) + len(read.failures)
    next_line = command_line(
        "reconstruct", {"bundle": folder, "cohort": cohort, "out": "reconstructed", "decoder": "fast"}
    )
    failures = folder / "fast" / "failures.csv"
    return training_result(folder, failures, len(read.failures), num_cases, next_line, training.strict)


# -- what ``configs/distill.json`` calls -------------------------------------------------------------------------------


def open_teacher(
    bundle: str,
    cohort: str,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 64,
) -> sessions.Session:
    """Open a trained bundle and the cohort on which its decoder is shown to the fast one."""
    # the levels of an inversion must be those of the decoder
    exact = {"inferer#decoder": "exact", "inferer#inversion": "implicit", "inferer#invert_steps": None}
    run = Run(batch_size=batch_size, device=None if device is None else str(device), overrides=exact)
    return sessions.Session.open(bundle, cohort, reading=Reading(columns=columns or {}, workers=workers), run=run)


def teacher_levels(teacher: sessions.Session, steps: int) -> list[int]:
    """The levels of a decoder with ``steps`` evaluations, chosen from those of the bundle's decoder."""
    return paths.few_levels(teacher.trained.inferer, steps)


def student(teacher: sessions.Session) -> torch.nn.Module:
    """A copy of the bundle's denoiser to be trained."""
    unet: torch.nn.Module = deepcopy(teacher.trained.network.unet)  # type: ignore[assignment]
    return unet.requires_grad_(True)


def image_loss(
    teacher: sessions.Session, gradient_weight: float = 0.0, lpips_weight: float = 0.0, alexnet: str | None = None
) -> engines.ImageLoss:
    """The loss of decoded images that is added to their squared error.

    Args:
        teacher: the bundle and the cohort.
        gradient_weight: weight of the mean absolute difference of gradients, at full, half and quarter size.
        lpips_weight: weight of LPIPS.
        alexnet: AlexNet's weights for LPIPS; None: where torch keeps downloaded weights (TORCH_HOME).
    """
    trained = teacher.trained
    if not lpips_weight:
        return engines.ImageLoss(gradient_weight)
    if trained.inferer.first_stage is not None:
        raise ConfigError("lpips_weight: this bundle's decoder makes latents, which have no LPIPS; set it to 0")
    size = trained.image_shape[1:]
    if min(size) < metrics.SMALLEST_SIDE:
        raise ConfigError(
            f"lpips_weight: images of {' x '.join(map(str, size))} are too small for LPIPS; "
            f"it needs {metrics.SMALLEST_SIDE} along each axis: set it to 0, or use gradient_weight"
        )
    lpips = metrics.PerceptualDistance(alexnet, trained.device, trained.is_colour)
    return engines.ImageLoss(gradient_weight, lpips_weight, lpips, trained.model_range)


def read_teaching_cases(teacher: sessions.Session, out: str, limit: int | None = None) -> sessions.ReadCases:
    """Read the cases of the splits ``train`` and ``val``; unreadable ones are listed in ``failures.csv`` in ``out``.

    At most ``limit`` training cases are used, evenly spread over all of them.
    """
    train = teacher.cohort.split("train")
    cases = [*(train if limit is None else spread_cases(train, limit)), *teacher.cohort.split("val")]
    read = teacher.read(cases, Path(out))
    for split in ("train", "val"):
        if not any(case.split == split for case in read.cases):
            raise CohortError(
                f"no case of the split {split} can be used; a fast decoder needs cases of train and of val: add "
                f"some, or repair those in {Path(out).name}/failures.csv"
            )
    return read


def teaching_trajectories(
    teacher: sessions.Session,
    read: sessions.ReadCases,
    split: str,
    levels: Sequence[int],
    *,
    mixed: float = 0.0,
    seed: int = 0,
    cache_dir: str | None = None,
) -> engines.Trajectories:
    """Compute the trajectories of a split's cases, from x_T to the image, and of codes that are mixed from them.

    Mixed ones are computed by the bundle's decoder: from noise with a z_sem between those of two random cases, and from
    the x_T of a random case with its z_sem, moved by a part of the difference between two others. So the fast decoder
    learns to decode new and edited codes, too.

    Args:
        teacher: the bundle and the cohort.
        read: the cases.
        split: ``train`` or ``val``.
        levels: the levels to keep, from x_T down to x0.
        mixed: number of mixed trajectories per case.
        seed: random seed of the mixed ones.
        cache_dir: folder for the trajectories, which are deleted at the end; by default for temporary files.
    """
    trained = teacher.trained
    positions = [i for i, case in enumerate(read.cases) if case.split == split]
    num_mixed = round(mixed * len(positions))
    computed = engines.Trajectories(cache_dir)
    check_space(computed.file.parent, (len(positions) + num_mixed) * len(levels) * math.prod(trained.x_T_shape) * 4)

    def invert(rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images, encoder_images = (stack.to(trained.device) for stack in read.stacked(rows))
        z_sem = inferers.encode_exactly(encoder_images, trained.network, trained.inferer)
        return z_sem, paths.inverted_trajectory(trained.inferer, images, trained.network, z_sem, levels)

    def decode(numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [_mixture(seed, number, computed, len(positions)) for number in numbers]
        x_T, z_sem = (torch.stack(parts).to(trained.device) for parts in zip(*drawn, strict=True))
        return z_sem, paths.decoded_trajectory(trained.inferer, x_T, trained.network, z_sem, levels)

    def compute(
        make: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor]],
        numbers: Sequence[int],
        ids: list[str],
        text: str,
    ) -> None:
        size = teacher.run.batch_size
        for start in track(range(0, len(numbers), size), text):
            z_sem, trajectories = make(numbers[start : start + size])
            computed.append(trajectories, z_sem, ids[start : start + size])

    compute(invert, positions, [read.cases[i].id for i in positions], f"inverting {counted(len(positions), 'case')}")
    if num_mixed:
        names = [f"mixture {number}" for number in range(num_mixed)]
        compute(decode, range(num_mixed), names, f"decoding {num_mixed} mixed codes")
    return computed


def _mixture(
    seed: int, number: int, inverted: engines.Trajectories, num_cases: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_T (C, *S) and z_sem (Z,): noise and a point between two random cases, or the edited codes of a random case."""
    generator = torch.Generator().manual_seed(seed_of(seed, "mixture", number))
    first, last, edited = torch.randint(num_cases, (3,), generator=generator).tolist()
    z_sem, weight = inverted.z_sem, float(torch.rand((), generator=generator))
    way = weight * (z_sem[last] - z_sem[first])
    x_T = inverted[edited]["trajectory"][0]
    if number % 2:
        return image_noise(tuple(x_T.shape), seed, [number])[0], z_sem[first] + way
    return x_T, z_sem[edited] + way
