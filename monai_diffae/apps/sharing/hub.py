"""The files of a shared model, and the Hugging Face Hub.

MONAI's ``push_to_hf_hub`` and ``bundle.download`` (1.6.1) are not used: the first sends whatever is in a folder, the
second writes whatever is in a repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from monai_diffae.bundle import layout
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, UnsafeInputError, check_installed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MODEL, LATENT, FAST, WIDE, METRICS = (
    f"{layout.MODELS}/{name}"
    for name in (layout.MODEL, layout.LATENT_MODEL, layout.FAST_MODEL, layout.WIDE, layout.METRICS)
)
CARD, DATA_LICENSE = layout.MODEL_CARD, layout.DATA_LICENSE
DOCUMENTS = (CARD, DATA_LICENSE, "LICENSE")
NAMES = (MODEL, LATENT, FAST, WIDE, METRICS, *DOCUMENTS)
"""The names of all files that are sent and got."""

_LONGEST_DOCUMENT = 200_000  # bytes
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")  # commands to a terminal, and what is no UTF-8


def read_document(folder: Path, name: str) -> str:
    """The text of a document, which is short, and holds no commands to a terminal."""
    is_short = (folder / name).stat().st_size <= _LONGEST_DOCUMENT
    text = (folder / name).read_bytes().decode(errors="replace") if is_short else ""
    if not is_short or _NO_TEXT.search(text):
        most = f"{_LONGEST_DOCUMENT // 1000} kB"
        raise UnsafeInputError(f"{name}: is no text in UTF-8 of at most {most}; replace it by one")
    return text


@contextmanager
def open_hub(repo: str) -> Iterator[HfApi]:
    """The hub that ``HF_ENDPOINT`` names, with errors of one line, without addresses and tokens."""
    check_installed("huggingface_hub", "hub", ", or use a .zip file")
    from huggingface_hub import HfApi, errors

    try:
        yield HfApi(library_name="monai-diffae")
    except DiffAEError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        unknown = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
        if isinstance(error, unknown) or status in (401, 403):
            raise ConfigError(
                f"{repo}: is not on the hub, has no such revision, or your token may not use it; check the names, or "
                "log in with a token that may: hf auth login"
            ) from error
        # the errors of its HTTP library, which differs between versions
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "requests")):
            raise
        reason = type(error).__name__ if status is None else f"error {status}"
        raise MachineError(
            f"{repo}: the hub cannot be reached ({reason}); check the network and HF_ENDPOINT"
        ) from error
