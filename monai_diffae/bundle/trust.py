"""Trust in a bundle's own code: it runs only after ``--trust``, which is remembered for exactly this configuration.

A list of hashes inside a bundle would prove nothing, because whoever makes a bundle can write it. What is remembered is
therefore kept outside of bundles, in the user's own folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_diffae.bundle.own_code import own_code
from monai_diffae.errors import UnsafeInputError

logger = logging.getLogger(__name__)

TRUST = "MONAI_DIFFAE_TRUST"
"""The environment variable of :func:`trusting`, so that processes that a command starts trust as it does."""


@contextmanager
def trusting() -> Iterator[None]:
    """Run the code of all bundles that are loaded meanwhile, and remember their configurations as trusted.

    ``--trust`` of the command line is the same. A configuration that is remembered runs from then on; if a value
    in it changes, it has to be trusted again.

    Example:
        >>> with trusting():  # doctest: +SKIP
        ...     trained = monai_diffae.load_bundle("my_model")
    """
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def is_trusting() -> bool:
    """Whether this is called within :func:`trusting`."""
    return os.environ.get(TRUST) == "1"


def check_code(config: Mapping[str, Any], name: str, *, places: bool = True) -> None:
    """Refuse a configuration with code of its own, unless it is trusted. Nothing of it is run.

    Without ``places``, as for values that the user gave, places outside of the bundle do not count.
    """
    parts = own_code(config, places=places)
    if not parts or is_trusted(config):
        return
    more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
    raise UnsafeInputError(
        f"{name} is not trusted to use {parts[0]}{more}; nothing was run. Look at it with monai-diffae info, and add "
        "--trust if you trust its author"
    )


def is_trusted(config: Mapping[str, Any]) -> bool:
    """Whether a configuration with code of its own may run; within :func:`trusting`, it is then remembered."""
    return is_trusted_content(repr(config).encode(errors="surrogatepass"))


def is_trusted_content(content: bytes) -> bool:
    """Whether code with this content may run, as :func:`is_trusted` for a configuration."""
    remembered = _folder() / hashlib.sha256(content).hexdigest()
    if is_trusting():
        _remember(remembered)
        return True
    return remembered.is_file()


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "monai_diffae" / "trusted"


def _remember(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
    except OSError as error:
        logger.warning("the trust is not remembered, as %s cannot be written (%s)", file.parent.name, error.strerror)
