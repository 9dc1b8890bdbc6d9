"""The command ``push``: send a trained bundle to others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.errors import ConfigError, counted, shortened

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from monai_diffae.bundle.sent_copy import SentCopy

_MOST_NAMES, _LONGEST_NAME = 5, 80


@dataclass(frozen=True)
class PushResult(CommandResult):
    """The result of :func:`push`.

    Attributes:
        sent: the sizes in bytes of the files that were sent, by their names; empty if you did not agree.
        repo: the repository or the zip file.
        revision: the commit; None for a zip file.
        sha256: the checksum of ``SHA256SUMS``, or of the zip file, with which ``pull`` can check the bundle.
    """

    sent: dict[str, int]
    repo: str
    revision: str | None = None
    sha256: str | None = None

    def lines(self) -> Iterator[str]:
        """Where the bundle is, and the command that gets it."""
        from monai_diffae.apps.command_lines import command_line

        if not self.sent:
            yield "nothing was sent"
            return
        yield f"{self.repo}: {counted(len(self.sent), 'file')}" + (
            f", revision {self.revision}" if self.revision else ""
        )
        values = {"repo": self.repo, "out": "my_copy", "revision": self.revision, "sha256": self.sha256}
        yield f"others get it with: {command_line('pull', values)}"

    def figures(self) -> dict[str, Any]:
        """The fields."""
        return {"repo": self.repo, "revision": self.revision, "sha256": self.sha256, "sent": self.sent}


@command
def push(bundle: Path, repo: str, *, tag: str | None = None, public: bool = False, yes: bool = False) -> PushResult:
    """Send a trained bundle to a repository on the Hugging Face Hub, or write it into a zip file.

    ``push`` sends the weights, the configurations and figures, exported networks in ``models``, the licence, the
    documents, and a list of their checksums, ``SHA256SUMS``. Configurations and figures keep numbers and the words of
    this package and MONAI; other texts are removed. No other file is sent: no checkpoint, tracking, picture or table.
    The command first shows what it will send and what it removed, and asks you whether to send it. All files arrive in
    one commit.

    A new repository is private unless ``public`` is given. The token is that of ``hf auth login`` or of ``HF_TOKEN``.
    The hub needs ``pip install 'monai-diffae[hub]'``; a zip file does not.

    Args:
        bundle: Folder of a trained bundle.
        repo: Repository as ``owner/name``, or a new file that ends with ``.zip``.
        tag: Name for this version, such as ``v1``, which the repository does not have yet.
        public: Everybody may see the repository; without it, a public repository is refused.
        yes: Send without asking.

    Returns:
        What was sent, and the commit.

    Raises:
        ConfigError: the bundle is not trained, its weights do not fit its configuration, its documents say nothing
            about its weights, the repository is public, has the tag or may not be written, or there is no terminal to
            ask and ``yes`` is not given.
        MachineError: huggingface_hub is not installed, or the hub cannot be reached.

    Example:
        >>> push("my_model", "owner/my-model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.pt; train the bundle first, or ...
    """
    import tempfile

    from monai_diffae.bundle.checksum_list import CHECKSUM_LIST
    from monai_diffae.bundle.sent_copy import copy_for_others, files_that_stay
    from monai_diffae.data.file_checksums import file_checksum

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / bundle.resolve().name  # the name is in messages
        copy = copy_for_others(bundle, folder)
        target = _ZipFile(repo, tag) if repo.endswith(".zip") else _Repository(repo, tag, public)
        sent = copy.sizes | target.add_page(folder)
        for line in _listed(sent, target.about()):
            print(line, file=sys.stderr)
        for line in _notes(copy, files_that_stay(bundle, sent)):
            print(line, file=sys.stderr)
        if not yes and not _agreed():
            return PushResult({}, repo)
        revision = target.send(folder, list(sent))
        path = Path(repo) if isinstance(target, _ZipFile) else folder / CHECKSUM_LIST
        return PushResult(sent, repo, revision, file_checksum(path))


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nothing was sent, as there is no terminal to ask whether to send these files; add yes")
    return input("Send these files? [y/N] ").strip().lower() in ("y", "yes")


def _listed(sent: dict[str, int], about: str) -> Iterator[str]:
    yield from (f"{size / 1e3:12,.1f} kB  {name}" for name, size in sent.items())
    yield f"{sum(sent.values()) / 1e3:12,.1f} kB  in all, to {about}"


def _notes(copy: SentCopy, stay: list[str]) -> Iterator[str]:
    """What the author should check: removed values, words of their own, and files that are not sent."""
    for name, ids in copy.removed.items():
        yield f"removed or replaced in {name}: {_first(ids)}"
    for name, words in copy.own.items():
        yield f"words of your own in {name}, sent as the model needs them: {', '.join(map(repr, words))}"
    if stay:
        yield f"not sent: {_first(stay)}"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shortened(ascii(name)[1:-1], _LONGEST_NAME) for name in names[:_MOST_NAMES]) + more


class _ZipFile:
    """A new zip file."""

    def __init__(self, name: str, tag: str | None) -> None:
        self.path = Path(name)
        if tag is not None:
            raise ConfigError("tag: a zip file has none; write it into the file's name")
        if self.path.exists():
            raise ConfigError(f"{self.path.name}: exists already; choose another name")

    def about(self) -> str:
        return self.path.name

    def add_page(self, folder: Path) -> dict[str, int]:
        return {}

    def send(self, folder: Path, names: list[str]) -> None:
        import zipfile

        from monai_diffae.data.atomic import write_atomic

        def write(path: Path) -> None:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.write(folder / name, name)

        write_atomic(self.path, write)


class _Repository:
    """A repository on the hub, new or not."""

    def __init__(self, repo: str, tag: str | None, public: bool) -> None:
        from monai_diffae.apps.sharing.hub import hub_errors, open_hub

        self.repo, self.tag, self.public = repo, tag, public
        self.hub = open_hub()
        if repo.count("/") != 1:
            raise ConfigError(f"repo: {repo!r} cannot be a repository; write owner/name, or a file that ends with .zip")
        with hub_errors(repo):
            self.is_new = not self.hub.repo_exists(repo)
            if not self.is_new:
                self._check_existing(self.hub)

    def _check_existing(self, hub: HfApi) -> None:
        is_private = bool(hub.repo_info(self.repo).private)
        if not is_private and not self.public:
            raise ConfigError(f"{self.repo}: everybody can see this repository; add public if that is what you want")
        self.public = not is_private
        if self.tag is not None and self.tag in {ref.name for ref in hub.list_repo_refs(self.repo).tags}:
            raise ConfigError(f"tag: {self.repo} has {self.tag!r} already; choose another name for this version")

    def about(self) -> str:
        kind = f"{'new, ' if self.is_new else ''}{'public: everybody can see it' if self.public else 'private'}"
        return f"{self.repo} ({kind})" + (f", tag {self.tag}" if self.tag else "")

    def add_page(self, folder: Path) -> dict[str, int]:
        """Write the repository's page, which can be edited on the hub, so ``SHA256SUMS`` does not list it."""
        from monai_diffae.apps.sharing.model_card import model_card
        from monai_diffae.bundle import layout

        page = folder / "README.md"
        page.write_text(model_card((folder / layout.MODEL_CARD).read_text(encoding="utf-8")), encoding="utf-8")
        return {page.name: page.stat().st_size}

    def send(self, folder: Path, names: list[str]) -> str:
        from huggingface_hub import CommitOperationAdd

        from monai_diffae.apps.sharing.hub import hub_errors

        with hub_errors(self.repo):
            if self.is_new:
                self.hub.create_repo(self.repo, private=not self.public)
            files = [CommitOperationAdd(name, str(folder / name)) for name in names]
            message = f"Bundle {self.tag}" if self.tag else "Bundle"
            commit = self.hub.create_commit(self.repo, files, commit_message=message)
            if self.tag is not None:
                self.hub.create_tag(self.repo, tag=self.tag, revision=commit.oid)
        return str(commit.oid)
