"""MONAI's option ``--tracking mlflow`` turns on the bundle's own tracking."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

_HANDLERS = {"train#handlers": "trainer", "validate#handlers": "validator"}


def use_own_tracking(parser: ConfigParser) -> bool:
    """Use the bundle's own tracking instead of the handlers that MONAI's ``--tracking mlflow`` adds.

    MONAI's handler (1.6.1) logs two parameters, adds to a run of another training that crashed, and ends the training
    if the server fails. The bundle's handler logs all parameters by the configuration's names, and no private value.
    Handlers of other tracking settings than MONAI's default are kept. Returns whether MONAI had added its handlers.
    """
    if "mlflow" not in parser:
        return False
    defaults: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
    is_asked_for = False
    for section, engine in _HANDLERS.items():
        handlers = parser.get(section)
        added = defaults[engine]
        if isinstance(handlers, list) and added in handlers:
            parser[section] = [handler for handler in handlers if handler != added]
            is_asked_for = True
    if is_asked_for:
        parser["mlflow"] = True
        parser.get().pop("is_not_rank0", None)  # only MONAI's handlers refer to it
    return is_asked_for
