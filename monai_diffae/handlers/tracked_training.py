"""What a training trains on what, in words for MLflow: the name of its run, its tags and its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_diffae.handlers.metric_names import meaning_of

_SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class TrackedTraining:
    """A training, described without names of patients, files or folders.

    Attributes:
        model: the kind of model, such as ``diffae_2d``.
        image_size: the size of its images; empty: it has none.
        z_channels: the number of values in z_sem; None: it has no z_sem.
        counts: the number of ``scans``, ``patients``, and cases in ``train``, ``val`` and ``test``, as far as known.

    Example:
        >>> training = TrackedTraining("diffae_2d", [64, 64], 128, {"scans": 5232, "train": 4186, "val": 523})
        >>> training.name
        'diffae_2d 64x64, z_sem 128, 5,232 scans'
    """

    model: str
    image_size: Sequence[int] = ()
    z_channels: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name: the model and its images, the size of z_sem, the number of scans."""
        size = f" {self._size}" if self.image_size else ""
        z_sem = "" if self.z_channels is None else f", z_sem {self.z_channels}"
        return f"{self.model}{size}{z_sem}, {self.number_of_scans}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags by which runs can be grouped."""
        values = {
            "model": self.model, "image_size": self._size, "z_sem_dims": self.z_channels,
            "num_scans": self.counts.get("scans"), "num_patients": self.counts.get("patients"),
        }  # fmt: skip
        return {key: str(value) for key, value in values.items() if value not in (None, "")}

    def description(self, facts: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
        """The run's description in Markdown.

        Args:
            facts: more rows of the table at the top, such as the number of epochs.
            metrics: the newest metrics, by their names in MLflow.
        """
        of_splits = [f"{self.counts[key]:,} {name}" for key, name in _SPLITS.items() if self.counts.get(key)]
        patients = f" of {self.counts['patients']:,} patients" if "patients" in self.counts else ""
        rows = {
            "model": self.name.rpartition(", ")[0],
            "trained on": f"{self.number_of_scans}{patients} ({', '.join(of_splits)} images)",
            **facts,
        }
        table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
        figures = [f"| `{name}` | {value:.4g} | {meaning_of(name)} |" for name, value in sorted(metrics.items())]
        if figures:
            table += ["", "| metric | last value | what it means |", "|---|---|---|", *figures]
        return "\n".join(table)

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.image_size))

    @property
    def number_of_scans(self) -> str:
        """How many scans, or cases, there are, in words."""
        if "scans" in self.counts:
            return f"{self.counts['scans']:,} scans"
        return f"{sum(self.counts.values()):,} cases"
