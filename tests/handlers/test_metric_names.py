from monai_diffae.handlers.metric_names import meaning_of, tracked_name

COLUMNS = [
    "loss", "images_per_s", "images_seen", "learning_rate", "validation_loss", "validation_loss_other_z_sem",
    "validation_z_sem_usage", "validation_copying_ratio", "validation_kl", "validation_probe_age",
    "validation_low_of_probe_age", "validation_high_of_probe_age", "validation_neighbors_age",
]  # fmt: skip


def test_every_metric_has_a_group_of_charts_and_a_meaning():
    names = [tracked_name(column) for column in COLUMNS]
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 1 and meaning_of(name) for name in names)


def test_a_training_metric_is_never_taken_for_a_probe():
    assert tracked_name("probe_age") == "training/probe_age"
    assert meaning_of("unknown/age") == ""
