import subprocess
import sys

import pytest

from monai_diffae.cli import main
from monai_diffae.cli.threads import set_threads

COUNT = "import torch; print(torch.get_num_threads())"


def test_torch_computes_with_so_many_threads_here_and_in_other_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # undone after the test
    set_threads(2)
    assert subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True).stdout == "2\n"


def test_a_command_takes_the_number(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["monai-diffae", "info", "nothing", "--threads", "0"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --threads: 0 is below 1; give at least 1, or omit it\n"
