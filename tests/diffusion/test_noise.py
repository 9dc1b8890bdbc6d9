import torch

from monai_diffae.diffusion.noise import image_noise, seed_of


def test_seeds_are_distinct_and_stable():
    assert seed_of(0, "noise", 1) == seed_of(0, "noise", 1)
    assert len({seed_of(s, r, i) for s in range(10) for r in range(10) for i in range(10)}) == 1000


def test_the_noise_of_an_image_is_standard_normal_and_the_same_in_every_batch():
    noise = image_noise((1, 32, 32), 0, list(range(20)))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(image_noise((1, 32, 32), 0, [7])[0], noise[7])
