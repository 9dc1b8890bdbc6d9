"""The options of tasks: what clients see, and what is refused."""

from typing import Literal

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from monai_diffae.apps.command import command
from monai_diffae.errors import ConfigError
from monai_diffae.label.options import check_keys, option_names, shown_options
from monai_diffae.label.task import check_file_format

FROM_SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
FROM_OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}


@command
def task(request, *, mode: Literal["fast", "exact"] = "exact", seed: int = 0, limit: int | None = None):
    """A task."""


def test_options_are_the_keyword_arguments():
    assert option_names(task) == ["mode", "seed", "limit"]
    assert shown_options(task) == {"mode": ["exact", "fast"], "seed": 0}


def test_what_viewers_send_passes_and_other_keys_and_suffixes_are_refused():
    for sent in (FROM_SLICER, FROM_OHIF, {"label_info": [{"name": "a", "idx": 1}]}, {"seed": 3}):
        check_keys({"model": "task", "image": "a", **sent}, {"seed"}, "params")
        check_file_format(sent)
    for key in ("result_write_to_file", "__class__", 3):
        with pytest.raises(ConfigError, match=r"^params: '.+' is unknown; use seed$"):
            check_keys({key: 1}, {"seed"}, "params")
    for suffix in (".exe", "nii.gz", "/../x.nii", 3):
        with pytest.raises(ConfigError, match=r"^result_extension: "):
            check_file_format({"result_extension": suffix})
