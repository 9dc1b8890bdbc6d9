"""Training and validation of a fast decoder on the trajectories of the decoder that it replaces."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset

from monai_diffae.data.atomic import disk_errors, scratch_folder
from monai_diffae.diffusion import DiffusionSchedule, Predictor
from monai_diffae.diffusion.solvers import ddim
from monai_diffae.engines.precision import autocast
from monai_diffae.engines.trainer import ResumableTrainer
from monai_diffae.policies import PathLike


class Trajectories(Dataset[dict[str, Any]]):
    """Items ``{"trajectory": (L, C, *S), "z_sem": (Z,), "id": text, "index": position}``, float32.

    They lie in a file in a new folder in ``parent``, which :meth:`remove` deletes, or the end of the process.
    """

    def __init__(self, parent: PathLike | None = None) -> None:
        self.file = scratch_folder(self, parent) / "trajectories.f32"
        self.shape: tuple[int, ...] = ()  #: (L, C, *S)
        self.z_sem: list[Tensor] = []
        self.ids: list[str] = []

    def append(self, trajectories: Tensor, z_sem: Tensor, ids: Sequence[str]) -> None:
        """Add trajectories (N, L, C, *S) and their z_sem (N, Z)."""
        with disk_errors("cache_dir"), self.file.open("ab") as stream:
            stream.write(trajectories.cpu().contiguous().numpy().tobytes())
        self.shape = tuple(trajectories.shape[1:])
        self.z_sem += z_sem.cpu()
        self.ids += ids

    def remove(self) -> None:
        """Delete the file."""
        shutil.rmtree(self.file.parent, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """Return the item at a position, or at (epoch, position), as a training loader uses it."""
        position = range(len(self))[index[1] if isinstance(index, tuple) else index]
        size = math.prod(self.shape)
        states = np.fromfile(self.file, np.float32, size, offset=4 * size * position)
        return {
            "trajectory": torch.from_numpy(states.reshape(self.shape)),
            "z_sem": self.z_sem[position],
            "id": self.ids[position],
            "index": position,
        }


class DistillationTrainer(ResumableTrainer):
    """Trains a denoiser to reach the levels of a trajectory by one DDIM step each.

    Step n of the training trains step n mod K of the decoder, which starts where the K-step decoder itself arrives from
    x_T, not at the trajectory's image: so it learns to correct the errors of its earlier steps. The loss is the squared
    error of the image at the next level. The last step, which makes the final image, can have another loss, too.

    Args:
        schedule: the noise schedule that the autoencoder was trained with.
        levels: the levels of the trajectories, from x_T down to x0: K + 1 of them.
        image_loss: gives a loss (B,) of final images and of those that they should be (B, C, *S), which is added to the
            squared error; None: there is none.
        kwargs: arguments of :class:`ResumableTrainer`. The batches have ``trajectory`` (B, K + 1, C, *S) and ``z_sem``
            (B, Z).
    """

    def __init__(
        self,
        *,
        schedule: DiffusionSchedule,
        levels: Sequence[int],
        image_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schedule = schedule.to(self.state.device)
        self.levels = list(levels)
        self.image_loss = image_loss

    def image_losses(self, batchdata: Mapping[str, Any]) -> Tensor:
        """The loss of each image (B,)."""
        device = self.state.device
        trajectory, z_sem = (
            batchdata[key].to(device, non_blocking=self.non_blocking) for key in ("trajectory", "z_sem")
        )
        step = (self.state.iteration - 1) % (len(self.levels) - 1)
        with autocast(device, self.dtype):
            with torch.no_grad():
                x_t = self._decoded(trajectory[:, 0], z_sem, self.levels[: step + 1])
            reached = self._decoded(x_t.detach(), z_sem, self.levels[step : step + 2]).float()
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        target = trajectory[:, step + 1]
        error: Tensor = self.loss_function(reached, target).flatten(1).mean(dim=1)
        is_last = step == len(self.levels) - 2
        return error + self.image_loss(reached, target) if is_last and self.image_loss is not None else error

    def _decoded(self, x: Tensor, z_sem: Tensor, levels: Sequence[int]) -> Tensor:
        x = x.to(memory_format=self.memory_format)
        return ddim(Predictor(lambda x_t, t: self.network(x_t, t, z_sem), self.schedule), x, levels)


class FewStepInferer(Inferer):
    """Decodes x_T by one DDIM step between each two ``levels``, from x_T down to x0; for the evaluator of MONAI."""

    def __init__(self, schedule: DiffusionSchedule, levels: Sequence[int]) -> None:
        self.schedule = schedule
        self.levels = list(levels)

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, z_sem: Tensor, **_: Any
    ) -> Tensor:
        """x_0 (B, C, *S) of x_T ``inputs`` (B, C, *S) and z_sem (B, Z)."""
        return ddim(Predictor(lambda x_t, t: network(x_t, t, z_sem), self.schedule), inputs, self.levels)


def first_and_last(
    batchdata: Mapping[str, Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[Any, ...], dict[str, Tensor]]:
    """MONAI's prepare_batch for :class:`FewStepInferer`: (x_T, x_0, (), {z_sem}) of a batch of trajectories."""
    trajectory, z_sem = (batchdata[key].to(device, non_blocking=non_blocking) for key in ("trajectory", "z_sem"))
    return trajectory[:, 0], trajectory[:, -1], (), {"z_sem": z_sem}
