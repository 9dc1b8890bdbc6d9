"""Errors of ours that MONAI's tools wrap."""

import pytest

from monai_diffae.errors import find_diffae_error, one_line


def complaint(call, *arguments, **options):
    """The one line with which a call fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        call(*arguments, **options)
    assert find_diffae_error(caught.value) is not None, repr(caught.value)
    line = one_line(caught.value)
    assert "\n" not in line
    assert str(caught.value).splitlines()[-1] == line  # which a traceback shows last
    return line
