"""The choices for scans that are not as expected are the same in options, configurations and functions."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from monai_diffae import policies
from monai_diffae.bundle.config_values import check_rules
from monai_diffae.errors import ConfigError

KEYS = {
    "on_bad_scan": policies.OnBadScan,
    "colour": policies.Colour,
    "uneven": policies.Uneven,
    "doubtful": policies.Doubtful,
}


@pytest.mark.parametrize(("key", "choices"), KEYS.items())
def test_a_configuration_takes_the_same_choices(key: str, choices: Any) -> None:
    for value in get_args(choices):
        check_rules({key: value})
    with pytest.raises(ConfigError, match=f"{key} is 'other'"):
        check_rules({key: "other"})
