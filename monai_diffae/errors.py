"""The errors of this package: each message says what is wrong, with which file, case or key, and what to do next.

Every message is a single line, so that it reads the same in a terminal, in ``failures.csv`` and in a log.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound=BaseException)

_NOT_BUILT = r"(?:Failed to instantiate component|Cannot locate class or function path:) '((?!monai_diffae).+?)'"
_WRONG = TypeError, ValueError, LookupError, ImportError  # what wrong names and arguments raise
_LONGEST_QUOTE = 60
_LONGEST_PROBLEM = 200  # characters


class DiffAEError(Exception):
    r"""An error that the user can fix. ``exit_code`` is the exit code of a command that it ends.

    Example:
        >>> str(DiffAEError("column 'a\r\nb': is not known"))
        "column 'a b': is not known"
    """

    exit_code = 1
    path: str | PathLike[str] | None = None  # as the user typed it, if the message begins with its last part

    def at(self, path: str | PathLike[str]) -> "DiffAEError":
        """This error, about a path that the user typed: logs and files keep its last part only, as parents name people.

        Example:
            >>> error = DiffAEError("scans: there is no such folder").at(Path("wrong/scans"))
            >>> str(error), error.on_terminal()
            ('scans: there is no such folder', 'wrong/scans: there is no such folder')
        """
        self.path = path
        return self

    def on_terminal(self) -> str:
        """The message with the whole path."""
        return str(self) if self.path is None else f"{self.path}: {str(self).partition(': ')[2]}"

    def __str__(self) -> str:
        """The message as one line, also if it quotes text with line breaks."""
        return " ".join(super().__str__().split())


def shortened(text: str, longest: int) -> str:
    """A text with at most so many characters; dots at its end replace the rest.

    Example:
        >>> shortened("0123456789", 8)
        '01234...'
    """
    return text if len(text) <= longest else f"{text[: max(longest - 3, 0)]}..."


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1.

    Example:
        >>> counted(1, "scan"), counted(0, "group of scans"), counted(2, "group of scans")
        ('1 scan', '0 groups of scans', '2 groups of scans')
    """
    head, of, tail = noun.partition(" of ")
    return f"{number} {head}{'' if number == 1 else 's'}{of}{tail}"


def quoted(value: object) -> str:
    """A value from a file or an option, as an error quotes it: as Python writes it, with at most 60 characters.

    Example:
        >>> quoted("a"), quoted(10**100)[-6:], len(quoted("a" * 100))
        ("'a'", '000...', 60)
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        return f"<{type(value).__name__}>"
    if isinstance(value, str) and len(text) > _LONGEST_QUOTE:
        return shortened(text, _LONGEST_QUOTE - 1) + text[0]
    return shortened(text, _LONGEST_QUOTE)


class OmittableError(DiffAEError):
    """An error that ends one part of a command; the command may omit this part, and do the others."""


class ConfigError(OmittableError, ValueError):
    """A configuration key, argument or option has a value that cannot be used."""

    exit_code = 2


class OtherResultsError(ConfigError):
    """There are results that were made with other settings; ``overwrite`` replaces them."""


class ScanError(OmittableError, ValueError):
    """One scan cannot be used; the other cases of its cohort can."""

    exit_code = 4


def problem(path: str | PathLike[str], wrong: str, todo: str) -> ScanError:
    """Make the error ``file name: what is wrong; what to do``: one line of at most 200 characters, without folders."""
    name = " ".join(Path(path).name.split())
    if len(name) > 48:
        name = "..." + name[-45:]
    room = _LONGEST_PROBLEM - len(name) - len(todo) - 4
    return ScanError(f"{name}: {shortened(' '.join(wrong.split()), room)}; {todo}")


class CohortError(OmittableError, ValueError):
    """A folder, table or datalist has no usable cases."""

    exit_code = 4


class UnsafeInputError(DiffAEError, ValueError):
    """An input is refused because reading it could run code or exhaust the machine; every command ends with it."""

    exit_code = 5


class MachineError(OmittableError, RuntimeError):
    """The machine lacks something that the command needs: disk space, a device or memory."""

    exit_code = 6


class DivergenceError(DiffAEError, ArithmeticError):
    """The loss, the gradients or the weights of a training are no longer finite."""

    exit_code = 7


class BusyError(MachineError):
    """Another process is changing the same files; the same call works when it has finished."""


def check_installed(package: str, extra: str, instead: str = "") -> None:
    """Raise an error that says what to install, or what to do ``instead``, if a package of an extra is missing."""
    if find_spec(package) is None:
        raise MachineError(f"{package} is not installed; run pip install 'monai-diffae[{extra}]'{instead}")


def find_error(error: BaseException | None, kind: type[T]) -> T | None:
    """The first exception of a kind in an exception's chain of causes; None if there is none."""
    return next((each for each in _chain(error) if isinstance(each, kind)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def find_diffae_error(error: BaseException | None) -> DiffAEError | None:
    """The first :class:`DiffAEError` in an exception's chain of causes; None if there is none.

    MONAI wraps errors of transforms and configuration components into a ``RuntimeError`` of many lines. The cause of
    that error is the one to show. A component of another package that cannot be built is a :class:`ConfigError`.

    Example:
        >>> wrapped = RuntimeError("applying transform ...")
        >>> wrapped.__cause__ = ScanError("case 7: file is empty; copy it again")
        >>> str(find_diffae_error(wrapped))
        'case 7: file is empty; copy it again'
    """
    if known := find_error(error, DiffAEError):
        return known
    for each in _chain(error):
        component = re.match(_NOT_BUILT, str(each))
        if component and isinstance([*_chain(each)][-1], _WRONG):
            return ConfigError(f"{component[1]}: {_cause(each)}; check its name and arguments in the configuration")
    return None


def one_line(error: BaseException) -> str:
    """An exception as one line: the :class:`DiffAEError` in its chain if there is one, else its type and message."""
    known = find_diffae_error(error)
    if known is not None:
        return str(known)
    return _cause(error)


def _cause(error: BaseException) -> str:
    """The first error of a chain, which those of MONAI do not name, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())
