"""The command ``push``: send a trained model to others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.errors import ConfigError, counted, quoted


@dataclass(frozen=True)
class PushResult(CommandResult):
    """The result of :func:`push`.

    Attributes:
        sent: the sizes in bytes of the files that were sent, by their names; empty if you did not agree.
        repo: the repository or the zip file.
        revision: the commit; None for a zip file.
        sha256: SHA-256 of the model's file, with which ``pull`` can check it.
    """

    sent: dict[str, int]
    repo: str
    revision: str | None = None
    sha256: str | None = None

    def lines(self) -> Iterator[str]:
        """Where the model is, and the command that gets it."""
        from monai_diffae.apps.command_lines import command_line

        if not self.sent:
            yield "nothing was sent"
            return
        yield f"{self.repo}: {counted(len(self.sent), 'file')}"
        yield f"others get it with: {command_line('pull', {**asdict(self), 'out': 'my_copy'})}"

    def figures(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@command
def push(bundle: Path, repo: str, *, tag: str | None = None, public: bool = False, yes: bool = False) -> PushResult:
    """Send a trained model to a repository on the Hugging Face Hub, or write it into a zip file.

    ``push`` sends the file of the model, its latent DDIM and fast decoder, the figures of its last validation, the
    model card ``docs/README.md``, ``LICENSE`` and ``docs/data_license.txt``, and no other file. The command first shows
    what it will send, and asks you. All files arrive in one commit. The page of a repository is the model card.

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
        ConfigError: the bundle is not trained, its models do not load, its documents say nothing about its weights, the
            repository is public, has the tag or may not be written, or there is no terminal to ask without ``yes``.
        MachineError: huggingface_hub is not installed, or the hub cannot be reached.

    Example:
        >>> push("my_model", "owner/my-model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.safetensors; train the bundle first, or ...
    """
    import hashlib

    from monai_diffae.apps.sharing.sent_files import MODEL, files_to_send
    from monai_diffae.apps.sharing.transport import sender

    files = files_to_send(bundle)
    place, send = sender(repo, tag, public=public)
    sent = {name: len(content) for name, content in files.items()}
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("[!.]*") if path.is_file())
    stay = [quoted(name) for name in sorted(names, key=lambda name: name.startswith("configs")) if name not in sent]
    for name, size in [*sent.items(), (f"in all, to {place}", sum(sent.values()))]:
        print(f"{size / 1e3:12,.1f} kB  {name}", file=sys.stderr)
    print(f"not sent: {counted(len(stay), 'file')}, such as {', '.join(stay[:5])}", file=sys.stderr)
    if not yes and not _agreed():
        return PushResult({}, repo)
    return PushResult(sent, repo, send(files), hashlib.sha256(files[MODEL]).hexdigest())


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nothing was sent, as there is no terminal to ask whether to send these files; add yes")
    return input("Send these files? [y/N] ").strip().lower() in ("y", "yes")
