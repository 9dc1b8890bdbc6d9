"""The program, run in processes that are forked after the imports, which take longer than a tiny training.

A process can be given a fault: where in a training it is killed with SIGKILL, how large its files may get, and so on.
"""

import functools
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

LONGEST_S = 300.0
FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


# -- in the test's process ---------------------------------------------------------------------------------------------


class Program:
    """Runs commands one after another, each in a process group of its own."""

    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.pid = 0
        self.log = Path()

    def start(self, log, *arguments, faults=None):
        """Start a command; what it prints goes to ``log``."""
        self.log = log
        job = {"arguments": [str(argument) for argument in arguments], "faults": faults or {}, "log": str(log)}
        self._server.stdin.write(f"{json.dumps(job)}\n")
        self._server.stdin.flush()
        self.pid = self._answer()

    def wait(self):
        """The exit code; -9 after a kill."""
        code, self.pid = self._answer(), 0
        return code

    def run(self, log, *arguments, faults=None):
        self.start(log, *arguments, faults=faults)
        return self.wait()

    def errors(self):
        """The lines of the last command that say why it failed."""
        lines = self.log.read_text().splitlines()
        assert not any("Traceback" in line or "this is a bug" in line for line in lines), lines[-30:]
        return [line for line in lines if line.startswith("error: ")]

    def _answer(self):
        for line in self._server.stdout:
            if line.startswith("forked_program "):  # MONAI may print, too
                return int(line.split()[1])
        raise AssertionError("the server of processes has ended")

    def end(self):
        """Kill the command if it still runs, as a test has failed."""
        if self.pid:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


@functools.cache
def shared_program():
    """The one of this test session; its server ends with it, as its input ends."""
    return Program()


def free_port():
    """A port on which no server listens."""
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        return test.getsockname()[1]


def wait_until(is_true, seconds=LONGEST_S):
    """Wait for a condition; False if it does not come."""
    until = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


# -- in the program's process ------------------------------------------------------------------------------------------


def serve():
    import monai.bundle  # noqa: F401
    import torch

    import monai_diffae.apps.training.train
    import monai_diffae.cli
    import monai_diffae.engines
    import monai_diffae.handlers  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        output, copier = _copied_to(job["log"])
        pid = os.fork()
        if pid == 0:
            os.setsid()
            become_program(job["arguments"], output, job["faults"])
        os.close(output)
        print("forked_program", pid, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:  # the workers of a killed process need some seconds to end
            os.waitpid(copier, 0)
        print("forked_program", code, flush=True)


def become_program(arguments, output=None, faults=None):
    """Run a command in a process that was forked for it, to the end of the process.

    ``output`` is the descriptor of an open file for what it prints; ``faults`` are arguments of :data:`FAULTS`.
    """
    from monai_diffae import cli

    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - not pytest's
    for name, values in (faults or {}).items():
        FAULTS[name](*values)
    sys.argv = ["monai-diffae", *map(str, arguments)]
    cli.main()


def _copied_to(log):
    """A pipe, and the process that copies it to a file: the program's limits and signals do not reach it."""
    read, write = os.pipe()
    copier = os.fork()
    if copier == 0:
        os.close(write)
        with open(log, "wb", buffering=0) as stream:
            while block := os.read(read, 1 << 16):
                stream.write(block)
        os._exit(0)
    os.close(read)
    return write, copier


def _in_saves(before):
    """Call a function with the number of each save before it begins."""
    from monai_diffae.handlers import CheckpointKeeper

    _in_calls(CheckpointKeeper, "save", before)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(call, is_counting=lambda: True):
    """Kill this process at a call of the functions that change files."""
    calls = itertools.count(1)

    def counted(function):
        def run(*args, **kwargs):
            if is_counting() and next(calls) == call:
                _die()
            return function(*args, **kwargs)

        return run

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "link", "fsync"):
        setattr(os, name, counted(getattr(os, name)))


@fault
def killed_in_a_save(number, call):
    """Killed at a call of the file system in a save; ``call`` counts over this save and those after it."""
    saves = []
    _in_saves(saves.append)
    die_at_call(call, lambda: number in saves)


@fault
def killed_while_it_writes(number, share):
    """Killed when a share of one of the large files is written; ``number`` counts these files, three per save."""
    from monai_diffae.data import tensor_files

    flush, count = tensor_files._flush, 0

    def half(path):
        nonlocal count
        count += 1
        if count == number:
            os.truncate(path, int(share * path.stat().st_size))
            _die()
        flush(path)

    tensor_files._flush = half


def _in_calls(owner, name, do, after=False):
    """Call a function with the number of each call of a method, before the method or after it."""
    method, count = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        number = count
        if not after:
            do(number)
        result = method(*args, **kwargs)
        if after:
            do(number)
        return result

    setattr(owner, name, counted)


def _die_at(number):
    return lambda count: _die() if count == number else None


@fault
def killed_in_validation(number):
    """Killed in a batch of a validation; ``number`` counts the batches of all validations."""
    from monai_diffae.engines import DiffusionEvaluator

    _in_calls(DiffusionEvaluator, "_iteration", _die_at(number), after=True)


@fault
def killed_in_step(number):
    """Killed in the middle of one of the steps of this process, between the gradients and the update."""
    from monai_diffae.engines.trainer import ResumableTrainer

    _in_calls(ResumableTrainer, "_update_weights", _die_at(number))


@fault
def without_picture_of_curves():
    """Not a fault: ``curves.png`` and ``curves.svg`` are empty files."""
    from monai_diffae.handlers import progress

    progress.draw_curves = lambda frame: SimpleNamespace(savefig=Path.touch)


@fault
def files_no_larger_than(limit, from_save):
    """From one of the saves on, no file can grow beyond a number of bytes, as if the disk were full."""

    def begin(save):
        if save == from_save:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    _in_saves(begin)


@fault
def memory_written_to(file):
    """Append the resident memory in MB of this process to a file after each step."""
    import psutil

    from monai_diffae.engines.trainer import ResumableTrainer

    process = psutil.Process()

    def measure(number):
        with open(file, "a") as stream:
            stream.write(f"{process.memory_info().rss / 1e6}\n")

    _in_calls(ResumableTrainer, "_iteration", measure, after=True)


if __name__ == "__main__":
    serve()
