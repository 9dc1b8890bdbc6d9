"""Send and get files: by the Hugging Face Hub or a zip file.

MONAI's ``push_to_hf_hub`` and ``bundle.download`` (1.6.1) are not used: the first sends whatever is in a folder, the
second writes whatever is in a repository.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.apps.sharing.sent_files import CARD, DOCUMENTS, METRICS, MODEL, SENT, read_document
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, ScanError, UnsafeInputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Files = dict[str, bytes]

_PAGE = "README.md"  # of a repository; the licence of its weights depends on the data that they were trained on
_HEADER = b"""---
library_name: monai
tags:
- monai
- medical
license: other
license_name: see-data-license
license_link: docs/data_license.txt
---
"""
_LARGEST_RATIO = 20  # of the unpacked to the packed size; weights hardly become smaller in a zip file
_ALWAYS_ALLOWED = 100_000_000  # bytes, unpacked
_ENCRYPTED = 1  # bit of a zip file's member


# -- send --------------------------------------------------------------------------------------------------------------


def sender(repo: str, tag: str | None, *, public: bool) -> tuple[str, Callable[[Files], str | None]]:
    """What the place is to which files are sent, and a function that sends them and returns the commit."""
    if not repo.endswith(".zip"):
        return _repository(repo, tag, public)
    path = Path(repo)
    if tag is not None:
        raise ConfigError("tag: a zip file has none; write it into the file's name")
    if path.exists():
        raise ConfigError(f"{path.name}: exists already; choose another name")

    def send(files: Files) -> None:
        def write(temporary: Path) -> None:
            with zipfile.ZipFile(temporary, "w") as archive:  # not packed: weights hardly become smaller
                for name, content in files.items():
                    archive.writestr(name, content)

        write_atomic(path, write)

    return path.name, send


def _repository(repo: str, tag: str | None, public: bool) -> tuple[str, Callable[[Files], str]]:
    existing: set[str] = set()
    with _hub(repo) as hub:
        is_new = not hub.repo_exists(repo)
        if not is_new:
            info = hub.model_info(repo)
            if not info.private and not public:
                raise ConfigError(f"{repo}: everybody can see this repository; add public if that is what you want")
            if tag is not None and tag in {ref.name for ref in hub.list_repo_refs(repo).tags}:
                raise ConfigError(f"tag: {repo} has {tag!r} already; choose another name for this version")
            public, existing = not info.private, {file.rfilename for file in info.siblings or ()}

    def send(files: Files) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        page = files[CARD] if files[CARD].startswith(b"---\n") else _HEADER + files[CARD]
        changes: list[Any] = [CommitOperationAdd(name, content) for name, content in {_PAGE: page, **files}.items()]
        changes += [CommitOperationDelete(name) for name in existing & set(SENT) - files.keys()]  # of an earlier model
        with _hub(repo) as hub:
            if is_new:
                hub.create_repo(repo, private=not public)
            commit = hub.create_commit(repo, changes, commit_message=f"Model {tag}" if tag else "Model")
            if tag is not None:
                hub.create_tag(repo, tag=tag, revision=commit.oid)
        return str(commit.oid)

    kind = f"{'new, ' if is_new else ''}{'public: everybody can see it' if public else 'private'}"
    return f"{repo} ({kind})" + (f", tag {tag}" if tag else ""), send


# -- get ---------------------------------------------------------------------------------------------------------------


def fetch(repo: str, folder: Path, revision: str | None, sha256: str | None) -> tuple[str | None, list[str]]:
    """Get the files of a model from a repository, a zip file or its address into a new folder.

    ``sha256`` is the checksum that the model's file must have. Returns the commit, and the names of the files that are
    none of a model, which were left out.
    """
    is_address, commit = bool(re.match(r"https?://", repo)), None
    folder.mkdir()
    if not is_address and not repo.endswith(".zip"):
        with _hub(repo, revision) as hub:
            info = hub.model_info(repo, revision=revision)
            names = [file.rfilename for file in info.siblings or ()]
            commit = info.sha  # all files are those of one commit
            _get_all(
                repo, names, folder, lambda name: hub.hf_hub_download(repo, name, revision=commit, local_dir=folder)
            )
    elif revision is not None:
        raise ConfigError("revision: a zip file has none; omit revision")
    elif is_address and sha256 is None:
        raise ConfigError("sha256: is needed for an address; ask the author of the model for it")
    else:
        names = _unpack(_download(repo, folder) if is_address else Path(repo), folder)
    if sha256 is not None and file_checksum(folder / MODEL) != sha256.lower():
        raise ConfigError(f"sha256: {MODEL} has another than {sha256[:12]}...; ask its author which is right")
    expected = {*SENT, _PAGE, ".gitattributes"}
    return commit, sorted(name for name in {*names} if name not in expected and not name.endswith("/"))


def _get_all(repo: str, names: list[str], folder: Path, get: Callable[[str], object]) -> None:
    """Get all files that a model can have but the figures, which are in the model's file."""
    if MODEL not in names:
        raise ConfigError(
            f"{repo}: has no {MODEL}, so monai-diffae push did not send it; other bundles can be had with: "
            "python -m monai.bundle download"
        )
    for name in SENT:
        if name in names and name != METRICS:
            (folder / name).parent.mkdir(exist_ok=True)
            get(name)
            if name in DOCUMENTS:
                read_document(folder, name)


def _unpack(path: Path, folder: Path) -> list[str]:
    """Unpack the files of a model, and return the names of all files."""
    if not path.is_file():
        raise ConfigError(f"{path.name}: there is no such file; give a zip file, or a repository as owner/name")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.flag_bits & _ENCRYPTED for member in members):
                raise ScanError(f"{path.name}: is encrypted; get one without a password")
            most = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * path.stat().st_size)
            if sum(member.file_size for member in members) > most:
                raise UnsafeInputError(
                    f"{path.name}: would be more than {_LARGEST_RATIO} times as large when it is unpacked, so it holds "
                    "more than weights; do not unpack it, and ask its author for another file"
                )

            def get(name: str) -> None:
                with archive.open(name) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)

            _get_all(path.name, archive.namelist(), folder, get)
            return archive.namelist()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ScanError(f"{path.name}: is damaged; get it again") from error


def _download(address: str, folder: Path) -> Path:
    from monai.apps.utils import download_url

    path = folder / (re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]) or "model.zip")
    try:
        download_url(address, path, progress=False)
    except (OSError, RuntimeError) as error:  # MONAI raises a RuntimeError if nothing was sent
        raise MachineError(f"{path.name}: cannot be downloaded ({type(error).__name__}); check the address") from error
    return path


@contextmanager
def _hub(repo: str, revision: str | None = None) -> Iterator[HfApi]:
    """The hub that ``HF_ENDPOINT`` names, with errors of one line, without addresses and tokens."""
    try:
        from huggingface_hub import HfApi, errors
    except ImportError as error:
        raise MachineError(
            "the package huggingface_hub is not installed; run pip install 'monai-diffae[hub]', or use a .zip file"
        ) from error
    if repo.count("/") != 1:
        raise ConfigError(f"repo: {repo!r} cannot be a repository; write owner/name, or a file that ends with .zip")
    try:
        yield HfApi(library_name="monai-diffae")
    except DiffAEError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(f"repo: {repo!r} cannot be a repository; write owner/name") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{repo}: has no revision {revision!r}; give a tag, branch or commit that it has") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            raise ConfigError(
                f"{repo}: is not on the hub, or your token may not use it; check the name, or log in with a token that "
                "may: hf auth login"
            ) from error
        # the errors of its HTTP library, which differs between versions
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "requests")):
            raise
        reason = type(error).__name__ if status is None else f"error {status}"
        raise MachineError(
            f"{repo}: the hub cannot be reached ({reason}); check the network and HF_ENDPOINT"
        ) from error
