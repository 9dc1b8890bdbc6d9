"""How well anomaly maps find planted lesions: the tables of docs/anomaly.md.

    python benchmarks/anomaly.py BUNDLE COHORT --minutes 15 --out results/ [--column image=file] [--cases 64]

Lesions of known size and contrast are planted into cases that no model was trained on. A lesion is a blob of irregular
shape, brighter or darker than the tissue around it, that spares tissue of other brightness. Reconstructions of the same
images are compared:

- the trained bundle: estimated from noised images and z_sem (what ``monai-diffae anomaly`` does), sampled from the same
  noised images as in AnoDDPM, and sampled from pure noise and z_sem;
- MONAI's AutoencoderKL, trained for ``--minutes`` of processor time with a bottleneck of z_sem's size; 0: none;
- the mean of the training images, voxel by voxel.

All reconstructions go through the same steps: smoothing, spread, score, p-value. One half of the patients of ``val``
calibrates them, the other half, with lesions, gives the threshold of the best Dice. All figures are of ``test``, with
95 % intervals of a bootstrap over patients. It writes ``anomaly.csv`` and ``by_size.csv``, and prints both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from baselines import Data, in_batches, train_autoencoder_kl
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_diffae.apps.evaluation.calibrate import draw_scans
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Reading, Run
from monai_diffae.bundle import AnomalySettings, TrainedBundle
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.diffusion import Predictor
from monai_diffae.diffusion.noise import image_noise, seed_of
from monai_diffae.inferers import encode_exactly, estimate_from_noised
from monai_diffae.latents.neighbors import p_values
from monai_diffae.metrics import anomaly_maps, cross_fitted_maps, highest_mean, residual_spread, smoothed_residuals

Reconstruct = Callable[[Tensor], Tensor]
Floats = NDArray[np.float64]

RADII = (0.06, 0.10, 0.16)  # of the shortest side
CONTRASTS = (0.15, 0.3, 0.5)  # of the model's range
BINS, BOOTSTRAPS = 2000, 1000


def plant_lesion(
    image: Tensor, model_range: tuple[float, float], radius: float, contrast: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Plant a lesion into an image (C, *S).

    Returns:
        The image with the lesion, and its mask (1, *S): where the lesion has more than half its contrast.
    """
    rng = np.random.default_rng(seed)
    low, high = model_range
    grey, radius_voxels = image[0].numpy(), max(radius * min(image.shape[1:]), 1.2)
    tissue = ndimage.binary_erosion(grey > low + 0.1 * (high - low), iterations=max(1, round(0.6 * radius_voxels)))
    places = np.argwhere(tissue if tissue.any() else grey > np.median(grey))
    centre = places[rng.integers(len(places))]
    axes = radius_voxels * np.exp(rng.normal(0, 0.2, grey.ndim))
    waves = ndimage.gaussian_filter(rng.normal(size=grey.shape), 1.5)
    offsets = [(grid - c) / axis for grid, c, axis in zip(np.indices(grey.shape), centre, axes, strict=True)]
    distance = np.sqrt(sum(offset**2 for offset in offsets)) + 0.12 * waves / waves.std()
    blob = 1 / (1 + np.exp(6 * (distance - 1)))
    own_grey = ndimage.gaussian_filter(grey, 0.7)[tuple(centre)]
    weight = blob * np.exp(-(((grey - own_grey) / (0.25 * (high - low))) ** 2))
    weight /= weight.max()
    sign = 1 if rng.random() < (high - own_grey) / (high - low) else -1  # towards where there is room
    change = torch.from_numpy((sign * contrast * (high - low) * weight).astype(np.float32))
    return (image + change).clamp(low, high), torch.from_numpy(weight > 0.5)[None]


@dataclass
class Images:
    """Normal images and the same with lesions.

    Attributes:
        normal: (N, C, *S).
        patients: (N,), the patient of each normal image.
        planted: (M, C, *S).
        masks: (M, 1, *S).
        sources: (M,), the normal image of each planted one.
        radius: (M,) and ``contrast`` (M,): of the lesions.
    """

    normal: Tensor
    patients: NDArray[np.str_]
    planted: Tensor
    masks: Tensor
    sources: NDArray[np.intp]
    radius: Floats
    contrast: Floats


def plant(cases: Sequence[Case], images: Tensor, model_range: tuple[float, float], seed: int) -> Images:
    """Plant one lesion of each size into every image; its contrast follows from the image's number."""
    rows = []
    for i, image in enumerate(images):
        for j, radius in enumerate(RADII):
            contrast = CONTRASTS[(i + j) % len(CONTRASTS)]
            rows.append((i, radius, contrast, *plant_lesion(image, model_range, radius, contrast, 10 * i + j + seed)))
    sources, radius, contrast, planted, masks = zip(*rows, strict=True)
    patients = np.array([case.patient for case in cases])
    return Images(
        images, patients, torch.stack(planted), torch.stack(masks),
        np.array(sources), np.array(radius), np.array(contrast),
    )  # fmt: skip


@torch.no_grad()
def sampled(trained: TrainedBundle, images: Tensor, z_sem: Tensor, level: float, draws: int, steps: int) -> Tensor:
    """The mean of images that the solver samples from noised images (pure noise at level 1) and z_sem."""
    inferer, schedule = trained.inferer, trained.inferer.schedule
    t = round(level * schedule.num_train_timesteps) - 1
    levels = [t, *(other for other in schedule.decoding_levels(steps) if other < t - 1)]
    total = torch.zeros_like(images)
    for draw in range(draws):
        eps = image_noise(tuple(images.shape[1:]), seed_of(draw), [0]).expand_as(images)
        x_t = eps if level == 1 else schedule.q_sample(images, eps, torch.full((len(images),), t))
        for part, code, out in zip(x_t.split(32), z_sem.split(32), total.split(32), strict=True):
            denoise = lambda x, t, z=code: trained.network(x, t, z)  # noqa: E731
            out += inferer.solver(Predictor(denoise, schedule, inferer.clip_range), part, levels) / draws
    return total


def reconstructions(trained: TrainedBundle, data: Data, minutes: float) -> dict[str, Reconstruct]:
    """What makes a reconstruction (N, C, *S) of images, by name."""
    settings, network, inferer = AnomalySettings(), trained.network, trained.inferer

    def codes(images: Tensor) -> Tensor:
        return encode_exactly(images, network, inferer)

    train_mean = data.images[data.rows("train")].mean(dim=0, keepdim=True)

    def estimated(images: Tensor) -> Tensor:
        levels, draws = settings.noise_levels, settings.draws
        return estimate_from_noised(images, network, codes(images), inferer, noise_levels=levels, draws=draws)

    methods: dict[str, Reconstruct] = {
        "Diff-AE, estimated from noised images": estimated,
        "Diff-AE, sampled from noised images": lambda x: sampled(trained, x, codes(x), 0.4, 2, 10),
        "Diff-AE, sampled from pure noise": lambda x: sampled(trained, x, codes(x), 1.0, 4, 10),
        "voxel-wise mean": lambda x: train_mean.expand_as(x),
    }  # fmt: skip
    if minutes:
        trained_once = cache(lambda: train_autoencoder_kl(data, minutes))  # on first use, after the other methods

        def decoded(images: Tensor) -> Tensor:
            autoencoder = trained_once()
            values = in_batches(lambda x: autoencoder.decode(autoencoder.encode(x)[0]), images)
            return torch.from_numpy(values).reshape(images.shape)

        methods["AutoencoderKL"] = decoded
    return methods


def evaluate(reconstruct: Reconstruct, calibration: tuple[Tensor, list[str]], val: Images, test: Images) -> Evaluation:
    """The figures of one reconstruction, and the voxel counts and scores from which they come."""
    settings = AnomalySettings()

    def residuals(images: Tensor) -> Tensor:
        return smoothed_residuals(images, reconstruct(images), settings.smoothing)

    images, patients = calibration
    known = residuals(images)
    groups = np.unique(patients, return_inverse=True)[1].tolist()
    known_maps = cross_fitted_maps(known, groups, settings.floor, settings.smoothing)
    spread = residual_spread(known.square().mean(dim=0), settings.floor)

    def maps(images: Tensor) -> Tensor:
        return anomaly_maps(residuals(images), spread, settings.smoothing)

    voxels = known_maps.flatten()[: 2**24]
    edges = np.unique(np.quantile(voxels.numpy(), 1 - np.geomspace(1, 1e-7, BINS)))
    edges = np.append(edges, edges[-1] * np.geomspace(1.01, 50, BINS // 2))
    normal, planted = maps(test.normal), maps(test.planted)
    val_planted = histograms(maps(val.planted), val.masks, edges)
    return Evaluation(
        test, histograms(planted, test.masks, edges),
        highest_mean(normal, settings.fraction).numpy(), highest_mean(planted, settings.fraction).numpy(),
        best=int(np.argmax(dice_curve(val_planted))),
        stored=int(np.searchsorted(edges, np.quantile(voxels.numpy(), 0.99))),
        reference=highest_mean(known_maps, settings.fraction).numpy(),
    )  # fmt: skip


def histograms(maps: Tensor, masks: Tensor, edges: Floats) -> NDArray[np.int64]:
    """Counts (M, 2, bins) of the voxels outside and inside of each lesion, by the map's value."""
    bins = np.searchsorted(edges, maps.flatten(1).numpy())
    inside = masks.flatten(1).numpy()
    count = len(edges) + 1
    return np.stack(
        [[np.bincount(b[m == k], minlength=count) for k in (0, 1)] for b, m in zip(bins, inside, strict=True)]
    )


def dice_curve(counts: NDArray[np.int64]) -> Floats:
    """The Dice over all lesions for each threshold: the voxels from a bin upwards."""
    outside, inside = counts.sum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
    return 2 * inside / np.maximum(outside + inside + inside[0], 1)


def auroc(negatives: Floats, positives: Floats) -> float:
    """AUROC from counts by ascending value."""
    below = np.cumsum(negatives) - negatives / 2
    return float((positives * below).sum() / max(negatives.sum() * positives.sum(), 1))


@dataclass
class Evaluation:
    """What the figures of one reconstruction come from.

    Attributes:
        images: the test images.
        counts: (M, 2, bins), see :func:`histograms`.
        normal_scores: (N,), ``planted_scores`` (M,): the scores of the test images.
        best: the bin of the best threshold, chosen on validation lesions; ``stored``: that of the stored quantile .99.
        reference: the scores of the calibration cases.
    """

    images: Images
    counts: NDArray[np.int64]
    normal_scores: Floats
    planted_scores: Floats
    best: int
    stored: int
    reference: Floats

    def figures(self, normal: NDArray[np.intp], planted: NDArray[np.intp]) -> dict[str, float]:
        """The figures on some of the normal and planted images."""
        counts = self.counts[planted]
        outside, inside = counts.sum(axis=0)
        dice = dice_curve(counts)
        scores = np.concatenate([self.normal_scores[normal], self.planted_scores[planted]])
        is_planted = np.arange(len(scores)) >= len(normal)
        values, places = np.unique(scores, return_inverse=True)
        by_value = [np.bincount(places[is_planted == k], minlength=len(values)) for k in (False, True)]
        p = p_values(self.normal_scores[normal], self.reference, np.zeros(len(normal), bool))
        p_planted = p_values(self.planted_scores[planted], self.reference, np.zeros(len(planted), bool))
        return {
            "auroc_voxel": auroc(outside, inside), "auroc_case": auroc(*by_value),
            "dice": dice[self.best], "dice_stored": dice[self.stored],
            "normal_p<=.05": float((p <= 0.05).mean()), "planted_p<=.05": float((p_planted <= 0.05).mean()),
        }  # fmt: skip

    def with_intervals(self) -> dict[str, str]:
        """The figures with 95 % intervals of a bootstrap over patients."""
        every = np.arange(len(self.images.normal)), np.arange(len(self.images.planted))
        value = self.figures(*every)
        names = np.unique(self.images.patients)
        own = [np.flatnonzero(self.images.patients == name) for name in names]
        own_planted = [np.flatnonzero(np.isin(self.images.sources, rows)) for rows in own]
        rng = np.random.default_rng(0)
        draws = []
        for _ in range(BOOTSTRAPS):
            drawn = rng.integers(len(names), size=len(names))
            rows = np.concatenate([own[i] for i in drawn]), np.concatenate([own_planted[i] for i in drawn])
            draws.append(self.figures(*rows))
        low, high = (pd.DataFrame(draws).quantile(q) for q in (0.025, 0.975))
        return {name: f"{value[name]:.3f} ({low[name]:.2f}-{high[name]:.2f})" for name in value}

    def by_size(self) -> pd.DataFrame:
        """The figures by radius and contrast."""
        every = np.arange(len(self.images.normal))
        rows = []
        for radius in RADII:
            for contrast in CONTRASTS:
                planted = np.flatnonzero((self.images.radius == radius) & (self.images.contrast == contrast))
                voxels = float(self.images.masks[planted].flatten(1).sum(dim=1).float().mean())
                rows.append({"radius": radius, "contrast": contrast, "voxels": voxels, **self.figures(every, planted)})
        return pd.DataFrame(rows).drop(columns="normal_p<=.05")


def open_data(args: argparse.Namespace) -> tuple[Session, Data, dict[str, list[Case]], dict[str, Tensor]]:
    """The bundle, all images, and the drawn cases with their images by their use."""
    columns = dict(pair.split("=", 1) for pair in args.column)
    session = Session.open(args.bundle, args.cohort, reading=Reading(columns=columns), run=Run(device="cpu"))
    read = session.read(session.cohort.cases, args.out)
    images = torch.stack([read.dataset[i]["image"].as_subclass(Tensor) for i in range(len(read.cases))])
    table = pd.DataFrame({"id": [case.id for case in read.cases], "split": [case.split for case in read.cases]})
    parser = ConfigParser()
    parser.read_config(str(args.bundle / "configs" / "train.json"))
    parser.update(session.trained.config)
    augmentation = parser.get_parsed_content("augmentation")
    augmented = CachedCases(
        session.cohort.items("train"), session.trained.preprocessing, augmentation,
        keys=list(dict.fromkeys(["image", session.encoder_key])),
    )  # fmt: skip
    patients = sorted({case.patient for case in read.cases if case.split == "val"}, key=seed_of)
    half = set(patients[::2])
    uses = {
        "calibration": [case for case in read.cases if case.split == "val" and case.patient in half],
        "val": [case for case in read.cases if case.split == "val" and case.patient not in half],
        "test": [case for case in read.cases if case.split == "test"],
    }
    uses = {name: draw_scans(cases, args.cases) for name, cases in uses.items()}
    place = {case.id: i for i, case in enumerate(read.cases)}
    drawn = {name: images[[place[case.id] for case in cases]] for name, cases in uses.items()}
    return session, Data(session.trained, table, images, augmented), uses, drawn


def main() -> None:
    """Plant lesions, reconstruct with each method, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--column", action="append", default=[], help="our word=the table's, such as image=file")
    parser.add_argument("--minutes", type=float, default=15, help="of processor time, for the AutoencoderKL; 0: none")
    parser.add_argument(
        "--cases", type=int, default=64, help="scans for calibration, validation and test, each at most"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    session, data, uses, images = open_data(args)
    model_range = session.trained.model_range
    val, test = (plant(uses[name], images[name], model_range, seed=i) for i, name in enumerate(("val", "test")))
    print({name: len(cases) for name, cases in uses.items()}, flush=True)
    calibration = images["calibration"], [case.patient for case in uses["calibration"]]
    rows = []
    for name, reconstruct in reconstructions(session.trained, data, args.minutes).items():
        evaluation = evaluate(reconstruct, calibration, val, test)
        rows.append({"reconstruction": name, **evaluation.with_intervals()})
        print(rows[-1], flush=True)
        if len(rows) == 1:
            evaluation.by_size().to_csv(args.out / "by_size.csv", index=False)
    pd.DataFrame(rows).to_csv(args.out / "anomaly.csv", index=False)
    print(pd.DataFrame(rows).to_string(index=False))
    print(pd.read_csv(args.out / "by_size.csv").round(3).to_string(index=False))


if __name__ == "__main__":
    main()
