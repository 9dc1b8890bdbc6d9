"""A virtual cohort: the MNI152 T1 brain template, deformed smoothly by known amounts. No download, no patients.

The template (an average of 152 scans, brain only, without the skull) comes with the ``nilearn`` package: Fonov et al.,
"Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54(1), 2011,
doi:10.1016/j.neuroimage.2010.07.033.
"""

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from monai_diffae.data.atomic import disk_errors, write_csv, write_json
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.policies import PathLike

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Factor:
    """A known cause of variation, drawn uniformly from ``low`` to ``high`` and independently of the others."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


FACTORS: tuple[Factor, ...] = (
    Factor("head_size", "ratio", 0.85, 1.12, "size of the brain relative to the template, along every axis"),
    Factor("tilt", "degrees", -12.0, 12.0, "rotation in the axial plane; positive turns the forehead to the left"),
    Factor("contrast", "gamma", 0.7, 1.5, "exponent of the grey values; above 1 grey matter and fluid darken"),
    Factor("slice_level", "mm", 7.0, 23.0, "template height (MNI z) of the slice; a volume is centred 10 mm below it"),
    Factor(
        "ventricles", "fraction", 0.0, 1.0, "widening of the lateral ventricles; 0 is the template's, 1 about twice"
    ),
)


@dataclass(frozen=True)
class Scanner:
    """A virtual scanner: what it does to the image of every patient."""

    name: str
    contrast: float  # factor of the exponent of the grey values
    noise: float  # standard deviation of Gaussian noise, as a share of the range of grey values
    blur_mm: float  # standard deviation of a Gaussian
    spacing: float  # size of the voxels relative to the first scanner's


SCANNERS = (Scanner("A", 1, 0.01, 0, 1), Scanner("B", 0.7, 0.04, 0, 1), Scanner("C", 1.3, 0.02, 2.5, 1.5))
"""The virtual scanners; a patient looks the same on all of them, but for these differences."""

FIELD_OF_VIEW_MM = 224.0  # the largest rotated brain with a margin of about 10 mm
_BRAIN_CENTRE_MM = (0.0, -17.0, 5.0)
_LEVEL_ABOVE_CENTRE_MM = 10.0
_TEMPLATE_FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"

# The ventricles are widened by a displacement along the gradient of their smoothed mask (dark voxels in an ellipsoid).
_VENTRICLES_CENTRE_MM = (0.0, -8.0, 14.0)
_VENTRICLES_RADII_MM = (36.0, 42.0, 21.0)
_VENTRICLES_DARKER_THAN = 0.53
_VENTRICLES_SMOOTHING_MM = 7.5
_VENTRICLES_GAIN_MM2 = 320.0
_VENTRICLES_STEPS = 6

# The displacement that no factor describes: a sum of waves of these lengths, 2 mm (RMS) along each axis.
_WAVES = 12
_WAVELENGTHS_MM = (70.0, 160.0)
_DISPLACEMENT_MM = 2.0


@dataclass(frozen=True)
class VirtualPatient:
    """A virtual patient: its factors, and the waves of the displacement that no factor describes."""

    factors: Mapping[str, float]  # one value for each of :data:`FACTORS`
    wave_vectors: FloatArray  # ``[K, 3]``, radians per mm
    phases: FloatArray  # ``[K]``, radians
    amplitudes_mm: FloatArray  # ``[K, 3]``


def draw_patient(seed: int, index: int) -> VirtualPatient:
    """Draw one virtual patient; it depends only on ``seed`` and ``index``."""
    rng = np.random.default_rng([seed, index])
    # rounded before use, so that the table has exactly the values that were used
    factors = {factor.name: round(float(rng.uniform(factor.low, factor.high)), 5) for factor in FACTORS}
    directions = rng.normal(size=(_WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    wave_vectors = directions * (2 * np.pi / rng.uniform(*_WAVELENGTHS_MM, size=(_WAVES, 1)))
    phases = rng.uniform(0, 2 * np.pi, size=_WAVES)
    amplitudes = rng.normal(size=(_WAVES, 3))
    amplitudes *= _DISPLACEMENT_MM * math.sqrt(2) / np.linalg.norm(amplitudes, axis=0)  # a wave's RMS is 1 / sqrt(2)
    return VirtualPatient(
        factors, wave_vectors.astype(np.float32), phases.astype(np.float32), amplitudes.astype(np.float32)
    )


def render_patient(
    patient: VirtualPatient, *, size: int = 48, spatial_dims: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Make the image of a virtual patient at any size; the patient looks the same at every size."""
    spacing_mm = FIELD_OF_VIEW_MM / size
    factors = patient.factors
    points, affine = _voxel_centres(factors, size, spatial_dims, spacing_mm)  # (3, *S) in the scanner's mm
    points = _to_template_mm(points, factors)
    points += _displacement(patient, points)
    points += factors["ventricles"] * _sample_ventricle_field(points)
    template, to_index = read_template(spacing_mm)
    grey = ndimage.map_coordinates(template, points + to_index, order=1, mode="constant", cval=0.0)
    return np.rint(255 * np.clip(grey, 0, 1) ** factors["contrast"]).astype(np.uint8), affine


def scan_patient(
    patient: VirtualPatient, scanner: Scanner, seed: tuple[int, ...], *, size: int = 48, spatial_dims: int = 2
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Make the image of a virtual patient on a scanner; ``seed`` is that of the noise."""
    factors = {**patient.factors, "contrast": patient.factors["contrast"] * scanner.contrast}
    size = round(size / scanner.spacing)
    array, affine = render_patient(replace(patient, factors=factors), size=size, spatial_dims=spatial_dims)
    sigma = scanner.blur_mm * size / FIELD_OF_VIEW_MM  # a slice has no neighbors to blur with
    grey = ndimage.gaussian_filter(array.astype(np.float32), [sigma, sigma, sigma if spatial_dims == 3 else 0])
    grey += 255 * scanner.noise * np.random.default_rng(seed).normal(size=grey.shape)
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8), affine


def _voxel_centres(
    factors: Mapping[str, float], size: int, spatial_dims: int, spacing_mm: float
) -> tuple[FloatArray, NDArray[np.float64]]:
    """World coordinates (mm) of the voxels, ``[3, size, size, 1 or size]``, and the image's affine."""
    centre = np.array(_BRAIN_CENTRE_MM)
    level = factors["slice_level"] - centre[2]
    if spatial_dims == 3:
        level -= _LEVEL_ABOVE_CENTRE_MM
    # in a larger head, the plane through this level of the template is higher
    centre[2] += level * factors["head_size"]
    shape = np.array([size, size, size if spatial_dims == 3 else 1])
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = centre - spacing_mm * (shape - 1) / 2
    axes = [affine[axis, 3] + spacing_mm * np.arange(shape[axis]) for axis in range(3)]
    points: FloatArray = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    return points, affine


def _to_template_mm(points: FloatArray, factors: Mapping[str, float]) -> FloatArray:
    """Undo head size and tilt, from the scanner's mm to the template's mm."""
    centre = np.array(_BRAIN_CENTRE_MM, dtype=np.float32)
    angle = np.deg2rad(factors["tilt"])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = (points[axis] - centre[axis] for axis in range(3))
    rotated = np.stack([cos * x + sin * y, cos * y - sin * x, z])
    rotated /= np.float32(factors["head_size"])
    return (rotated + centre[:, None, None, None]).astype(np.float32)


def _displacement(patient: VirtualPatient, points: FloatArray) -> FloatArray:
    displacement = np.zeros_like(points)
    waves = zip(patient.wave_vectors, patient.phases, patient.amplitudes_mm, strict=True)
    for (kx, ky, kz), phase, amplitude in waves:
        wave = np.cos(kx * points[0] + ky * points[1] + kz * points[2] + phase)
        displacement += amplitude[:, None, None, None] * wave
    return displacement


def _sample_ventricle_field(points: FloatArray) -> FloatArray:
    field, to_index, step_mm = _read_ventricle_field()
    centre = np.array(_VENTRICLES_CENTRE_MM, dtype=np.float32)[:, None, None, None]
    reach = np.array(_VENTRICLES_RADII_MM, dtype=np.float32)[:, None, None, None] + 3 * _VENTRICLES_SMOOTHING_MM
    near = np.all(np.abs(points - centre) < reach, axis=0)  # the field is 0 elsewhere: this saves time
    indices = (points + to_index)[:, near] / np.float32(step_mm)
    displacement = np.zeros_like(points)
    displacement[:, near] = [ndimage.map_coordinates(axis, indices, order=1) for axis in field]
    return displacement


@lru_cache(maxsize=1)
def _read_ventricle_field() -> tuple[FloatArray, FloatArray, int]:
    """Displacement (mm) towards the centre of the ventricles, every 3 mm of the template."""
    # An image that takes its grey values from closer to the centre shows the ventricles larger. Many small steps along
    # the gradient never fold the image, as one large step would.
    template, to_index = read_template(0.0)
    step_mm = 3
    coarse = template[::step_mm, ::step_mm, ::step_mm]
    grid = np.indices(coarse.shape, dtype=np.float32)
    axes = zip(grid, to_index.ravel(), _VENTRICLES_CENTRE_MM, _VENTRICLES_RADII_MM, strict=True)
    distance = sum(((axis * step_mm - shift - centre) / radius) ** 2 for axis, shift, centre, radius in axes)
    dark = (distance < 1) & (coarse > 0) & (coarse < _VENTRICLES_DARKER_THAN)
    potential = ndimage.gaussian_filter(dark.astype(np.float32), _VENTRICLES_SMOOTHING_MM / step_mm)
    velocity = np.float32(_VENTRICLES_GAIN_MM2 / step_mm**2) * np.stack(np.gradient(potential))  # in grid steps
    points = grid.copy()
    for _ in range(_VENTRICLES_STEPS):
        points += [ndimage.map_coordinates(axis, points, order=1) / _VENTRICLES_STEPS for axis in velocity]
    return step_mm * (points - grid), to_index, step_mm


@lru_cache(maxsize=2)
def read_template(spacing_mm: float) -> tuple[FloatArray, FloatArray]:
    """The template in [0, 1], smoothed for voxels of this size, and the offset from its mm to its voxel indices."""
    spec = importlib.util.find_spec("nilearn")
    path = Path(next(iter((spec.submodule_search_locations if spec else None) or []), "")) / _TEMPLATE_FILE
    if not path.is_file():
        raise MachineError("nilearn with the MNI152 template is not installed; pip install 'monai-diffae[samples]'")
    image = nib.Nifti1Image.from_filename(path)  # 1 mm voxels, RAS+
    template: FloatArray = np.asarray(image.dataobj, dtype=np.float32)
    template /= 255
    if spacing_mm > 1:
        # a Gaussian whose width at half maximum is the voxel size, minus the blur of the template's 1 mm voxels
        template = ndimage.gaussian_filter(template, math.sqrt(spacing_mm**2 - 1) / 2.355)
    affine = image.affine
    return template, -affine[:3, 3].astype(np.float32)[:, None, None, None]


# -- the cohort --------------------------------------------------------------------------------------------------------


_README = """\
Virtual cohort: ONE real brain template with simulated variation. These are not patients.

Every image is the MNI152 T1 template (ICBM 2009a, nonlinear, symmetric, brain only), deformed smoothly by known
amounts, which cohort.csv lists for each image:

{factors}

Each virtual patient also has a small random smooth displacement (2 mm RMS along each axis) that no column describes.
Use it to try out software and to test a method against known causes. It says nothing about patients or disease.

Please cite the template:
  VS Fonov, AC Evans, K Botteron, CR Almli, RC McKinstry, DL Collins and BDCG. Unbiased average age-appropriate atlases
  for pediatric studies. NeuroImage 54(1), 2011. doi:10.1016/j.neuroimage.2010.07.033
  VS Fonov, AC Evans, RC McKinstry, CR Almli and DL Collins. Unbiased nonlinear average age-appropriate brain templates
  from birth to adulthood. NeuroImage 47, Supplement 1, S102, 2009. doi:10.1016/S1053-8119(09)70884-5

Licence: the template is part of the nilearn package, whose notes state its licence as "unknown". Its authors (Louis
Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University) publish it with a notice
of their own; read that notice before you share these images.
"""

_SCANNERS_README = """
Every patient was scanned on each of these virtual scanners (columns scanner and visit; the order changes from patient
to patient), as travelling heads are. contrast is a factor of the exponent of the grey values, noise a share of their
range, spacing a factor of the size of the voxels:

"""


def make_virtual_cohort(
    directory: PathLike,
    *,
    num_patients: int = 1000,
    size: int = 48,
    spatial_dims: int = 2,
    num_scanners: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.15,
    overwrite: bool = False,
) -> Path:
    """Write a virtual cohort: NIfTI images, a table with the known factors, and a README that describes it.

    The bytes depend only on the parameters. A larger cohort begins with the patients of a smaller one, in the same
    splits. If the cohort is complete, nothing is written.

    Args:
        directory: folder for the cohort; created if missing.
        num_patients: number of patients, with one image each.
        size: voxels along each axis, at least 8; the field of view is always 224 mm.
        spatial_dims: 2 for axial slices (NIfTI volumes of ``size x size x 1``), 3 for volumes.
        num_scanners: scan every patient on this many of :data:`SCANNERS`; None: on none, without any noise or blur.
        seed: random seed, at least 0.
        val_fraction: fraction of the patients in the split "val", 0 to 1.
        test_fraction: fraction of the patients in the split "test", 0 to 1.
        overwrite: replace a virtual cohort that was made with other parameters.

    Returns:
        The path of ``cohort.csv`` with ``id``, ``patient``, ``image``, ``split``, with scanners ``scanner`` and
        ``visit``, and one column for each of :data:`FACTORS`.

    Raises:
        ConfigError: an argument is out of range, or the folder holds something else.
        MachineError: the template is not installed, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = make_virtual_cohort(folder, num_patients=4, size=32)
        ...     print(table.name, len(list(table.parent.glob("images/*.nii"))))
        cohort.csv 4
    """
    if spatial_dims not in (2, 3) or min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction > 1:
        raise ConfigError("spatial_dims: must be 2 or 3, and val_fraction and test_fraction shares of 1")
    directory = Path(directory)
    parameters: dict[str, Any] = {
        "kind": "virtual MNI152 cohort, version 1",
        "num_patients": num_patients,
        "size": size,
        "spatial_dims": spatial_dims,
        "seed": seed,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
    }
    if num_scanners is not None:
        parameters["num_scanners"] = num_scanners
    if table := find_sample_data(directory, parameters, overwrite=overwrite):
        return table
    read_template(FIELD_OF_VIEW_MM / size)  # so that an error is raised before the folder is touched
    write = partial(_write_patient, directory, size=size, spatial_dims=spatial_dims, seed=seed, scanners=num_scanners)

    def write_all() -> Iterator[dict[str, Any]]:
        factors = "\n".join(f"  {f.name:<12} {f.low:g} to {f.high:g} {f.unit}: {f.meaning}" for f in FACTORS)
        scanners = "" if num_scanners is None else "".join(f"  {scanner}\n" for scanner in SCANNERS[:num_scanners])
        readme = _README.format(factors=factors) + (_SCANNERS_README + scanners if scanners else "")
        (directory / "README.txt").write_text(readme)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for index, rows in enumerate(pool.map(write, range(num_patients))):
                yield from (row | {"split": split_by_number(index, val_fraction, test_fraction)} for row in rows)

    visits = [] if num_scanners is None else ["scanner", "visit"]
    columns = ["id", "patient", "image", "split", *visits, *(factor.name for factor in FACTORS)]
    return write_sample_data(directory, parameters, lambda: pd.DataFrame(write_all(), columns=columns))


def split_by_number(index: int, val_fraction: float, test_fraction: float) -> str:
    """The split of a virtual patient: multiples of the golden ratio keep the fractions at every size of a cohort."""
    position = (index + 0.5) * 0.6180339887498949 % 1
    if position >= 1 - test_fraction:
        return "test"
    return "val" if position >= 1 - test_fraction - val_fraction else "train"


def _write_patient(
    directory: Path, index: int, *, size: int, spatial_dims: int, seed: int, scanners: int | None
) -> list[dict[str, Any]]:
    patient = draw_patient(seed, index)
    name = f"mni-{index:06d}"
    if scanners is None:
        image = render_patient(patient, size=size, spatial_dims=spatial_dims)
        return [_write_scan(directory, name, *image) | {"patient": name, **patient.factors}]
    rows = []
    for visit in range(scanners):
        scanner = SCANNERS[(index + visit) % scanners]
        image = scan_patient(patient, scanner, (seed, index, visit), size=size, spatial_dims=spatial_dims)
        row = _write_scan(directory, f"{name}-{visit + 1}", *image)
        rows.append(row | {"patient": name, "scanner": scanner.name, "visit": visit + 1, **patient.factors})
    return rows


def _write_scan(directory: Path, name: str, array: NDArray[Any], affine: NDArray[Any]) -> dict[str, Any]:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    # uncompressed, because the bytes of gzip depend on the version of zlib
    (directory / "images" / f"{name}.nii").write_bytes(image.to_bytes())
    return {"id": name, "image": f"images/{name}.nii"}


_RECORD = "sample-data.json"


def find_sample_data(directory: Path, parameters: dict[str, Any], *, overwrite: bool) -> Path | None:
    """The table of complete sample data of the same parameters; None: they are to be written."""
    table, images, record = directory / "cohort.csv", directory / "images", _read_record(directory)
    if record is None and (table.exists() or (images.is_dir() and any(images.iterdir()))):
        raise ConfigError(f"{directory}: holds a cohort.csv or images of your own; choose another folder")
    if record is not None and not overwrite:
        if changed := sorted(key for key in {*record, *parameters} if record.get(key) != parameters.get(key)):
            values = ", ".join(f"{key} {record.get(key)} instead of {parameters.get(key)}" for key in changed)
            raise ConfigError(f"{directory}: holds sample data with {values}; set overwrite or choose another folder")
        if table.is_file() and images.is_dir() and sum(1 for _ in images.iterdir()) >= len(pd.read_csv(table)):
            return table
    return None


def write_sample_data(directory: Path, parameters: dict[str, Any], write: Callable[[], pd.DataFrame]) -> Path:
    """Write images, and last their table."""
    table, images = directory / "cohort.csv", directory / "images"
    with disk_errors(str(directory)):
        table.unlink(missing_ok=True)  # first, as without it the sample data are incomplete
        images.mkdir(parents=True, exist_ok=True)
        for old in images.glob("*-*"):
            old.unlink()
        write_json(directory / _RECORD, parameters)
        return write_csv(table, write())


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((directory / _RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None
