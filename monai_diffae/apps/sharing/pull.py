"""The command ``pull``: get a model that others have sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult
from monai_diffae.errors import ConfigError, counted, quoted

_RECORD = ".pulled.json"  # the checksums of the files of a pulled folder, so that another pull may replace it
_SYSTEM_FILES = (_RECORD, ".lock", ".DS_Store")  # not written by the user


@dataclass(frozen=True)
class PullResult(FolderResult):
    """The result of :func:`pull`.

    Attributes:
        revision: the commit; None for a zip file.
        sha256: SHA-256 of the model's file.
        own_code: what the model builds that this package does not know; nothing of it was run.
        left_out: the other files of the repository or zip file.
    """

    revision: str | None
    sha256: str
    own_code: tuple[str, ...]
    left_out: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The folder, how to get the same again, what was left out, and whether the model must be trusted."""
        yield from super().lines()
        revision = f"--revision {self.revision} " if self.revision else ""
        yield f"to get exactly this model again: {revision}--sha256 {self.sha256}"
        if self.left_out:
            names = ", ".join(map(quoted, self.left_out[:5]))
            yield f"left out {counted(len(self.left_out), 'file')} that no model has, such as {names}"
        if self.own_code:
            yield f"the model has code of its own, which commands only run with --trust: {', '.join(self.own_code)}"
            yield "configs/train.json does not have it; to train the model, pull it with --trust, too"

    def figures(self) -> dict[str, Any]:
        """The fields."""
        return {**asdict(self), **super().figures()}


@command
def pull(
    repo: str, out: Path, *, revision: str | None = None, sha256: str | None = None, overwrite: bool = False
) -> PullResult:
    """Get a model from the Hugging Face Hub or from a zip file, as ``push`` has sent it, into a new bundle.

    The bundle gets the weights and the documents of the model, and the configurations of this package with its values.
    Nothing of the model is run. If it has code of its own, commands refuse it without ``--trust``.

    The hub needs ``pip install 'monai-diffae[hub]'``, and for private repositories the token of ``hf auth login`` or
    ``HF_TOKEN``. A zip file needs neither.

    Args:
        repo: Repository as ``owner/name``, a zip file, or the address of one, such as a file of a GitHub release.
        out: New folder for the bundle.
        revision: Tag, branch or commit of a repository; without it, the newest files of its main branch.
        sha256: SHA-256 that ``model.safetensors`` must have; required for the address of a zip file.
        overwrite: Replace the folder of an earlier pull, if nothing in it has changed.

    Returns:
        The folder, and what it was made from.

    Raises:
        ConfigError: there is no such model, its checksum is another one, or ``out`` holds something else.
        ScanError: a file is damaged.
        UnsafeInputError: a file holds something that a model never holds.
        MachineError: huggingface_hub is not installed, the hub cannot be reached, or ``out`` cannot be written.

    Example:
        >>> pull("model.zip", "my_copy")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: model.zip: there is no such file; give a zip file, or a repository as ...
    """
    import shutil

    from monai_diffae.apps.sharing.sent_files import METRICS, MODEL, unknown_code
    from monai_diffae.apps.sharing.transport import fetch
    from monai_diffae.bundle.folders import fill_folder, new_folder
    from monai_diffae.bundle.model_file import read_description
    from monai_diffae.data.atomic import write_json

    replaces = overwrite and out.is_dir() and any(out.iterdir())
    if replaces:
        _check_replaceable(out)
    with new_folder(out, replaces=replaces) as folder:
        fetched = folder / ".fetched"
        commit, left_out = fetch(repo, fetched, revision, sha256)
        own_code = unknown_code(fetched)
        fill_folder(folder, fetched, is_built=False)
        shutil.rmtree(fetched)
        write_json(folder / METRICS, read_description(folder / MODEL).get("figures", {}))
        files = _checksums(folder)
        write_json(folder / _RECORD, files)
        if replaces:  # a training may have begun meanwhile
            _check_replaceable(out)
    return PullResult(out, commit, files[MODEL], tuple(own_code), tuple(left_out))


def _checksums(folder: Path) -> dict[str, str]:
    """The checksums of all files in a folder; links to folders have none."""
    from monai_diffae.data.file_checksums import file_checksum

    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(folder).as_posix(): file_checksum(path) if path.is_file() else ""
        for path in files if path.name not in _SYSTEM_FILES
    }  # fmt: skip


def _check_replaceable(folder: Path) -> None:
    """Check that a folder holds what a pull has written, and nothing of the user's own."""
    from monai_diffae.bundle.code import read_values

    if folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve()):
        raise ConfigError(f"out: {folder.name} is a link or the current folder, which is not replaced; choose another")
    pulled = read_values(folder / _RECORD, "choose another folder")
    own = [name for name, sha256 in _checksums(folder).items() if pulled.get(name) != sha256]
    if own or not pulled:
        what = f"{quoted(own[0])} in it is your own or has changed" if pulled else "it was not pulled"
        raise ConfigError(f"{folder.name}: is not replaced, as {what}; choose another folder")
