"""The command ``decode``: images from the codes of cases, mixed and moved. ``explore`` shows the same on its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import inferers, latents, pictures, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import (
    NONE_GIVEN,
    Choice,
    Columns,
    Decoding,
    Numbers,
    Reading,
    Seed,
    UnbatchedRun,
    pairs,
)
from monai_diffae.apps.synthesis.fit_direction import STRENGTHS, read_direction, strength_names, strength_titles
from monai_diffae.apps.tracking import log_to_open_run
from monai_diffae.data.atomic import write_atomic, write_csv
from monai_diffae.data.fingerprints import file_checksum, json_digest
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError, counted
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Detail

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.data import scan_writing
    from monai_diffae.inferers import paths

Show = Literal["image", "path", "variations", "components"]
_UNUSED = {  # the options that do nothing
    "image": "num_images components strengths num_noises",
    "path": "weight detail components strengths num_noises",
    "variations": "noise_of detail components strengths num_noises",
    "components": "detail num_images num_noises",
    "components without a case": "blend weight noise_of detail num_images",
}
_IN_PICTURE = 8  # variations

# at the last =, because folders of files may have one in their names, as Hive's
_PAIRS = Parameter(accepts_keys=False, n_tokens=-1, converter=partial(pairs, split=str.rpartition))


@Parameter(name="*", group=Group("Codes", sort_key=2))
@dataclass(frozen=True)
class Combination:
    """The codes of an image: those of a case, mixed with others and moved."""

    blend: str | None = None
    """Id of a second case: z_sem is interpolated linearly, x_T spherically."""
    weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the second case: 0 none, 1 all; used only with ``blend``."""
    moves: Annotated[Mapping[str, float], _PAIRS] = field(default_factory=dict)
    """How far z_sem is moved along direction files, or principal components by their numbers from 1, in standard
    deviations of the training cases, e.g. ``sex.json=1.5 2=-1``."""
    noise_of: str | None = None
    """Id of the case whose x_T is used instead."""
    noise_seed: Seed | None = None
    """Use Gaussian noise of this random seed as x_T, instead of that of any case. ``variations``, and
    ``components`` without a case, always use noise, by default of seed 0."""
    detail: Detail = "model"
    """``model`` writes what the model decodes; ``own`` adds the change to the scan, which keeps its own detail (only
    with the case's own x_T, without ``blend``)."""

    @property
    def x_T_cases(self) -> list[str]:
        """The ids of the other cases whose x_T is used."""
        name = self.noise_of or self.blend
        return [] if name is None or self.noise_seed is not None else [name]

    @property
    def has_own_x_T(self) -> bool:
        """Whether x_T is that of the case alone."""
        return self.blend is self.noise_of is self.noise_seed is None

    def check_detail(self) -> None:
        """Refuse to add the change to the scan if the image is not an edit of that scan."""
        if self.detail == "own" and not self.has_own_x_T:
            raise ConfigError("detail: own is for edits with the case's own x_T; choose model, or omit the other x_T")

    def codes(
        self, case: str | None, opened: Mapping[str, bundles.ModelCase], axes: Axes, trained: bundles.TrainedBundle
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The z_sem (1, D) and x_T (1, C, *S) of a case, or of the mean; ``opened`` has all cases by id."""
        if case is None or self.noise_seed is not None:
            x_T = image_noise(trained.x_T_shape, 0, [self.noise_seed or 0]).to(trained.device)
        elif self.noise_of is not None or self.blend is None:
            x_T = opened[self.noise_of or case].x_T
        else:
            x_T = paths.slerp(opened[case].x_T, opened[self.blend].x_T, [self.weight])
        z_sem = torch.from_numpy(axes.components.statistics.mean[None]) if case is None else opened[case].z_sem
        if self.blend is not None:
            z_sem = paths.lerp(z_sem, opened[self.blend].z_sem, [self.weight])
        return torch.from_numpy(axes.move(z_sem.cpu().numpy(), self.moves)).to(trained.device), x_T


@Parameter(name="*", group=Group("Several images", sort_key=2))
@dataclass(frozen=True)
class Series:
    """Which images are shown together."""

    num_images: Annotated[int, Ge(2), Le(1000)] | None = None
    """Number of images of a ``path``, with both ends (by default 9), or of ``variations`` (by default 16)."""
    components: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)] = (1, 2, 3)
    """Numbers of principal components, from 1, which has the largest variance."""
    strengths: Numbers = STRENGTHS
    """Positions along a component, in standard deviations of the training cases, e.g. ``-2,0,2``."""
    num_noises: Annotated[int, Ge(1)] = 4
    """Number of noise images x_T that each image is averaged over; only for ``components`` without a case."""


@command
def decode(
    bundle: Path,
    out: Path,
    *,
    cohort: Path | None = None,
    case: str | None = None,
    show: Show = "image",
    embeddings: Path | None = None,
    codes: Combination = Combination(),
    series: Series = Series(),
    decoding: Decoding = Decoding(),
    columns: Columns = NONE_GIVEN,
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Decode images from the codes of a case: moved, blended with another case, or with another x_T.

    ``out/images/`` gets one image in the case's own space, or several in the model's grid:

    - ``path``: from the case to ``blend``, named by their position from 0 to 1. The picture also shows the two scans
      blended pixel by pixel (section 4.2 of the paper).
    - ``variations``: the same z_sem with new x_T, which shows what z_sem does not determine (section 4.1). Where
      ``out/std.nii.gz`` is large, the image depends on x_T; ``out/mean.nii.gz`` is their mean.
    - ``components``: moved along the principal components of z_sem, named by component and strength.
      ``out/components.csv`` has the components' standard deviation and share of the variance.

    ``out/<show>.png`` shows them in the model's grid. With a 2D bundle, a case is a slice of a volume; the table of
    ``embed`` has the ids.

    Args:
        bundle: Folder of a trained bundle.
        out: Folder for the results.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan that has the case.
        case: Id of the case. Without one, ``components`` start at the mean z_sem.
        show: One ``image``, a ``path``, ``variations`` or ``components``.
        embeddings: Table of embeddings, written by ``embed`` with this bundle, whose training cases have the principal
            components; required if these are used.
        columns: Names that the table uses for image, id, patient or split, e.g. ``image=file patient=subject``.

    Returns:
        The folder; for ``variations``, ``mean_std``: their standard deviation, averaged over the image, in the model's
        range.

    Raises:
        ConfigError: an argument cannot be used, the bundle is not trained, a direction or the embeddings belong to
            another model, or ``out`` holds results of other inputs.
        CohortError: the table of embeddings cannot be used, or a case does not exist.
        ScanError: a case cannot be read.
    """
    if None in (cohort, case) and (show != "components" or cohort != case):
        raise ConfigError("case: give the case together with the cohort that has it; only components can do without")
    if show == "path" and codes.blend is None:
        raise ConfigError("blend: is required to show a path; give the case at its end")
    grid = _grid(f"{show} without a case" if case is None else show, codes, series)
    combinations = [each for group in grid.values() for each in group]
    lines = {name for each in combinations for name in each.moves}
    if (embeddings is not None) != any(map(str.isdecimal, lines)):
        raise ConfigError("embeddings: principal components are computed from the table; give it with them, or omit it")
    if "0" in lines:
        raise ConfigError("moves: components are counted from 1, and 0 is none; choose another")
    trained = sessions.open_bundle(bundle, decoding=decoding, run=run.batched)
    axes = Axes.read(lines, embeddings, trained)
    session = (
        None if cohort is None else sessions.Session.of(trained, cohort, reading=Reading(columns), run=run.batched)
    )
    names = [name for name in (case, codes.blend, codes.noise_of) if name is not None]
    cases = [] if session is None else [session.choose(Choice(cases=(name,)))[0] for name in names]
    made_from = {
        **(sessions.made_from_bundle(trained, run.batched) if session is None else session.made_from(cases)),
        "codes": json_digest([names, *map(vars, combinations)]),
        "directions": [file_checksum(name) for name in sorted(axes.directions)],
        "embeddings": embeddings and file_checksum(embeddings),
    }
    images, picture = out / "images", out / f"{show}.png"
    files = {"variations": ("mean.nii.gz", "std.nii.gz"), "components": ("components.csv",)}.get(show, ())

    def make() -> Mapping[str, Any]:
        opened = {} if session is None else dict(zip(names, map(trained.open, cases), strict=True))
        # a variation depends on no other, to the bit
        at_once = 1 if show == "variations" else inferers.images_at_once(trained.image_shape[1:])
        inferer, groups, parts = trained.inferer.replace(batch_size=at_once), list(grid.values()), []
        num_groups = max(1, at_once // len(groups[0]))
        for start in track(range(0, len(groups), num_groups), f"decoding {counted(len(groups), 'image')}"):
            part = groups[start : start + num_groups]
            codes_of_part = [each.codes(case, opened, axes, trained) for group in part for each in group]
            z_sem, x_T = map(torch.cat, zip(*codes_of_part, strict=True))
            images_of_part = inferer.decode(z_sem, trained.network, x_T)
            parts.append(images_of_part.unflatten(0, (len(part), -1)).mean(dim=1))
        decoded = torch.cat(parts)
        remove_images(images)
        if show == "image":
            own = opened[names[0]]
            difference = decoded - own.reconstruct("x_T") if codes.detail == "own" else None
            write_combined(images / cases[0].file_name, own, decoded, difference)
        else:
            for name, image in zip(grid, decoded, strict=True):
                trained.write_image(images / name, image, cases[0].file if cases else ".png")
        titles, figures = list(grid), dict[str, float]()
        if show == "components":
            rows, titles = _components(decoded, axes.components, series, out), strength_titles(series.strengths)
        elif show == "variations":
            titles, (rows, figures) = [], _variations(decoded, opened[names[0]], out)
        elif show == "image":
            titles, rows = [], {"case": opened[names[0]].images, "decoded": decoded}
        else:
            first, second = (opened[name].images for name in names[:2])
            rows = {"both codes": decoded, "pixels": paths.lerp(first, second, [each.weight for each in combinations])}
        shown = {name: row if row.dtype == torch.uint8 else trained.shown(row) for name, row in rows.items()}
        write_atomic(picture, lambda path: pictures.draw_mosaic(shown, path, titles))
        log_to_open_run(figures, [picture], show)
        return figures

    results = [picture, images, *(out / name for name in files)]
    figures, skipped = run_once(f"decode --show {show}", out, results, made_from, make, overwrite=run.overwrite)
    return Result(out, figures, [f"{name} {value:.6g}" for name, value in figures.items()], skipped=skipped)


def _grid(kind: str, codes: Combination, series: Series) -> dict[str, list[Combination]]:
    """The codes of each image, which is the mean over the images of these, by the names of the files."""
    options, defaults = vars(codes) | vars(series), vars(Combination()) | vars(Series())
    if unused := [name for name in _UNUSED[kind].split() if options[name] != defaults[name]]:
        raise ConfigError(f"{unused[0]}: is not used to show {kind}; omit it")
    codes.check_detail()
    if codes.blend is None and codes.weight != defaults["weight"]:
        raise ConfigError("weight: is only used with blend; give the second case, or omit it")
    if kind.startswith("components") and (both := {str(n) for n in series.components} & codes.moves.keys()):
        raise ConfigError(f"moves: component {min(both)} is shown at all strengths; omit it here")
    first = codes.noise_seed or 0
    if kind == "image":
        return {"": [codes]}
    if kind == "path":
        weights = np.linspace(0, 1, series.num_images or 9).tolist()
        return {f"{weight:.3f}": [replace(codes, weight=weight)] for weight in weights}
    if kind == "variations":
        seeds = range(first, first + (series.num_images or 16))
        return {f"{seed:03d}": [replace(codes, noise_seed=seed)] for seed in seeds}
    noises = [codes.noise_seed] if kind == "components" else range(first, first + series.num_noises)
    strengths = dict(zip(strength_names(series.strengths), series.strengths, strict=True))
    return {
        f"{number:03d}_{name}": [
            replace(codes, noise_seed=seed, moves={**codes.moves, str(number): strength}) for seed in noises
        ]
        for number in np.unique(series.components)
        for name, strength in strengths.items()
    }


def _components(
    decoded: torch.Tensor, components: latents.PrincipalComponents, series: Series, out: Path
) -> dict[str, torch.Tensor]:
    """The rows of the picture; also writes the table."""
    numbers = np.unique(series.components)
    shares = components.explained[numbers - 1]
    columns = {"component": numbers, "std": components.stds[numbers - 1], "explained": shares}
    write_csv(out / "components.csv", pd.DataFrame(columns))
    labels = [f"{number}: {share:.0%}" for number, share in zip(numbers, shares, strict=True)]
    return dict(zip(labels, decoded.unflatten(0, (len(labels), -1)), strict=True))


def _variations(
    decoded: torch.Tensor, own: bundles.ModelCase, out: Path
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The rows of the picture, and figures; also writes mean and standard deviation."""
    mean, std = decoded.mean(dim=0, keepdim=True), decoded.std(dim=0, keepdim=True)
    for name, image in {"mean": mean, "std": std}.items():
        own.trained.write_image(out / name, image[0], ".nii.gz")
    largest = float(std.max())
    rows = {
        "input, own x_T": torch.cat([own.images, own.reconstruct("x_T")]),
        "new x_T": decoded[:_IN_PICTURE],
        "mean": mean,
        f"std (to {largest:.2f})": pictures.in_colours(std, largest, "magma", own.trained.is_colour),
    }
    return rows, {"mean_std": float(std.mean())}


@dataclass(frozen=True)
class Axes:
    """The lines along which z_sem can be moved."""

    directions: Mapping[str, latents.Direction]
    components: latents.PrincipalComponents = None  # type: ignore[assignment]  # there may be none

    @classmethod
    def read(cls, names: Iterable[str], embeddings: Path | None, trained: bundles.TrainedBundle) -> Axes:
        """Read the direction files of these names, and compute components up to the highest number among them."""
        directions = {name: read_direction(name, trained) for name in names if not name.isdecimal()}
        numbers = [int(name) for name in names if name.isdecimal()]
        for direction in directions.values():
            direction.warn_if_chance()
        if embeddings is None:
            return cls(directions)
        z_train = tables.z_matrix(tables.read_training_rows(embeddings))
        table_origin.check_same_model(embeddings, trained.folder, averages=True)  # their components are directions, too
        table_origin.warn_of_other_preprocessing(embeddings, trained)
        return cls(directions, latents.principal_components(z_train, count=max(numbers)))

    def move(self, z_sem: npt.NDArray[np.float32], moves: Mapping[str, float]) -> npt.NDArray[np.float32]:
        """z_sem (1, D), moved along directions and components."""
        for name, strength in moves.items():
            if name in self.directions:
                z_sem = self.directions[name].move(z_sem, strength)
            else:
                z_sem = self.components.traverse(z_sem, int(name) - 1, [strength])
        return z_sem


def write_combined(
    path: Path, opened: bundles.ModelCase, image: torch.Tensor, difference: torch.Tensor | None = None
) -> Path:
    """Write an image (1, C, *S), or a scan plus a difference, as PNG or NIfTI in the space of a case."""
    array = opened.back(image) if difference is None else opened.add_difference(difference)
    file = path.with_name(f"{path.name}{opened.scan.suffix}")
    return transforms.write_native(file, array, opened.scan, description=scan_writing.SYNTHETIC)
