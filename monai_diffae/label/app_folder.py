"""The folder of a MONAI Label app: what is where in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from monai_diffae.data.atomic import write_json
from monai_diffae.errors import ConfigError, MachineError, UnsafeInputError

_MAIN = '''"""A MONAI Label app that serves the diffusion autoencoder named in settings.json."""

from monai_diffae.label import DiffAEApp

__all__ = ["DiffAEApp"]
'''


_NOT_IMPORTED = ("bundle", "training")  # folders from which nothing is imported


@dataclass(frozen=True)
class AppFolder:
    """The folder of an app.

    Attributes:
        path: the folder. It holds ``main.py``, which MONAI Label imports, ``settings.json``, the bundle, directions for
            edits, and what the server writes: the embedding index, trainings and logs.
    """

    path: Path

    @property
    def main(self) -> Path:
        """The file that MONAI Label imports."""
        return self.path / "main.py"

    @property
    def settings_file(self) -> Path:
        """The file that names the bundle and the device."""
        return self.path / "settings.json"

    @property
    def copied_bundle(self) -> Path:
        """The app's own copy of the bundle, if it has one."""
        return self.path / "bundle"

    @property
    def directions(self) -> Path:
        """The folder with files of ``monai-diffae fit-direction``, for the task ``diffae_edit``."""
        return self.path / "directions"

    @property
    def index(self) -> Path:
        """The folder of the embedding index."""
        return self.path / "index"

    @property
    def training(self) -> Path:
        """The folder in which the server trains."""
        return self.path / "training"

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.path / "logs" / "app.log"

    def settings(self) -> dict[str, Any]:
        """The content of ``settings.json``.

        Raises:
            ConfigError: this is not the folder of an app, or the file cannot be used.
        """
        if not (self.main.is_file() and self.settings_file.is_file()):
            raise ConfigError(f"{self.path.name}: is not an app folder; make one with monai-diffae label-app")
        try:
            settings = json.loads(self.settings_file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError("settings.json: is not valid JSON; correct it, or make a new app") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("bundle"), str):
            raise ConfigError("settings.json: has no bundle; set it to the folder of a trained bundle")
        unknown = settings.keys() - {"bundle", "device"}
        if unknown:
            raise ConfigError(f"settings.json: {min(unknown)!r} is unknown; use bundle and device")
        return settings

    def check_code(self) -> None:
        """Refuse Python code that ``label-app`` did not write and MONAI Label could import, unless it is trusted.

        Compiled copies of ``main.py`` are removed, because Python would run them without comparing them.

        Raises:
            UnsafeInputError: there is other code, and it is not trusted.
        """
        from monai_diffae.bundle.code import is_trusting

        shutil.rmtree(self.path / "__pycache__", ignore_errors=True)
        code = {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for path in sorted(self.path.rglob("*"))
            if path.name.endswith(tuple(all_suffixes())) and path.relative_to(self.path).parts[0] not in _NOT_IMPORTED
        }
        if code.get(self.main.name) == _MAIN.encode():
            del code[self.main.name]
        if code and not is_trusting():
            raise UnsafeInputError(
                f"{self.path.name}: {min(code)!r} is code that label-app did not write; nothing was run. Read it, and "
                "add --trust if you trust its author"
            )

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that the app serves.

        Raises:
            ConfigError: as :meth:`settings`.
        """
        return self.path / self.settings()["bundle"]  # an absolute path replaces the folder

    @property
    def owns_its_bundle(self) -> bool:
        """Whether the app serves its own copy, which training may replace.

        Raises:
            ConfigError: as :meth:`settings`.
        """
        return self.bundle.resolve() == self.copied_bundle.resolve()


def make_app_folder(path: Path, bundle: Path, *, refer: bool) -> AppFolder:
    """Make the folder of an app; it appears only when it is complete.

    Args:
        path: a new folder.
        bundle: a trained bundle.
        refer: use the bundle where it is, instead of a copy.

    Raises:
        ConfigError: the bundle is not trained, or ``path`` is not a new folder.
        UnsafeInputError: the bundle has code of its own and is not trusted.
        MachineError: the folder cannot be written.
    """
    from monai_diffae.bundle import AnomalyDetector, load_bundle
    from monai_diffae.bundle.folders import check_new_folder, init_bundle

    check_new_folder(path)
    AnomalyDetector.load_if_usable(load_bundle(bundle, "cpu"))  # unsafe files are refused before they are copied
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = AppFolder(Path(mkdtemp(prefix=".tmp-", dir=path.parent)))
        try:
            unfinished.main.write_text(_MAIN, encoding="utf-8")
            unfinished.directions.mkdir()
            if not refer:
                init_bundle(unfinished.copied_bundle, bundle)
            write_json(unfinished.settings_file, {"bundle": str(bundle.resolve()) if refer else "bundle"})
            unfinished.path.chmod(0o755)
            unfinished.path.replace(path)
        finally:
            shutil.rmtree(unfinished.path, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or "not all files could be copied"  # shutil raises one error for all files
        raise MachineError(
            f"{path.name}: cannot be written ({reason}); free disk space or choose another folder"
        ) from error
    return AppFolder(path)
