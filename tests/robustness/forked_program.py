"""The program in forks of the test's process, which need not import torch and MONAI again."""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
import weakref
from multiprocessing.context import ForkProcess

LONGEST_S = 300.0


# -- in the test's process ---------------------------------------------------------------------------------------------


class Program(ForkProcess):
    """A command that runs in a process group of its own. What it prints goes to the file ``output``."""

    def __init__(self, arguments, output, fault):
        super().__init__(target=become_program, args=(arguments, output, fault))
        self.output = output
        if output is not None:
            output.write_bytes(b"")
        self.start()

    def wait(self):
        """The exit code; -9 after a kill."""
        self.join()
        return self.exitcode


@contextlib.contextmanager
def programs():
    """Starts commands; the processes that still run at the end are killed. Each first calls ``fault``."""
    started = []

    def start(*arguments, output=None, fault=None):
        started.append(Program(arguments, output, fault))
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


def become_program(arguments, output, fault):
    """Run a command in the process that was forked for it."""
    from monai_diffae import cli

    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the tests, however they end
    if output is not None:
        with open(output, "ab") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - not pytest's
    if fault:
        fault()
    weakref.finalize._registry.clear()  # what tests clean up
    try:
        cli.main([*map(str, arguments)])
    finally:
        weakref.finalize._exitfunc()  # a fork ends without it


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(call, is_counting=lambda: True):
    """Kill this process at a call of the functions that change files."""
    calls = itertools.count(1)

    def counted(function):
        def run(*args, **kwargs):
            if is_counting() and next(calls) == call:
                die()
            return function(*args, **kwargs)

        return run

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "link", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
