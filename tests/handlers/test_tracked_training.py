"""What a tracked training is called, how it is described, and what its metrics mean."""

from monai_diffae.handlers.metric_names import meaning_of, tracked_name
from monai_diffae.handlers.tracked_training import TrackedTraining

COUNTS = {"scans": 1200, "patients": 900, "train": 3000, "val": 400, "test": 0}
TRAINING = TrackedTraining("diffae_3d", [96, 128, 96], 64, COUNTS)
LATENT = TrackedTraining("latent DDIM", z_channels=64, counts={"train": 30, "val": 4})
COLUMNS = [
    "loss", "images_per_s", "images_seen", "learning_rate", "validation_loss", "validation_loss_other_z_sem",
    "validation_z_sem_usage", "validation_copying_ratio", "validation_kl", "validation_probe_age",
    "validation_low_of_probe_age", "validation_high_of_probe_age", "validation_neighbors_age",
]  # fmt: skip


def test_name_and_tags_say_what_is_trained_on_what():
    assert TRAINING.name == "diffae_3d 96x128x96, z_sem 64, 1,200 scans"
    assert LATENT.name == "latent DDIM, z_sem 64, 34 cases"
    assert TRAINING.tags == {
        "model": "diffae_3d", "image_size": "96x128x96", "z_sem_dims": "64", "num_scans": "1200", "num_patients": "900"
    }  # fmt: skip
    assert TrackedTraining("latent DDIM").tags == {"model": "latent DDIM"}


def test_the_description_has_the_facts_and_explains_the_metrics():
    text = TRAINING.description({"steps": "3 epochs"}, {"validation/loss": 0.25})
    assert "| trained on | 1,200 scans of 900 patients (3,000 training, 400 validation images) |" in text
    assert "| steps | 3 epochs |" in text
    assert "| `validation/loss` | 0.25 | the loss on validation images" in text
    assert "last value" not in TRAINING.description({}, {})


def test_every_metric_has_a_group_of_charts_and_a_meaning():
    names = [tracked_name(column) for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 1 and meaning_of(name) for name in names)
    assert tracked_name("probe_age") == "training/probe_age"  # never taken for a probe
    assert meaning_of("unknown/age") == ""
