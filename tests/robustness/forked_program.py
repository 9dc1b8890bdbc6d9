"""The program in forks of the test's process, which need not import torch and MONAI again.

A fork can be given a fault: where in a training it is killed with SIGKILL, how large its files may get, and so on.
"""

import contextlib
import ctypes
import itertools
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import SimpleNamespace

LONGEST_S = 300.0
FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


# -- in the test's process ---------------------------------------------------------------------------------------------


class Program(ForkProcess):
    """A command that runs in a process group of its own.

    What it prints goes to the file ``output`` through a pipe, which its limits and signals do not reach.
    """

    def __init__(self, arguments, output, faults):
        read, write = (None, None) if output is None else os.pipe()
        super().__init__(target=become_program, args=(arguments, write, faults))
        self.output, self._copier = output, None
        self.start()
        if output is not None:
            os.close(write)
            output.write_bytes(b"")
            self._copier = threading.Thread(target=_copy, args=(read, output), daemon=True)
            self._copier.start()

    def join(self, timeout=None):
        super().join(timeout)
        if self._copier and self.exitcode not in (None, -signal.SIGKILL):  # workers of a killed one take seconds to end
            self._copier.join()

    def wait(self):
        """The exit code; -9 after a kill."""
        self.join()
        return self.exitcode

    def errors(self):
        """The lines that say why it failed."""
        lines = self.output.read_text().splitlines()
        assert not any("Traceback" in line or "this is a bug" in line for line in lines), lines[-30:]
        return [line for line in lines if line.startswith("error: ")]


def _copy(pipe, file):
    with open(pipe, "rb", buffering=0) as source, open(file, "ab", buffering=0) as target:
        shutil.copyfileobj(source, target)


@contextlib.contextmanager
def programs():
    """Starts commands; the processes that still run at the end are killed."""
    started = []

    def start(*arguments, output=None, faults=None):
        started.append(Program(arguments, output, faults))
        return started[-1]

    try:
        yield start
    finally:
        for program in started:
            program.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # its workers
            program.join()


def free_port():
    """A port on which no server listens."""
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        return test.getsockname()[1]


@contextlib.contextmanager
def served(application, **settings):
    """The address of a server in a thread, for the application that a function makes for a port."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(application(port), log_config=None, access_log=False, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(30)


def wait_until(is_true, seconds=LONGEST_S):
    """Wait for a condition, and return its value; False if it does not come."""
    until = time.monotonic() + seconds
    while not (value := is_true()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return value


# -- in the program's process ------------------------------------------------------------------------------------------


def become_program(arguments, output, faults):
    """Run a command in the process that was forked for it; ``faults`` are arguments of :data:`FAULTS`."""
    from monai_diffae import cli

    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the tests, however they end
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - not pytest's
    for name, values in (faults or {}).items():
        FAULTS[name](*values)
    sys.argv = ["monai-diffae", *map(str, arguments)]
    cli.main()


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
