"""Arrays of one shape, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_diffae.errors import MachineError


class ArrayStore:
    """Stores up to ``count`` float32 arrays of one shape, on disk or in memory: first appended, then read by position.

    Example:
        >>> store = ArrayStore(3, (2,), None)
        >>> store.append(np.ones(2, np.float32))
        >>> store[0], store.filled
        (array([1., 1.], dtype=float32), 1)
    """

    def __init__(self, count: int, shape: tuple[int, ...], path: Path | None) -> None:
        self.shape, self.path, self.filled = shape, path, 0
        self._array = np.empty((count, *shape), np.float32) if path is None else None
        # written, not memory-mapped: a full disk then raises an error and does not kill the process
        self._stream = None if path is None else open(path, "wb")  # noqa: SIM115

    def append(self, array: NDArray[np.float32]) -> None:
        """Add one array."""
        if self._array is not None:
            self._array[self.filled] = array
        elif self._stream is not None:
            with _disk_errors():
                self._stream.write(np.ascontiguousarray(array).tobytes())
        self.filled += 1

    def close(self) -> None:
        """Finish appending; call this before reading."""
        if self._stream is not None:
            with _disk_errors():
                self._stream.close()  # it writes what is still in its buffer
            self._stream = None

    def __getitem__(self, position: int) -> NDArray[np.float32]:
        """Return a copy of one array."""
        if self._array is None:
            if self.path is None:
                raise RuntimeError("the store has neither an array nor a file")
            self._array = np.memmap(self.path, np.float32, "r", shape=(self.filled, *self.shape))
        return np.array(self._array[position])

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker gets the name of the file, not its contents
        return {**self.__dict__, "_stream": None, "_array": None if self.path else self._array}


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"cache_dir: cannot be written ({error.strerror}); choose another disk") from error
