"""The command ``sample-data``: write a cohort to try things with."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Seed
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.data import samples

_NUM_PATIENTS, _SIZE, _MEDMNIST_SIZE = 1000, 48, 28


@command
def sample_data(
    out: Path,
    *,
    medmnist: str | None = None,
    size: Annotated[int, Ge(8)] | None = None,
    num_patients: Annotated[int, Ge(1)] | None = None,
    spatial_dims: Literal[2, 3] | None = None,
    num_scanners: Annotated[int, Ge(2), Le(3)] | None = None,
    seed: Seed | None = None,
    overwrite: bool = False,
) -> Result:
    """Write sample data: a virtual cohort (one brain template with simulated variation) or a MedMNIST set.

    The patients of the virtual cohort differ in factors of known strength, such as the size of the ventricles; the
    table has one column for each. It needs the extra ``samples``, but no download. MedMNIST sets are real images; they
    need the extra ``medmnist`` and an internet connection, or a downloaded ``.npz`` file.

    Args:
        out: Folder for the images and their table.
        medmnist: Name of a MedMNIST set, such as ``pneumoniamnist``, or its ``.npz`` file, instead of the virtual
            cohort.
        size: Pixels per side; by default 48, or 28 for MedMNIST.
        num_patients: Patients of the virtual cohort; by default 1000.
        spatial_dims: 2 for slices (default) or 3 for volumes of the virtual cohort.
        num_scanners: Scan every patient of the virtual cohort on 2 or 3 virtual scanners, which differ in contrast,
            noise, blur and spacing; the table has columns ``scanner`` and ``visit``. By default there are no scanners.
        seed: Random seed of the virtual cohort; by default 0.
        overwrite: Replace sample data that were made with other arguments.

    Returns:
        The table.

    Raises:
        ConfigError: an argument is out of range, or the folder holds something else.
        MachineError: a package is missing, the download failed, or the folder cannot be written.
    """
    if medmnist is None:
        table = samples.make_virtual_cohort(
            out,
            num_patients=num_patients or _NUM_PATIENTS,
            size=size or _SIZE,
            spatial_dims=spatial_dims or 2,
            num_scanners=num_scanners,
            seed=seed or 0,
            overwrite=overwrite,
        )
        return Result(table, {"table": str(table)})
    given = {"num_patients": num_patients, "spatial_dims": spatial_dims, "num_scanners": num_scanners, "seed": seed}
    unused = next((name for name, value in given.items() if value is not None), None)
    if unused is not None:
        raise ConfigError(f"{unused}: applies to the virtual cohort; omit {unused} or medmnist")
    table = samples.medmnist_to_cohort(medmnist, out, size=size or _MEDMNIST_SIZE, overwrite=overwrite)
    return Result(table, {"table": str(table)})
