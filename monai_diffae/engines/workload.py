"""Checks before the first step whether a training fits into a machine's memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from monai_diffae.engines.memory import GIB, Memory, first_stage_memory, free_memory, inference_memory, training_memory
from monai_diffae.engines.precision import Precision, resolve_precision
from monai_diffae.errors import DiffAEError, MachineError
from monai_diffae.networks import FirstStage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """The batches of a training run.

    Attributes:
        image_shape: (C, *S).
        device: where the training runs.
        precision: as in the configuration.
        batch_size: images per training step.
        val_batch_size: images per step of validation.
        num_pictures: images that are reconstructed at once, in float32.
        first_stage: the first stage on whose latents the network works; None: it works on images.
    """

    image_shape: Sequence[int]
    device: torch.device | str
    precision: Precision
    batch_size: int
    val_batch_size: int
    num_pictures: int
    first_stage: FirstStage | None = None


def run_memory(network: nn.Module, workload: Workload) -> Memory:
    """The peak memory of a training run: of its steps, or of its validation or pictures if these need more."""
    stage, device = workload.first_stage, workload.device
    shape = tuple(workload.image_shape if stage is None else stage.latent_shape(workload.image_shape))
    dtype = resolve_precision(workload.precision, device)
    training = training_memory(network, (workload.batch_size, *shape), device, dtype)
    batches = ((workload.val_batch_size, dtype), (workload.num_pictures, torch.float32))
    num_images, largest_dtype = max(batches, key=lambda batch: batch[0] * batch[1].itemsize)
    inference = inference_memory(network, (num_images, *shape), device, largest_dtype)
    moments = [training, inference]
    image_bytes = 0
    if stage is not None:
        stage_dtype, decodes = (torch.float32, True) if workload.num_pictures else (dtype, False)
        moments.append(first_stage_memory(stage, workload.image_shape, device, stage_dtype, decodes))
        # the images beside their latents
        image_bytes = 4 * math.prod(workload.image_shape) * max(workload.batch_size, num_images)
    states = training.states + (0 if stage is None else moments[-1].states)
    fullest = max(moments, key=lambda memory: memory.total - memory.states)
    return replace(fullest, states=states, passing=fullest.passing + image_bytes)


def check_memory(network: nn.Module, workload: Workload) -> None:
    """Refuse a training that cannot fit before its first step.

    A warning is logged if training would take more than 80 % of what is free. Nothing is checked on a device whose
    free memory is unknown, or for a network that cannot run on tensors without data.

    Raises:
        MachineError: the prediction exceeds what is free; names both and what to change.
        ConfigError: encoder and UNet do not fit each other, such as a z_sem of another size.
    """
    free = free_memory(workload.device)
    if free is None:
        return
    try:
        needed = run_memory(network, workload)
    except DiffAEError:  # it would end the first step, too
        raise
    except Exception as error:  # another package's encoder may look at values, which these tensors do not have
        logger.debug("the memory that training takes is unknown: %s", error)
        return
    logger.info("training takes about %.2f GiB of %.2f GiB free", needed.gib, free / GIB)
    amounts = f"about {needed.gib:.2f} GiB are needed on {workload.device}, {free / GIB:.2f} GiB are free"
    if needed.total > free:
        raise MachineError(
            f"not enough memory: {amounts}; lower batch_size, val_batch_size or image_size, set "
            "use_checkpoint, or ask monai-diffae plan (check_memory=false trains nevertheless)"
        )
    if needed.total > 0.8 * free:
        logger.warning("memory may run short: %s; monai-diffae plan proposes what fits", amounts)
