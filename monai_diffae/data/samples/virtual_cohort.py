"""A virtual cohort: a real brain template with simulated variation of known strength. No download, no patients.

Every virtual patient is the MNI152 T1 template with a smooth deformation and a grey-value curve of known strength
(:data:`FACTORS`), and with a small random displacement that no factor describes. The factors are written beside the
images, so it is known what a representation should have learned.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
from numpy.typing import NDArray

from monai_diffae.data.atomic import disk_errors, write_csv, write_json
from monai_diffae.data.samples.virtual_patients import (
    FACTORS,
    FIELD_OF_VIEW_MM,
    SCANNERS,
    draw_patient,
    read_template,
    render_patient,
    scan_patient,
)
from monai_diffae.errors import ConfigError

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
    directory: str | os.PathLike[str],
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
        "kind": "virtual MNI152 cohort, version 1", "num_patients": num_patients, "size": size,
        "spatial_dims": spatial_dims, "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction,
    }  # fmt: skip
    if num_scanners is not None:
        parameters["num_scanners"] = num_scanners
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
    return write_sample_data(
        directory, parameters, lambda: pd.DataFrame(write_all(), columns=columns), overwrite=overwrite
    )


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


def write_sample_data(
    directory: Path, parameters: dict[str, Any], write: Callable[[], pd.DataFrame], *, overwrite: bool
) -> Path:
    """Write images, and last their table, unless they are there and were made with the same parameters."""
    table, images, record = directory / "cohort.csv", directory / "images", _read_record(directory)
    if record is None and (table.exists() or (images.is_dir() and any(images.iterdir()))):
        raise ConfigError(f"{directory}: holds a cohort.csv or images of your own; choose another folder")
    if record is not None and not overwrite:
        if changed := sorted(key for key in {*record, *parameters} if record.get(key) != parameters.get(key)):
            values = ", ".join(f"{key} {record.get(key)} instead of {parameters.get(key)}" for key in changed)
            raise ConfigError(f"{directory}: holds sample data with {values}; set overwrite or choose another folder")
        if table.is_file():
            return table
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
