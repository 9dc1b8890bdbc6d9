"""Get the files of a bundle that its list of checksums names, from the Hugging Face Hub or from a zip file."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monai_diffae.bundle import layout
from monai_diffae.bundle.checksum_list import CHECKSUM_LIST, check_files, read_checksum_list
from monai_diffae.bundle.sent_files import may_be_in_a_sent_bundle
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, MachineError, ScanError, UnsafeInputError

_ENCRYPTED = 1  # bit of a zip file's member
_LARGEST_RATIO = 20  # of the unpacked to the packed size; weights hardly become smaller in a zip file
_ALWAYS_ALLOWED = 100_000_000  # bytes, unpacked
# a trained bundle needs one file of each
_NEEDED = (
    (f"{layout.MODELS}/{layout.MODEL}",),
    (f"{layout.MODELS}/{layout.CONFIG}", f"{layout.CONFIGS}/{layout.TRAIN}"),
)


@dataclass(frozen=True)
class Fetched:
    """The result of :func:`fetch`.

    Attributes:
        revision: the commit; None for a zip file.
        sha256: the checksum of the list of checksums, or of the zip file.
        checksums: the checksums of the files, by their names.
        left_out: listed files that are no files of a bundle of this package, such as Python code.
    """

    revision: str | None
    sha256: str
    checksums: dict[str, str]
    left_out: tuple[str, ...]


def fetch(repo: str, folder: Path, revision: str | None = None, sha256: str | None = None) -> Fetched:
    """Get the files of a bundle from a repository, a zip file or its address, and check their checksums.

    ``sha256`` is the checksum that the list of checksums, or the zip file, must have.
    """
    is_address = bool(re.match(r"https?://", repo))
    if not is_address and not repo.endswith(".zip"):
        return _fetch_from_hub(repo, folder, revision, sha256)
    if revision is not None:
        raise ConfigError("revision: a zip file has none; omit revision")
    if not is_address:
        return _unpack(Path(repo), folder, sha256)
    if sha256 is None:
        raise ConfigError("sha256: is needed for an address; ask the author of the zip file for it")
    with tempfile.TemporaryDirectory() as temporary:
        return _unpack(_download(repo, Path(temporary)), folder, sha256)


def _fetch_from_hub(repo: str, folder: Path, revision: str | None, sha256: str | None) -> Fetched:
    from monai_diffae.apps.sharing.hub import hub_errors, open_hub

    hub = open_hub()
    with hub_errors(repo, revision):
        from huggingface_hub.errors import EntryNotFoundError

        commit = hub.repo_info(repo, revision=revision).sha  # all files are those of one commit

        def get(name: str) -> None:
            with suppress(EntryNotFoundError):  # check_files reports it
                hub.hf_hub_download(repo, name, revision=commit, local_dir=folder)

        get(CHECKSUM_LIST)
        if not (folder / CHECKSUM_LIST).is_file():
            raise _no_list(repo)
        _check(folder / CHECKSUM_LIST, sha256)
        fetched = _fetch_listed(folder, commit, file_checksum(folder / CHECKSUM_LIST), get)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of huggingface_hub
    return fetched


def _no_list(name: str) -> ConfigError:
    return ConfigError(
        f"{name}: has no {CHECKSUM_LIST}, so monai-diffae push did not send it; other bundles can be had with: "
        "python -m monai.bundle download"
    )


def _fetch_listed(folder: Path, commit: str | None, sha256: str, get: Callable[[str], None]) -> Fetched:
    """Get all files that the list names, and check them."""
    listed = read_checksum_list(folder / CHECKSUM_LIST)
    checksums = {name: value for name, value in listed.items() if may_be_in_a_sent_bundle(name)}
    for needed in _NEEDED:
        if checksums.keys().isdisjoint(needed):
            raise ConfigError(
                f"{CHECKSUM_LIST}: lists no {needed[0]}, so this is no trained bundle; ask its author for it"
            )
    for name in checksums:
        get(name)
    check_files(folder, checksums)
    return Fetched(commit, sha256, checksums, tuple(sorted(listed.keys() - checksums.keys())))


def _unpack(path: Path, folder: Path, sha256: str | None) -> Fetched:
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; give a zip file, or a repository as owner/name")
    _check(path, sha256)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
                raise ScanError(f"{path.name}: is encrypted; get one without a password")
            if sum(member.file_size for member in archive.infolist()) > _most_bytes(path):
                raise UnsafeInputError(
                    f"{path.name}: would be more than {_LARGEST_RATIO} times as large when it is unpacked, so it holds "
                    "more than weights; do not unpack it, and ask its author for another file"
                )
            lists = [name for name in archive.namelist() if name.rpartition("/")[2] == CHECKSUM_LIST]
            if not lists:
                raise _no_list(path.name)
            around = min(lists, key=len).removesuffix(CHECKSUM_LIST)  # a zip file may have a folder around the bundle

            def get(name: str) -> None:
                if around + name in archive.namelist():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(around + name) as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)

            get(CHECKSUM_LIST)
            return _fetch_listed(folder, None, file_checksum(path), get)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ScanError(f"{path.name}: is damaged; get it again") from error


def _most_bytes(path: Path) -> int:
    return max(_ALWAYS_ALLOWED, _LARGEST_RATIO * path.stat().st_size)


def _download(address: str, folder: Path) -> Path:
    from monai.apps.utils import download_url

    path = folder / (re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]) or "bundle.zip")
    try:
        download_url(address, path, progress=False)
    except (OSError, RuntimeError) as error:  # MONAI raises a RuntimeError if nothing was sent
        raise MachineError(f"{path.name}: cannot be downloaded ({type(error).__name__}); check the address") from error
    return path


def _check(path: Path, sha256: str | None) -> None:
    if sha256 is not None and file_checksum(path) != sha256.lower():
        raise ConfigError(
            f"sha256: {path.name} has another checksum than {sha256[:12]}...; ask its author which is right"
        )
