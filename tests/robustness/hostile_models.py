"""Files of models that no training writes."""

import pytest

from monai_diffae.bundle import model_file


def write_unchecked(path, model, description):
    """Write a model's file with any description; its checksum is right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "_not_plain", lambda *_: ())
        model_file.write_model(path, model.kind, model.tensors, description)
