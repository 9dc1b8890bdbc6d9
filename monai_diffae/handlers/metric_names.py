"""The metrics of a training: the names by which MLflow groups their charts, and what they mean."""

from __future__ import annotations

import re

MEANINGS = {
    "training/loss": "the loss of the training steps since the last report; noise levels are drawn as the recipe says",
    "training/images_seen": "how many images the network has seen; an image counts once per epoch",
    "training/images_per_s": "images per second of training, without validation",
    "training/learning_rate": "the learning rate",
    "validation/loss": "the loss on validation images, with the same noise and noise levels each time; lower is better",
    "validation/loss_other_z_sem": "the same with the z_sem of another image; it should be higher",
    "validation/z_sem_usage": "loss_other_z_sem / loss: at 1 the decoder ignores z_sem, above 1.3 it uses it",
    "validation/copying_ratio": "distance of samples to training cases / of held-out cases; far below 1: copies",
    "validation/kl": "KL divergence of the first stage's latents, in nats per value",
    "probe/": "how well a linear model predicts the label of held-out patients from z_sem: AUROC of classes (0.5 is "
    "chance), R2 of numbers (0 is chance)",
    "probe_low/": "lower end of the 95 % interval of the probe",
    "probe_high/": "upper end of the 95 % interval of the probe",
    "neighbors/": "how well the 5 nearest training cases in z_sem predict the label: balanced accuracy of classes, R2 "
    "of numbers",
}
"""What each metric means, by its name in MLflow or by the group before the ``/``."""


def tracked_name(column: str) -> str:
    """The name of a metric in MLflow, which groups charts by what is before the ``/``.

    Args:
        column: its name in ``curves.csv``.

    Example:
        >>> [tracked_name(name) for name in ("loss", "validation_z_sem_usage", "validation_probe_low_age (years)")]
        ['training/loss', 'validation/z_sem_usage', 'probe_low/age _years_']
    """
    name = column.removeprefix("validation_")
    group = "training" if name == column else "validation"
    for prefix in ("probe_low", "probe_high", "probe", "neighbors"):
        if group == "validation" and name.startswith(f"{prefix}_"):
            group, name = prefix, name.removeprefix(f"{prefix}_")
            break
    return f"{group}/" + re.sub(r"[^\w\-. ]", "_", name)  # MLflow refuses other characters


def meaning_of(name: str) -> str:
    """What a metric means; nothing if it is not known.

    Args:
        name: its name in MLflow.

    Example:
        >>> meaning_of("training/learning_rate"), meaning_of("probe_low/age")
        ('the learning rate', 'lower end of the 95 % interval of the probe')
    """
    return MEANINGS.get(name) or MEANINGS.get(f"{name.partition('/')[0]}/", "")
