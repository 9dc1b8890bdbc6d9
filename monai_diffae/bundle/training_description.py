"""What a training trains, from what it began, and with which settings; a resumed run must describe the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_diffae.bundle.checksums import checksum
from monai_diffae.errors import ConfigError

_DIGITS = 16  # of the hash of each scan that a checkpoint keeps
_AGAIN = "another output_dir, or set overwrite to start again"


@dataclass(frozen=True)
class TrainingDescription:
    """The description of a training, for its files and its checkpoint.

    Attributes:
        model_config: the configuration that describes the model, written beside the weights.
        fingerprint: fingerprint of the data and their split.
        settings: what the training changed in the bundle's configuration, by ids; see
            :func:`~monai_diffae.bundle.training_settings`.
        start_from: the trained bundle from whose weights the training begins; None: it begins with random weights, or
            is resumed.
        scans: the id of each case and the hash of its scan, as they were read; none: scans are not compared.
    """

    model_config: dict[str, Any]
    fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    start_from: str | os.PathLike[str] | None = None
    scans: Sequence[tuple[str, str]] = ()

    @property
    def config_text(self) -> str:
        """The file that describes the model; the fingerprint is in ``_meta_``, which no bundle run uses."""
        meta = {"_meta_": {"data_fingerprint": self.fingerprint}} if self.fingerprint else {}
        return _text({**meta, **self.model_config})

    def settings_text(self, started_from: str | None) -> str:
        """The file with the settings; ``started_from`` is the checksum of the weights from which it began."""
        meta = {} if started_from is None else {"_meta_": {"started_from": started_from}}
        return _text({**meta, **self.settings})

    def state_dict(self) -> dict[str, Any]:
        """The part of the description that a checkpoint keeps; it contains no ids of scans."""
        return {
            "fingerprint": self.fingerprint, "model_config": json.dumps(self.model_config, sort_keys=True),
            "scans": self._scan_hashes,
        }  # fmt: skip

    @property
    def _scan_hashes(self) -> list[str]:
        return [content[:_DIGITS] for _, content in self.scans]

    def check_resumes(self, checkpoint: Mapping[str, Any], name: str) -> None:
        """Check that a checkpoint is one of this training.

        Args:
            checkpoint: the content of the checkpoint.
            name: the name of its file.

        Raises:
            ConfigError: it belongs to another model or other data, or began from other weights.
        """
        saved, current = json.loads(checkpoint["model_config"]), self.model_config
        keys = (saved.keys() | current.keys()) - {"imports"}
        if differing := sorted(key for key in keys if saved.get(key) != current.get(key)):
            raise ConfigError(
                f"{name}: belongs to another model with other values of {', '.join(differing)}; use its values, "
                f"choose {_AGAIN}"
            )
        if checkpoint["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{name}: was trained on other data, or on another split; use the same dataset_dir or {_AGAIN}"
            )
        self._check_scans(checkpoint.get("scans", []), name)
        if self.start_from is not None and checkpoint.get("started_from") != checksum(self.start_from):
            raise ConfigError(
                f"{name}: belongs to a training that did not begin from these weights; omit start_from to resume it, "
                f"or choose {_AGAIN}"
            )

    def _check_scans(self, saved: Sequence[str], name: str) -> None:
        pairs = zip(saved, self._scan_hashes, self.scans, strict=False)
        replaced = [scan_id for before, now, (scan_id, _) in pairs if before != now]
        if replaced:
            raise ConfigError(
                f"{name}: {len(replaced)} of {len(saved)} scans are not those of the training (the first is "
                f"'{replaced[0][:60]}'): they were replaced, or are damaged; restore them, or choose {_AGAIN}"
            )


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
