"""The folder of a pulled bundle: it appears as a whole, and is replaced only if it holds nothing of the user's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_diffae.bundle.checksum_list import CHECKSUM_LIST, read_checksum_list
from monai_diffae.bundle.folders import check_new_folder
from monai_diffae.data.atomic import disk_errors
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError

_SYSTEM_FILES = (".lock", ".DS_Store")  # written by this package and by macOS, not by the user


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty hidden folder, which becomes ``target`` at the end. After an error, nothing has changed.

    The target is new, empty, or with ``overwrite`` the folder of an earlier pull.
    """
    if target.resolve() == Path.cwd():
        raise ConfigError("out: is the current folder, which cannot be replaced; choose a new folder")
    if target.is_symlink():
        raise ConfigError(
            f"out: {target.name} is a link, which would be replaced; choose the folder that it leads to, or a new one"
        )
    is_replaced = overwrite and target.is_dir() and any(target.iterdir())
    if is_replaced:
        _check_replaceable(target)
    else:
        check_new_folder(target)
    with disk_errors(target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=".pulled-")
    with temporary as hidden:
        folder = Path(hidden) / "new"
        folder.mkdir()
        yield folder
        with disk_errors(target.name):
            old = Path(hidden) / "old"
            if target.is_dir():
                target.rename(old)
            try:
                folder.rename(target)
            except BaseException:
                if old.is_dir():
                    old.rename(target)
                raise


def _check_replaceable(target: Path) -> None:
    if not (target / CHECKSUM_LIST).is_file():
        raise ConfigError(f"{target.name}: was not pulled, so it is not replaced; choose another folder")
    listed = read_checksum_list(target / CHECKSUM_LIST)
    known = {*listed, CHECKSUM_LIST}
    names = (path.relative_to(target) for path in sorted(target.rglob("*")) if path.is_file() or path.is_symlink())
    own = [name.as_posix() for name in names if name.as_posix() not in known and name.name not in _SYSTEM_FILES]
    if own:
        raise ConfigError(f"{target.name}: holds files of your own, such as {own[0]}; choose another folder")
    changed = (name for name in sorted(listed) if (target / name).is_file() and _differs(target / name, listed[name]))
    if (name := next(changed, None)) is not None:
        raise ConfigError(f"{target.name}: {name} was changed after the pull; choose another folder")


def _differs(path: Path, checksum: str) -> bool:
    return file_checksum(path) != checksum
