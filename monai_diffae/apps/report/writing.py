"""Writes the page; a page with embedded pictures is kept below the size that can be sent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.page import Page
from monai_diffae.data.atomic import write_atomic

logger = logging.getLogger(__name__)

MOST_BYTES = 15_000_000
"""The size of a page that can be sent by mail."""

_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)


def write_report(file: Path, page_with: Callable[[Media], Page], *, is_embedded: bool) -> Path:
    """Write a page.

    Embedded pictures are scaled down until the page is small enough. A warning is logged if they are, and if the page
    is still too large.

    Args:
        file: the page, ``.html``.
        page_with: makes the page with pictures that are linked or embedded.
        is_embedded: whether pictures are copied into the page.
    """
    if not is_embedded:
        return _write(file, page_with(Media(file.parent)).html())
    for scale in _SCALES:
        html = page_with(Media(file.parent, is_embedded=True, scale=scale)).html()
        size = len(html.encode())
        if size < MOST_BYTES:
            break
    if size >= MOST_BYTES:
        logger.warning(
            "%s: has %.1f MB, which is more than %.0f MB, although its pictures are scaled to %.0f %%; to send it, "
            "omit embed and send the folder, or use a smaller cohort",
            file.name, size / 1e6, MOST_BYTES / 1e6, 100 * scale,
        )  # fmt: skip
    elif scale < 1:
        logger.warning(
            "%s: its pictures are scaled to %.0f %% of their size, so that it has less than %.0f MB",
            file.name, 100 * scale, MOST_BYTES / 1e6,
        )  # fmt: skip
    return _write(file, html)


def _write(file: Path, html: str) -> Path:
    return write_atomic(file, lambda temporary: temporary.write_text(html, encoding="utf-8"))
