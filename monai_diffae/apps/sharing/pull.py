"""The command ``pull``: get a model that others have sent."""

import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.apps.sharing.hub import DOCUMENTS, FAST, LATENT, METRICS, MODEL, NAMES, WIDE, open_hub, read_document
from monai_diffae.bundle.code import read_values
from monai_diffae.bundle.folders import fill_folder, new_folder
from monai_diffae.bundle.model_file import read_description, read_model, unknown_targets
from monai_diffae.data.atomic import write_json
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import ConfigError, MachineError, ScanError, UnsafeInputError, quoted

_RECORD = ".pulled.json"  # the checksums of the files of a pulled folder, so that another pull may replace it
_SYSTEM_FILES = (_RECORD, ".lock", ".DS_Store")  # not written by the user
_LARGEST_RATIO = 20  # of the unpacked to the packed size; weights hardly become smaller in a zip file
_ALWAYS_ALLOWED = 100_000_000  # bytes, unpacked


@command
def pull(
    repo: str, out: Path, *, revision: str | None = None, sha256: str | None = None, overwrite: bool = False
) -> Result:
    """Get a model from the Hugging Face Hub or from a zip file, as ``push`` has sent it, into a new bundle.

    The bundle gets the weights and the documents of the model, and the configurations of this package with its values.
    Nothing of the model is run. If it has code of its own, commands refuse it without ``--trust``. The hub needs ``pip
    install 'monai-diffae[hub]'``, and for private repositories the token of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        repo: Repository as ``owner/name``, a zip file, or the address of one, such as a file of a GitHub release.
        out: New folder for the bundle.
        revision: Tag, branch or commit of a repository; without it, the newest files of its main branch.
        sha256: SHA-256 that the zip file must have, or the ``model.safetensors`` of a repository; required for an
            address.
        overwrite: Replace the folder of an earlier pull, if nothing in it has changed.

    Returns:
        The folder; ``revision``, which is None for a zip file; ``sha256``, as above; and ``own_code``: what the model
        builds that this package does not know.

    Raises:
        ConfigError: there is no such model, its checksum is another one, or ``out`` holds something else.
        ScanError: a file is damaged.
        UnsafeInputError: a file holds something that a model never holds.
        MachineError: huggingface_hub is not installed, the hub cannot be reached, or ``out`` cannot be written.
    """
    replaces = overwrite and out.is_dir() and any(out.iterdir())
    if replaces:
        _check_replaceable(out)
    with new_folder(out, replaces=replaces) as folder:
        fetched = folder / ".fetched"
        fetched.mkdir()
        commit, checksum = _fetch(repo, fetched, revision, sha256)
        own_code = _unknown_code(fetched)
        fill_folder(folder, fetched, is_built=False)
        shutil.rmtree(fetched)
        write_json(folder / METRICS, read_description(folder / MODEL).get("figures", {}))
        files = _checksums(folder)
        write_json(folder / _RECORD, files)
        if replaces:  # a training may have begun meanwhile
            _check_replaceable(out)
    revision = f"--revision {commit} " if commit else ""
    lines = [f"to get exactly this model again: {revision}--sha256 {checksum}"]
    if own_code:
        lines += [
            f"the model has code of its own, which commands only run with --trust: {', '.join(own_code)}",
            "configs/train.json does not have it; to train the model, pull it with --trust, too",
        ]
    return Result(out, {"revision": commit, "sha256": checksum, "own_code": own_code}, next=lines)


def _fetch(repo: str, folder: Path, revision: str | None, sha256: str | None) -> tuple[str | None, str]:
    """Get the files of a model; returns a repository's commit, and the checksum of its model or of the zip file."""
    is_address = bool(re.match(r"https?://", repo))
    if not is_address and not repo.endswith(".zip"):
        with open_hub(repo) as hub:
            info = hub.model_info(repo, revision=revision)
            commit = info.sha  # all files are those of one commit
            _get_files(
                repo,
                [file.rfilename for file in info.siblings or ()],
                folder,
                lambda name: hub.hf_hub_download(repo, name, revision=commit, local_dir=folder),
            )
        return commit, _checked(folder / MODEL, sha256)
    if revision is not None:
        raise ConfigError("revision: a zip file has none; omit it, or give the repository as owner/name")
    if is_address and sha256 is None:
        raise ConfigError("sha256: is needed for an address; ask the author of the model for it")
    path = _download(repo, folder) if is_address else Path(repo)
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; give a zip file, or a repository as owner/name").at(
            path
        )
    checked = _checked(path, sha256)
    _unpack(path, folder)
    return None, checked


def _checked(path: Path, sha256: str | None) -> str:
    checksum = file_checksum(path)
    if sha256 is not None and checksum != sha256.lower():
        raise ConfigError(f"sha256: {path.name} has another than {sha256[:12]}...; ask its author which is right")
    return checksum


def _get_files(repo: str, names: list[str], folder: Path, get: Callable[[str], object]) -> None:
    """Get all files that a model can have but the figures, which are in the model's file."""
    if MODEL not in names:
        raise ConfigError(
            f"{repo}: has no {MODEL}, so monai-diffae push did not send it; other bundles can be had with: "
            "python -m monai.bundle download"
        )
    for name in NAMES:
        if name in names and name != METRICS:
            (folder / name).parent.mkdir(exist_ok=True)
            get(name)
            if name in DOCUMENTS:
                read_document(folder, name)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            most = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * path.stat().st_size)
            if sum(member.file_size for member in archive.infolist()) > most:
                raise UnsafeInputError(
                    f"{path.name}: would be more than {_LARGEST_RATIO} times as large when it is unpacked, so it holds "
                    "more than weights; do not unpack it, and ask its author for another file"
                )

            def get(name: str) -> None:
                with archive.open(name) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)

            _get_files(path.name, archive.namelist(), folder, get)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise ScanError(f"{path.name}: is damaged or encrypted; get it again") from error


def _download(address: str, folder: Path) -> Path:
    from monai.apps.utils import download_url

    path = folder / (re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]) or "model.zip")
    try:
        download_url(address, path, progress=False)
    except (OSError, RuntimeError) as error:  # MONAI raises a RuntimeError if nothing was sent
        raise MachineError(f"{path.name}: cannot be downloaded ({type(error).__name__}); check the address") from error
    return path


def _unknown_code(folder: Path) -> list[str]:
    """Check that the models in a folder belong together, and list what they build that may do more than compute."""
    model = read_model(folder / MODEL, "autoencoder", "first_stage", is_built=False)
    targets = set(unknown_targets(model.description))
    for name, kind in ((LATENT, "latent"), (FAST, "fast"), (WIDE, "wide")):
        if (folder / name).is_file():
            other = read_model(folder / name, kind, is_built=False)
            if other.description.get("autoencoder_sha256") != model.sha256:
                raise ConfigError(f"{name}: belongs to another model than {MODEL}; ask its author for the right one")
            targets.update(unknown_targets(other.description))
    return sorted(targets)


def _checksums(folder: Path) -> dict[str, str]:
    """The checksums of all files in a folder; links to folders have none."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(folder).as_posix(): file_checksum(path) if path.is_file() else ""
        for path in files
        if path.name not in _SYSTEM_FILES
    }


def _check_replaceable(folder: Path) -> None:
    """Check that a folder holds what a pull has written, and nothing of the user's own."""
    pulled = read_values(folder / _RECORD, "choose another folder")
    own = [name for name, sha256 in _checksums(folder).items() if pulled.get(name) != sha256]
    is_special = folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve())
    if own or not pulled or is_special:
        what = f"{quoted(own[0])} in it is your own or has changed" if pulled and own else "it was not pulled"
        what = "it is a link or the current folder" if is_special else what
        raise ConfigError(f"{folder.name}: is not replaced, as {what}; choose another folder")
