"""The command ``push``: send a trained model to others."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.apps.sharing import hub
from monai_diffae.bundle import layout
from monai_diffae.bundle.folders import NOTE, TO_BE_SAID, UNTRAINED
from monai_diffae.bundle.model_file import read_description
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.fingerprints import digest, file_checksum
from monai_diffae.errors import ConfigError, counted, quoted
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.bundle import loading

_NO_WEIGHTS = "no trained weights"  # in the data licence of a recipe
_PAGE_HEADER = b"""---
library_name: monai
tags:
- monai
- medical
license: other
license_name: see-data-license
license_link: docs/data_license.txt
---
"""  # of a repository; the licence of its weights depends on the data that they were trained on


@command
def push(bundle: Path, repo: str, *, tag: str | None = None, public: bool = False, yes: bool = False) -> Result:
    """Send a trained model to a repository on the Hugging Face Hub, or write it into a zip file.

    ``push`` sends the file of the model, its latent DDIM and fast decoder, the figures of its last validation, the
    model card ``docs/README.md``, ``LICENSE`` and ``docs/data_license.txt``, and no other file. It first shows what it
    will send, and asks you. A new repository is private unless ``public`` is given. The hub needs ``pip install
    'monai-diffae[hub]'`` and the token of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        bundle: Folder of a trained bundle.
        repo: Repository as ``owner/name``, or a new file that ends with ``.zip``.
        tag: Name for this version, such as ``v1``, which the repository does not have yet; not for a zip file.
        public: Everybody may see the repository; without it, a public repository is refused.
        yes: Send without asking.

    Returns:
        ``sent``: the sizes of the files in bytes by their names, empty if you did not agree; ``repo``; ``revision``,
        which is None for a zip file; and ``sha256`` of the zip file or the repository's model, for ``pull``.

    Raises:
        ConfigError: the bundle is not trained, its models do not load, its documents say nothing about its weights, the
            repository is public, has the tag or may not be written, or there is no terminal to ask without ``yes``.
        MachineError: huggingface_hub is not installed, or the hub cannot be reached.
    """
    files = _files_to_send(bundle)
    place, send = _archive(Path(repo)) if repo.endswith(".zip") else _repository(repo, tag, public)
    sizes = {name: len(content) for name, content in files.items()}
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("[!.]*") if path.is_file())
    others = [quoted(name) for name in sorted(names, key=lambda name: name.startswith("configs")) if name not in sizes]
    for name, size in [*sizes.items(), (f"in all, to {place}", sum(sizes.values()))]:
        print(f"{size / 1e3:12,.1f} kB  {name}", file=sys.stderr)
    print(f"not sent: {counted(len(others), 'file')}, such as {', '.join(others[:5])}", file=sys.stderr)
    if not yes and not sys.stdin.isatty():
        raise ConfigError("nothing was sent, as there is no terminal to ask whether to send these files; add yes")
    if not yes and input("Send these files? [y/N] ").strip().lower() not in ("y", "yes"):
        return Result(None, {"sent": {}, "repo": repo}, ["nothing was sent"])
    revision = send(files)
    sha256 = digest(files[hub.MODEL]) if revision else file_checksum(Path(repo))
    figures = {"sent": sizes, "repo": repo, "revision": revision, "sha256": sha256}
    line = command_line("pull", {**figures, "out": "my_copy"})
    return Result(None, figures, [f"{repo}: {counted(len(sizes), 'file')}", f"others get it with: {line}"])


def _files_to_send(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle that others get, by their names, whose models load and whose documents describe them."""
    description = read_description(layout.model_file(bundle))
    files = {name: (bundle / name).read_bytes() for name in hub.NAMES if (bundle / name).is_file()}
    files[hub.METRICS] = f"{json.dumps(description.get('figures', {}), indent=2)}\n".encode()
    texts = {name: " ".join(hub.read_document(bundle, name).split()) for name in hub.DOCUMENTS if name in files}
    card, licence = texts.get(hub.CARD, UNTRAINED), texts.get(hub.DATA_LICENSE, _NO_WEIGHTS)
    for is_found, name, fault in (
        (
            UNTRAINED in card,
            hub.CARD,
            "says nothing about the trained weights; describe their data, quality and limits",
        ),
        (NOTE in card, hub.CARD, "is about earlier weights; describe the new ones, and remove the note at its top"),
        (TO_BE_SAID in card, hub.CARD, f"replace each '{TO_BE_SAID}' by the organ, modality, scans and uses"),
        (_NO_WEIGHTS in licence, hub.DATA_LICENSE, "is about no weights; write whose the scans are, and their licence"),
    ):
        if is_found:
            raise ConfigError(f"{name}: {fault}")
    if description["kind"] == "first_stage":
        loading.load_first_stage(bundle)
    else:
        trained = loading.load_bundle(bundle, "cpu")
        if hub.FAST in files:
            loading.load_fast_decoder(layout.models_folder(bundle), trained.network, trained.sha256, "cpu")
    if hub.LATENT in files:
        loading.load_latent(bundle, "cpu")
    return files


_Send = Callable[[Mapping[str, bytes]], str | None]


def _archive(path: Path) -> tuple[str, _Send]:
    """The name of a zip file, and a function that writes files into it."""
    if path.exists():
        raise ConfigError(f"{path.name}: exists already; choose another name")

    def send(files: Mapping[str, bytes]) -> None:
        def write(temporary: Path) -> None:
            with zipfile.ZipFile(temporary, "w") as archive:  # not packed: weights hardly become smaller
                for name, content in files.items():
                    archive.writestr(name, content)

        write_atomic(path, write)

    return path.name, send


def _repository(repo: str, tag: str | None, public: bool) -> tuple[str, _Send]:
    """What kind of repository it is, and a function that sends files in one commit, which it returns."""
    if repo.count("/") != 1:
        raise ConfigError(f"repo: {quoted(repo)} is no repository; write owner/name, or a file that ends with .zip")
    existing: set[str] = set()
    with hub.open_hub(repo) as api:
        is_new = not api.repo_exists(repo)
        if not is_new:
            info = api.model_info(repo)
            if not info.private and not public:
                raise ConfigError(f"{repo}: everybody can see this repository; add public if that is what you want")
            if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo).tags}:
                raise ConfigError(f"tag: {repo} has {tag!r} already; choose another name for this version")
            public, existing = not info.private, {file.rfilename for file in info.siblings or ()}

    def send(files: Mapping[str, bytes]) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        page = files[hub.CARD] if files[hub.CARD].startswith(b"---\n") else _PAGE_HEADER + files[hub.CARD]
        changes: list[Any] = [
            CommitOperationAdd(name, content) for name, content in {"README.md": page, **files}.items()
        ]
        earlier = existing & set(hub.NAMES) - files.keys()  # of an earlier model
        changes += [CommitOperationDelete(name) for name in earlier]
        with hub.open_hub(repo) as api:
            if is_new:
                api.create_repo(repo, private=not public)
            commit = api.create_commit(repo, changes, commit_message=f"Model {tag}" if tag else "Model")
            if tag is not None:
                api.create_tag(repo, tag=tag, revision=commit.oid)
        return str(commit.oid)

    kind = f"{'new, ' if is_new else ''}{'public: everybody can see it' if public else 'private'}"
    return f"{repo} ({kind})" + (f", tag {tag}" if tag else ""), send
