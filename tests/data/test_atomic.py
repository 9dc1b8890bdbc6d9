"""Files are complete or absent."""

import errno
import json
import os
import signal
import time

import pytest

from monai_diffae.data.atomic import remove_abandoned, write_atomic, write_json
from monai_diffae.errors import MachineError


@pytest.mark.goal(id="R3")
@pytest.mark.goal(id="R16")
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_the_temporary_file_has_the_suffix_and_the_folder_of_the_file(tmp_path):
    names = []

    def write(temporary):
        names.append(temporary)
        temporary.write_bytes(b"")

    for name in ("b.nii.gz", "c.png"):
        write_atomic(tmp_path / "new" / name, write)
    assert [file.parent for file in names] == [tmp_path / "new"] * 2
    assert names[0].name.endswith(".nii.gz")
    assert names[1].name.endswith(".png")


def test_a_full_disk_is_an_error_of_the_machine_and_other_system_errors_stay(tmp_path):
    def fail_with(number):
        def write(temporary):
            raise OSError(number, os.strerror(number))

        return write

    with pytest.raises(MachineError, match=r"^a\.txt: cannot be written \(No space left on device\); free space"):
        write_atomic(tmp_path / "a.txt", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_atomic(tmp_path / "a.txt", fail_with(errno.EBADF))


def test_json_is_indented(tmp_path):
    text = write_json(tmp_path / "a.json", {"a": 1}).read_text()
    assert json.loads(text) == {"a": 1}
    assert text == '{\n  "a": 1\n}\n'


@pytest.mark.goal(id="R3")
def test_temporary_files_of_killed_processes_are_removed_and_those_of_others_stay(tmp_path):
    """Goal R3."""

    def start():
        read, write = os.pipe()

        def hang(path):
            path.write_text("half")
            os.write(write, path.name.encode())
            time.sleep(600)

        if (pid := os.fork()) == 0:
            write_atomic(tmp_path / "a.txt", hang)
        return pid, os.read(read, 200).decode()

    (running, name_of_running), (killed, _) = start(), start()
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    for name, age_days in ((".tmp-00000000-1-new.txt", 0), (".tmp-00000000-1-old.txt", 2), (".tmp-7-old.txt", 2)):
        (tmp_path / name).write_text("of another machine, or of an earlier version")
        os.utime(tmp_path / name, (time.time() - age_days * 86400,) * 2)
    remove_abandoned(tmp_path, tmp_path / "no_such_folder")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name_of_running, ".tmp-00000000-1-new.txt"])
    os.kill(running, signal.SIGKILL)
    os.waitpid(running, 0)
