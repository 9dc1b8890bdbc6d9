import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from monai_diffae.cli import other_programs
from monai_diffae.cli.other_programs import OtherPrograms

BUSY = "while True: pass"


def test_the_load_of_other_programs_is_seen():
    command = f"{sys.executable} -c '{BUSY}' > /dev/null & echo $!"  # not a child of this program
    programs = [int(subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE).stdout) for _ in range(2)]
    try:
        load = OtherPrograms()
        time.sleep(0.5)
        assert load.share() > 0.5 / os.cpu_count()
    finally:
        for program in programs:
            os.kill(program, signal.SIGKILL)


def test_what_a_program_and_its_children_use_is_not_the_load_of_others(monkeypatch):
    every = [psutil.cpu_times()._replace(user=0.0, idle=0.0), psutil.cpu_times()._replace(user=6.0, idle=4.0)]
    every = [times._replace(**{name: 0.0 for name in times._fields if name not in ("user", "idle")}) for times in every]
    monkeypatch.setattr(psutil, "cpu_times", lambda: every.pop(0))
    own = [0.0, 5.0]
    monkeypatch.setattr(other_programs, "_seconds", lambda process: own.pop(0) if process.pid == os.getpid() else 0.0)
    load = OtherPrograms()
    assert load.share() == pytest.approx(0.1)  # 6 s of 10 were used, 5 of them by this program
