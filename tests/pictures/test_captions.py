import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.pictures import caption, check_captions


def test_one_line_each_in_the_order_of_the_names():
    values = {"id": "a b\nc", "age": 61.23456, "sex": "female", "left": True, "weight": np.float32("nan")}
    assert caption(values, ["sex", "id", "age", "left", "weight", "height"]).split("\n") == [
        "sex female", "a b c", "age 61.23", "left True", "weight -", "height -"
    ]  # fmt: skip
    assert caption(values, []) == ""


def test_long_ones_are_cut():
    (line,) = caption({"id": "x" * 100}, ["id"]).split("\n")
    assert (len(line), line[-1]) == (24, "…")


def test_unknown_names_are_refused():
    check_captions(["id", "age"], ["age"])
    check_captions([], [])
    with pytest.raises(ConfigError, match="captions: there is no 'patient'; choose from: id, age"):
        check_captions(["id", "patient"], ["age"])
