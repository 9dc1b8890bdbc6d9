"""Read configurations of bundles, and check them for code. All that are built or run are read here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from monai_diffae.bundle.config import model_config
from monai_diffae.bundle.own_code import OwnCode, own_code
from monai_diffae.bundle.parser import Parser
from monai_diffae.bundle.trust import check_code, is_trusted
from monai_diffae.errors import ConfigError


def read_config(*files: Path, roots: Sequence[str] | None = None) -> ConfigParser:
    """Read configuration files, of which later ones replace values of earlier ones, and check them for code.

    The first file is in a folder of a bundle. With ``roots``, the result has only these keys and those that they refer
    to.
    """
    parser = _read(files)
    if roots is not None:
        parser = Parser(model_config(dict(parser.get()), roots=tuple(roots)))
    check_code(parser.get(), f"{_bundle(files)}: {_names(files)}")
    return parser


def read_own_code(file: Path) -> list[OwnCode]:
    """The own code in a configuration file of a bundle. Nothing of it is run.

    Within :func:`~monai_diffae.bundle.trust.trusting`, the file is remembered as trusted.
    """
    config = _read([file]).get()
    parts = own_code(config)
    if parts:
        is_trusted(config)
    return parts


def _read(files: Sequence[Path]) -> ConfigParser:
    parser = Parser()
    try:
        parser.read_config([str(file) for file in files])
        dict(parser.get())
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError) as error:
        raise ConfigError(f"{_bundle(files)}: {_names(files)} cannot be read; copy the bundle again") from error
    return parser


def _bundle(files: Sequence[Path]) -> str:
    return files[0].absolute().parents[1].name


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)
