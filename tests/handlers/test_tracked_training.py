from monai_diffae.handlers.tracked_training import TrackedTraining

COUNTS = {"scans": 1200, "patients": 900, "train": 3000, "val": 400, "test": 0}
TRAINING = TrackedTraining("diffae_3d", [96, 128, 96], 64, COUNTS)


def test_the_name_says_what_is_trained_on_what():
    assert TRAINING.name == "diffae_3d 96x128x96, z_sem 64, 1,200 scans"
    assert TrackedTraining("latent DDIM", z_channels=64, counts={"train": 30, "val": 4}).name == (
        "latent DDIM, z_sem 64, 34 cases"
    )


def test_tags_are_those_that_are_known():
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
