"""The timetable of a training that ends within a budget: epochs, validations, averaging, and what each part takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from monai_diffae.apps.training.speed import Speed
from monai_diffae.handlers.validation import MOST_CASES, MOST_TARGETS

CHOSEN_KEYS = (
    "max_epochs", "max_minutes", "val_interval", "ema_decay", "num_pictures", "calibration_cases", "probe_interval"
)  # fmt: skip
START_S = 15.0  # imports, configuration and network
_CHECKPOINT_S = 0.2  # at the end of each epoch
# in training images, whose forward and backward pass take about three forward passes
_PER_VALIDATED_IMAGE = 0.6  # encoder once, UNet twice
_PER_PICTURE_STEP = 1.25  # inverted, and decoded twice
_PER_CALIBRATED_IMAGE = 4.0  # UNet with eight noises, in float32
_PER_ENCODED_IMAGE = 0.2  # encoder once, in float32
_PROBE_S = 1.0  # to probe a label, on a busy core
_VALIDATIONS, _MOST_FOR_VALIDATIONS = 8, 0.1  # how many, and at most which share of the time
_MOST_FOR_CALIBRATION = _MOST_FOR_PICTURES = 0.05  # of the time; for the pictures of one validation
_MOST_FOR_PROBES = 0.03  # of the time
_AVERAGED_SHARE = 0.05  # of the steps, over which weights are averaged
_SLACK = 0.95  # share of the time that is planned; steps are not equally fast


@dataclass(frozen=True)
class Timetable:
    """A training that ends within a budget.

    Attributes:
        settings: values for keys of the configuration: ``max_epochs``, ``max_minutes`` and what depends on them.
        num_images: images that the network sees.
        num_steps: training steps.
        seconds: predicted duration of each part.
    """

    settings: dict[str, Any]
    num_images: int
    num_steps: int
    seconds: dict[str, float]

    @property
    def steps_end_s(self) -> float:
        """Seconds from the start of the program until no step may begin any more, so that all else ends in time."""
        return self.seconds["start"] + self.seconds["reading"] + 60 * float(self.settings["max_minutes"])

    @property
    def total_s(self) -> float:
        """Predicted duration in seconds, altogether."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in self.seconds.items())
        return f"{_clock(self.total_s)} ({parts})"


@dataclass(frozen=True)
class Work:
    """What a training has to do, whatever its grid.

    Attributes:
        num_train: images in the training split.
        num_val: images in the validation split.
        config: values of the bundle's keys on which the time depends.
        overrides: values that are decided already.
        num_labels: labels that can be probed.
    """

    num_train: int
    num_val: int
    config: Mapping[str, Any]
    overrides: Mapping[str, Any]
    num_labels: int = 0

    def timetable(self, speed: Speed, budget_s: float) -> Timetable:
        """Fill a budget of seconds, which includes the start of the program, with a training."""
        steps_per_epoch = max(1, self.num_train // speed.batch_size)
        reading_s = speed.seconds_per_scan * (self.num_train + self.num_val)
        available_s = max(0.0, budget_s - START_S - reading_s)
        most_s = _MOST_FOR_CALIBRATION * available_s
        calibrated = self._affordable("calibration_cases", _PER_CALIBRATED_IMAGE, most_s, speed)
        calibrated = calibrated if calibrated > 1 else 0  # a calibration needs two patients
        calibration_s = calibrated * _PER_CALIBRATED_IMAGE / speed.images_per_second
        picture_cost = _PER_PICTURE_STEP * int(self.config.get("picture_steps", 20))
        pictures = self._affordable("num_pictures", picture_cost, _MOST_FOR_PICTURES * available_s, speed)
        validation_s = (self.num_val * _PER_VALIDATED_IMAGE + pictures * picture_cost) / speed.images_per_second
        validations = max(1, min(_VALIDATIONS, int(_MOST_FOR_VALIDATIONS * available_s / validation_s)))
        probe_s = self._probe_s(speed)
        probes = min(validations, int(_MOST_FOR_PROBES * available_s / probe_s)) if probe_s else 0
        last_probe_s = probe_s if probes else 0.0
        training_s = _SLACK * available_s - calibration_s - validations * validation_s - probes * probe_s
        epoch_s = steps_per_epoch * speed.seconds_per_step + _CHECKPOINT_S
        epochs = int(max(1, training_s // epoch_s))
        epochs = int(self.overrides.get("max_epochs", epochs))
        interval = int(self.overrides.get("val_interval", -(-epochs // validations)))
        steps = epochs * steps_per_epoch
        decay = min(1 - 1 / max(10, _AVERAGED_SHARE * steps), float(self.config.get("ema_decay", 1)))
        settings = {
            "max_epochs": epochs, "val_interval": interval, "ema_decay": float(f"{decay:.3g}"),
            "num_pictures": pictures, "calibration_cases": calibrated,
            "probe_interval": -(-epochs // probes) if probes else 0,
            "max_minutes": round(max(available_s - calibration_s - validation_s - last_probe_s, 1) / 60, 2),
        }  # fmt: skip
        seconds = {
            "start": START_S, "reading": reading_s, "training": epochs * epoch_s,
            "validation": -(-epochs // interval) * validation_s + probes * probe_s, "calibration": calibration_s,
        }  # fmt: skip
        used = {key: value for key, value in settings.items() if key in self.config}
        return Timetable({**used, **self.overrides}, steps * speed.batch_size, steps, seconds)

    def _probe_s(self, speed: Speed) -> float:
        """Seconds to probe z_sem for all labels; 0 if there are no probes."""
        if not self.num_labels or not self.overrides.get("probe_interval", self.config.get("probe_interval", 0)):
            return 0.0
        images = min(MOST_CASES, self.num_train) + min(MOST_CASES, self.num_val)
        encoding_s = images * _PER_ENCODED_IMAGE / speed.images_per_second
        return encoding_s + min(MOST_TARGETS, self.num_labels) * _PROBE_S

    def _affordable(self, key: str, cost: float, most_s: float, speed: Speed) -> int:
        """The configured number of validation images, of ``cost`` training images each, or what fits in ``most_s``."""
        number = int(self.config.get(key, 0))
        return (
            number if key in self.overrides else min(number, self.num_val, int(most_s * speed.images_per_second / cost))
        )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
