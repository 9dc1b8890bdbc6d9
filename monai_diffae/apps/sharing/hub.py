"""The Hugging Face Hub, opened when it is needed, with errors of one line.

MONAI's ``push_to_hf_hub`` and ``bundle.download`` (1.6.1) are not used. The first sends whatever is in a folder, takes
the licence in LICENSE for that of the weights, may send the files in several commits, and keeps a tag that points to
older files. The second writes every file of a repository over those that are there, and checks none of them. What
``push`` sends is laid out as they expect, so ``monai.bundle.download`` gets it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from monai_diffae.errors import ConfigError, DiffAEError, MachineError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def open_hub() -> HfApi:
    """The hub that ``HF_ENDPOINT`` names, with the token that huggingface_hub finds."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MachineError(
            "the package huggingface_hub is not installed; run pip install 'monai-diffae[hub]', or use a .zip file"
        ) from error
    return HfApi(library_name="monai-diffae")


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Raise errors of huggingface_hub as errors of one line, without addresses and tokens."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except DiffAEError:
        raise
    except HFValidationError as error:
        raise ConfigError(f"repo: {repo!r} cannot be a repository; write owner/name") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{repo}: is not on the hub, or your token may not read it; check the name, or log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{repo}: has no revision {revision!r}; give a tag, branch or commit that it has") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ConfigError(
                f"{repo}: your token may not do this; log in with a token that may write it: hf auth login"
            ) from error
        raise MachineError(f"{repo}: the hub answered with error {status}; try again later") from error
    except Exception as error:
        # the errors of its HTTP library, which differs between versions
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "requests")):
            raise
        raise MachineError(
            f"{repo}: the hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT"
        ) from error
