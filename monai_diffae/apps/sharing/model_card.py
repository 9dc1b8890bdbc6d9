"""The page of a model on the Hugging Face Hub."""

from __future__ import annotations

_HEADER = """---
library_name: monai
tags:
- monai
- medical
license: other
license_name: see-data-license
license_link: docs/data_license.txt
---
"""


def model_card(readme: str) -> str:
    """A bundle's README with the hub's header; one with a header of its own stays as it is.

    The weights' licence depends on the data that they were trained on, so the header names ``docs/data_license.txt``.

    Example:
        >>> model_card("# My model").splitlines()[-1]
        '# My model'
    """
    return readme if readme.startswith("---\n") else _HEADER + readme
