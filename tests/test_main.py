"""The program as a module of Python."""

import subprocess
import sys

import pytest

from monai_diffae import __version__


@pytest.mark.parametrize("module", ["monai_diffae", "monai_diffae.cli"])
def test_python_m_runs_the_program(module):
    command = [sys.executable, "-m", module, "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == f"monai-diffae {__version__}\n"
