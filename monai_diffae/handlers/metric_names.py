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
    "neighbors/": "agreement with the label of the 5 nearest training cases in z_sem: of classes the share that has "
    "the same one (1 / number of classes is chance), of numbers the correlation with their mean (0 is chance)",
}
"""What each metric means, by its name in MLflow or by the group before the ``/``."""


_GROUPS_OF_PROBES = {
    "probe_": "probe", "low_of_probe_": "probe_low", "high_of_probe_": "probe_high", "neighbors_": "neighbors"
}  # fmt: skip
"""The beginnings of the names that probes give to metrics of a validation, and their groups in MLflow."""


def is_of_probes(metric: str) -> bool:
    """Whether a metric of a validation comes from probes.

    Example:
        >>> is_of_probes("low_of_probe_age"), is_of_probes("loss")
        (True, False)
    """
    return metric.startswith(tuple(_GROUPS_OF_PROBES))


def tracked_name(column: str) -> str:
    """The name in MLflow of a column of ``curves.csv``; MLflow groups charts by what is before the ``/``.

    Example:
        >>> [tracked_name(name) for name in ("loss", "validation_z_sem_usage", "validation_low_of_probe_age (years)")]
        ['training/loss', 'validation/z_sem_usage', 'probe_low/age _years_']
    """
    name = column.removeprefix("validation_")
    group = "training" if name == column else "validation"
    for beginning, group_of_probes in _GROUPS_OF_PROBES.items():
        if group == "validation" and name.startswith(beginning):
            group, name = group_of_probes, name.removeprefix(beginning)
            break
    return f"{group}/" + re.sub(r"[^\w\-. ]", "_", name)  # MLflow refuses other characters


def meaning_of(name: str) -> str:
    """What a metric, by its name in MLflow, means; empty if it is not known.

    Example:
        >>> meaning_of("training/learning_rate"), meaning_of("probe_low/age")
        ('the learning rate', 'lower end of the 95 % interval of the probe')
    """
    return MEANINGS.get(name) or MEANINGS.get(f"{name.partition('/')[0]}/", "")
