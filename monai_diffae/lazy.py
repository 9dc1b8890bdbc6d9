"""Imports that are done when they are first used, so that ``--help`` loads neither torch nor MONAI.

Import linters, type checkers and readers see ordinary imports. From Python 3.15 on, ``lazy import`` does the same.
"""

from __future__ import annotations

import builtins
import sys
import threading
from importlib import import_module
from typing import Any


class _Module:
    """Stands for a module: each attribute is that of the module, which is imported for the first one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)

    def __reduce__(self) -> tuple[type[_Module], tuple[str]]:
        return _Module, (self._name,)


class _Package:
    """What ``from package import module`` looks into."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, module: str) -> _Module:
        return _Module(f"{self._name}.{module}")


class _OnFirstUse:
    """``with on_first_use:`` around import statements of modules (not of names in them)."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # other threads import while a module is in its block
        self._blocks: list[dict[str, Any]] = []  # the modules; a signal may import another one in between

    def __enter__(self) -> None:
        self._lock.acquire()
        if not self._blocks:
            self._import, builtins.__import__ = builtins.__import__, self._defer
        self._blocks.append(sys._getframe(1).f_globals)

    def __exit__(self, *error: object) -> None:
        self._blocks.pop()
        if not self._blocks:
            builtins.__import__ = self._import
        self._lock.release()

    def _defer(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not self._blocks[-1]:
            return self._import(name, globals, locals, fromlist, level)
        package = name if fromlist else name.rpartition(".")[0]  # `import numpy.typing as npt` looks into numpy
        return _Package(package) if package else _Module(name)


on_first_use = _OnFirstUse()
