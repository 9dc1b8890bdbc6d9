"""Files of models that no training writes, and errors of ours that MONAI's tools wrap."""

import pytest

from monai_diffae.bundle import model_file
from monai_diffae.errors import find_diffae_error, one_line


def complaint(call, *arguments, **options):
    """The one line with which a call fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        call(*arguments, **options)
    assert find_diffae_error(caught.value) is not None, repr(caught.value)
    line = one_line(caught.value)
    assert "\n" not in line
    return line


def write_unchecked(path, model, description):
    """Write a model's file with any description; its checksum is right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "_not_plain", lambda *_: ())
        model_file.write_model(path, model.kind, model.tensors, description)
