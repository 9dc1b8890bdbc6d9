"""Each wrong input ends in one line that names the key or the file, before or while the data are read."""

import json
from pathlib import Path

import pytest
from complaints import complaint

from monai_diffae.bundle.config import check_anchored, check_rules
from monai_diffae.errors import ConfigError

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffae_2d"


def refusal(make_workflow, overrides):
    return complaint(lambda: make_workflow({"check_memory": True, **overrides}).run())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_sise": [16, 16]}, ["image_sise", "did you mean 'image_size'"]),
        ({"train#trainer#max_epoch": 3}, ["train#trainer#max_epoch", "did you mean 'max_epochs'"]),
        ({"dataset_dir": "/nowhere/cohort.csv"}, ["cohort.csv"]),
        ({"diffusion#schedule": "linear"}, ["schedule", "linear_beta"]),
        pytest.param({"in_channels": 3}, ["channel"], marks=pytest.mark.goal(id="R9")),
        (
            {"image_size": [50, 50], "channel_mult": [1, 2, 4], "dataset_dir": "/gone"},
            ["image_size is [50, 50]; the network needs multiples of"],
        ),
        ({"agreement_weight": 0.02}, ["agreement_weight is 0.02", "add the overlay encoder_view,"]),
    ],
)
def test_a_wrong_key_or_value_is_named(make_workflow, overrides, words):
    line = refusal(make_workflow, overrides)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"overwrite": "False"}, "overwrite is 'False'"),
        ({"batch_size": 0}, "batch_size is 0; it must be"),
        ({"agreement_weight": True}, "agreement_weight is True"),
        ({"percentiles": 99}, "percentiles is 99"),
    ],
)
def test_a_value_out_of_range_is_named(value, words):
    config = json.loads((BUNDLE / "configs" / "train.json").read_text())
    with pytest.raises(ConfigError) as caught:
        check_rules({**config, **value})
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["num_rounds", "first_stage_bundle"])
def test_an_anchored_encoder_is_refused_in_federations_and_on_latents(key):
    overlay = json.loads((BUNDLE.parents[1] / "configs" / "anchored.json").read_text())
    config = {"network_def": {"encoder": overlay["network_def#encoder"]}}
    check_anchored(config)
    with pytest.raises(ConfigError, match=f"^{key}: an anchored encoder cannot be trained in this way"):
        check_anchored({**config, key: 2})


def test_an_override_of_what_refers_to_a_key_makes_the_key_no_unknown_one(make_workflow):
    make_workflow({"train#trainer#max_epochs": 1, "train#dataloader#batch_size": 4, "optimizer#lr": 0.01})
