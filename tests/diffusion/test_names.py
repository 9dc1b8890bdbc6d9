import subprocess
import sys
from typing import get_args

import pytest

from monai_diffae import diffusion
from monai_diffae.diffusion import SOLVERS, SPACINGS
from monai_diffae.diffusion.names import SolverName, SpacingName


def test_the_names_are_those_of_what_there_is():
    own_solvers = [name for name, solver in SOLVERS.items() if solver.__module__.startswith("monai_diffae.")]
    assert list(get_args(SolverName)) == sorted(own_solvers)
    assert list(get_args(SpacingName)) == list(SPACINGS)


def test_the_names_are_read_without_torch_monai_or_numpy():
    code = """
import sys
import monai_diffae.diffusion.names
assert not {"torch", "monai", "numpy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_loads_each_of_its_names_when_it_is_used():
    assert set(diffusion.__all__) <= set(dir(diffusion))
    for name in diffusion.__all__:
        assert getattr(diffusion, name) is not None
    with pytest.raises(AttributeError, match="module 'monai_diffae.diffusion' has no attribute 'nothing'"):
        diffusion.nothing  # noqa: B018
