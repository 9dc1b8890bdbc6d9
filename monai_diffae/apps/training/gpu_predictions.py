"""How fast GPUs that this machine does not have would train with a plan's settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from monai_diffae.apps.training.proposals import Machine
from monai_diffae.engines.gpu_speed import GPUS, Gpu, predicted_images_per_second
from monai_diffae.engines.memory import Memory
from monai_diffae.engines.workload import run_memory


@dataclass(frozen=True)
class GpuPrediction:
    """The predicted training on one GPU.

    Attributes:
        name: of the GPU, from :data:`~monai_diffae.engines.gpu_speed.GPUS`.
        images_per_second: in training.
        memory: that the training uses there.
    """

    name: str
    images_per_second: float
    memory: Memory

    @property
    def gpu(self) -> Gpu:
        """Its specifications."""
        return GPUS[self.name]

    @property
    def fits(self) -> bool:
        """Whether the training fits into its memory."""
        return self.memory.gib <= self.gpu.memory_gib

    def hours(self, num_images: int) -> float:
        """How long the network takes to see this many images."""
        return num_images / self.images_per_second / 3600

    def line(self, num_images: int | None) -> str:
        """Speed, duration and memory; ``num_images`` is what the training sees, None: unknown."""
        duration = "" if num_images is None else f"this training {_duration(self.hours(num_images))}, "
        size = f"{self.memory.gib:.1f} of {self.gpu.memory_gib} GiB"
        return (
            f"{self.name}: {self.images_per_second:,.0f} images/s, {duration}"
            f"a million images {_duration(self.hours(1_000_000))}, {size}{'' if self.fits else ': does not fit'}"
        )

    def figures(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "images_per_second": round(self.images_per_second, 1),
            "memory_gib": round(self.memory.gib, 2),
            "fits": self.fits,
        }


def predict_gpus(machine: Machine, settings: Mapping[str, Any], names: Iterable[str]) -> Iterator[GpuPrediction]:
    """Predict the training of a bundle's network with these settings on each GPU.

    The time for a first stage is not included, nor is that for reading, validation and pictures.
    """
    network, workload = machine.network_and_workload(settings)
    stage = workload.first_stage
    shape = workload.image_shape if stage is None else stage.latent_shape(workload.image_shape)
    for name in names:
        gpu = GPUS[name]
        speed = predicted_images_per_second(network, (workload.batch_size, *shape), gpu)
        memory = run_memory(network, replace(workload, device="cuda", precision=gpu.precision))
        yield GpuPrediction(name, speed, memory)


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"
