import os

import pytest

from monai_diffae.apps.processes import Process, this_process
from monai_diffae.apps.settings import Reading
from monai_diffae.errors import ConfigError


def test_a_process_is_numbered_as_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(5, 8, 1)
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(ConfigError, match="RANK is '8', WORLD_SIZE '8' and LOCAL_RANK '1'; start processes with"):
        this_process()


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert Reading(workers=None).workers_for(300, this_process().local_world_size) == 3
    assert Reading(workers=7).workers_for(300, this_process().local_world_size) == 7
    assert Reading(workers=None).workers_for(3, this_process().local_world_size) == 0
    assert Reading(workers=None).workers_for(300, Process().local_world_size) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert Reading(workers=None).workers_for(300, this_process().local_world_size) == 1
