"""The command ``pull``: get a bundle that others have sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import FolderResult


@dataclass(frozen=True)
class PullResult(FolderResult):
    """The result of :func:`pull`.

    Attributes:
        num_files: the number of files; each has the checksum that the bundle's list names.
        revision: the commit; None for a zip file.
        sha256: the checksum of ``SHA256SUMS``, or of the zip file.
        own_code: the bundle's own code, one text per part; nothing of it was run.
        left_out: listed files that are no files of a bundle, such as Python code.
    """

    num_files: int
    revision: str | None
    sha256: str
    own_code: tuple[str, ...]
    left_out: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The folder, what it was made from, and whether it has code of its own."""
        yield from super().lines()
        yield f"{self.num_files} files, all with the listed sha256" + (
            f"; revision {self.revision}" if self.revision else ""
        )
        yield f"to get exactly these files again: --sha256 {self.sha256}"
        if self.left_out:
            yield f"left out, as they are no files of a bundle: {', '.join(self.left_out)}"
        if self.own_code:
            yield (
                f"the bundle has code of its own ({len(self.own_code)} parts), and commands refuse to run it without "
                f"--trust; look at it with: monai-diffae info {self.folder}"
            )

    def figures(self) -> dict[str, Any]:
        """The fields."""
        return {
            **super().figures(), "num_files": self.num_files, "revision": self.revision, "sha256": self.sha256,
            "own_code": list(self.own_code), "left_out": list(self.left_out),
        }  # fmt: skip


@command
def pull(
    repo: str, out: Path, *, revision: str | None = None, sha256: str | None = None, overwrite: bool = False
) -> PullResult:
    """Get a bundle from the Hugging Face Hub or from a zip file, as ``push`` has sent it.

    All files are those of one commit. Each must have the checksum that the bundle's list ``SHA256SUMS`` names;
    otherwise nothing is kept. The list comes from the same place as the files, so it shows damage, not forgery. To
    notice forgery, give the checksum that the author told you as ``sha256``, or a commit as ``revision``.

    Nothing of a bundle is run. If it has code of its own, commands refuse it without ``--trust``.

    The hub needs ``pip install 'monai-diffae[hub]'``, and for private repositories the token of ``hf auth login`` or
    ``HF_TOKEN``. A zip file needs neither.

    Args:
        repo: Repository as ``owner/name``, a zip file, or the address of one, such as a file of a GitHub release.
        out: New folder for the bundle.
        revision: Tag, branch or commit of a repository; without it, the newest files of its main branch.
        sha256: Checksum that ``SHA256SUMS``, or the zip file, must have; required for the address of a zip file.
        overwrite: Replace the folder of an earlier pull.

    Returns:
        The folder, and what it was made from.

    Raises:
        ConfigError: there is no such bundle, it was not sent by ``push``, a checksum differs, or ``out`` holds
            something else.
        ScanError: the list of checksums or the zip file is damaged.
        MachineError: huggingface_hub is not installed, the hub cannot be reached, or ``out`` cannot be written.

    Example:
        >>> pull("bundle.zip", "my_copy")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: bundle.zip: there is no such file; give a zip file, or a repository as ...
    """
    from monai_diffae.apps.sharing.fetching import fetch
    from monai_diffae.apps.sharing.pulled_folder import new_folder
    from monai_diffae.bundle.summary import bundle_code

    with new_folder(out, overwrite=overwrite) as folder:
        fetched = fetch(repo, folder, revision, sha256)
        code = tuple(bundle_code(folder))
    return PullResult(out, len(fetched.checksums), fetched.revision, fetched.sha256, code, fetched.left_out)
