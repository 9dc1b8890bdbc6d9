"""Train, embed and probe a MedMNIST set with its official split: one table with published figures beside it.

    python benchmarks/medmnist.py pneumoniamnist.npz OUT [--seeds 0 1 2] [--images 260000 | --minutes 60] [--side 16]
        [--planar-weights FILE --planar-backbone alexnet] [--overlays my.json ...] [--overrides z_channels=64 ...]

Any MedMNIST ``.npz`` file, 2D or 3D, of any size, one or several labels; with ``--side``, images are first reduced to
that side by averaging. For each seed, a Diff-AE is trained on the images of ``train``, without their labels, as long as
``--images`` or ``--minutes`` (``train --minutes``) say, and all images are encoded. Each set of features predicts the
labels of ``test``: z_sem, wide features, principal components of the pixels and of typical patches, and a
frozen network (``embed --encoder planar``, which sees the images of the file). A file without ``test`` is evaluated on
``val`` instead.

- ``probe``: ``monai-diffae probe``'s logistic regression, whose C is chosen by cross-validation on ``train``; also with
  ``val`` added to ``train``, and with the C that is best on ``val``, which is the protocol of Raptor.
- ``field``: the protocol of Doerrich et al. (Scientific Reports 2025) for frozen encoders: one linear layer, AdamW with
  a learning rate of 1e-4, until five epochs in a row bring no better loss on ``val``; and the 11 nearest neighbors.

AUROC and accuracy are those of MedMNIST: the mean over classes (one against the rest) or over labels. Intervals are
95 %, from a bootstrap of the test cases. It writes ``results.json`` and ``results.md``; a stopped run resumes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from medmnist_published import published
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.init import init
from monai_diffae.apps.training.train import train
from monai_diffae.bundle import layout
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.embeddings import matrix, read_embeddings
from monai_diffae.data.samples import medmnist_to_cohort
from monai_diffae.errors import DiffAEError
from monai_diffae.latents.probing import ClassScores, FeatureSet, ProbeModel
from monai_diffae.latents.probing.probes import LOGISTIC_CS
from monai_diffae.latents.probing.scores import bootstrapped, bounded_interval, difference_interval
from monai_diffae.latents.statistics import PixelComponents

Labels = NDArray[np.int64]  # (N, L): one class, or several labels that are 0 or 1
Scores = NDArray[np.float64]  # (N, C): a probability per class, or per label
Features = dict[str, NDArray[Any]]  # (N, D) of each split, whose scales are informative

BATCH_SIZE = 32
PCA = "PCA of the pixels"
PCA_SIDE = {2: 32, 3: 16}  # components of finer voxels were worse on AdrenalMNIST3D


@dataclass(frozen=True)
class Data:
    """The images that are encoded, as a file and as a cohort, and the split that is evaluated."""

    npz: Path
    cohort: Path
    shape: tuple[int, ...]
    is_colour: bool
    labels: dict[str, Labels]

    @classmethod
    def of(cls, npz: Path, cohort: Path) -> Data:
        """Read a file, and write its cohort."""
        table = medmnist_to_cohort(npz, cohort)
        with np.load(npz, allow_pickle=False) as arrays:
            shape = arrays["train_images"].shape[1:]
            names = [name for name in ("train", "val", "test") if f"{name}_labels" in arrays]
            labels = {name: arrays[f"{name}_labels"].astype(np.int64) for name in names}
        labels = {name: values.reshape(len(values), -1) for name, values in labels.items()}
        is_colour = shape[-1] == 3
        return cls(npz, table, shape[:-1] if is_colour else shape, is_colour, labels)

    @property
    def evaluated(self) -> str:
        """The split whose labels are predicted."""
        return "test" if "test" in self.labels else "val"


def pooled(images: NDArray[Any], side: int, dims: int) -> NDArray[np.float32]:
    """Images (N, *S) or (N, *S, 3) averaged to this side, as (N, C, *S)."""
    pool, parts = adaptive_avg_pool3d if dims == 3 else adaptive_avg_pool2d, []
    for part in torch.from_numpy(images).split(256):
        channels_first = part.movedim(-1, 1) if images.ndim == dims + 2 else part[:, None]
        parts.append(pool(channels_first.float(), side))
    return torch.cat(parts).numpy()


def reduced(data: Data, side: int, file: Path) -> Path:
    """The file with its images averaged to this side."""
    with np.load(data.npz, allow_pickle=False) as arrays:
        content = dict(arrays)
    for name in (name for name in content if name.endswith("_images")):
        images = pooled(content[name], side, len(data.shape)).round().astype(np.uint8)
        content[name] = np.moveaxis(images, 1, -1) if data.is_colour else images[:, 0]

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # NumPy would change the name of a path
            np.savez_compressed(stream, **content)

    return write_atomic(file, write)


def prepared(data: Data) -> dict[str, Any]:
    """How images of this shape are read: overrides of the shipped bundles."""
    divisor = 8 if min(data.shape) <= 40 else 16  # of the encoder
    size = [side + -side % divisor for side in data.shape]
    values: dict[str, Any] = {"image_size": size, "intensity": "window", "window_hu": [0, 255]}
    if len(data.shape) == 3:  # their voxels are 1 wide, without a unit
        values["spacing_mm"] = [1.0, 1.0, 1.0]
    return {**values, "in_channels": 3, "colour": "rgb"} if data.is_colour else values


def trained_settings(data: Data, given: Sequence[Path]) -> tuple[list[Path], dict[str, Any]]:
    """The overlays and overrides of the training, before those that are given."""
    overlays, overrides = layout.shipped("overlays"), {**prepared(data), "mlflow": False}
    if len(data.shape) == 3:
        return [overlays / "embed_volumes.json"], overrides
    is_anchored = any("free" in json.loads(path.read_text()).get("network_def#encoder", {}) for path in given)
    trained_part = "network_def#encoder#free" if is_anchored else "network_def#encoder"
    overrides |= {"z_channels": 256, f"{trained_part}#base_channels": 32}
    if min(data.shape) > 40:
        overrides["channel_mult"] = [1, 2, 4, 4]
    return [overlays / "medmnist.json", overlays / "encoder_view.json"], overrides


def trained(data: Data, args: argparse.Namespace, seed: int) -> Path:
    """A bundle that is trained with a seed."""
    overlays, overrides = trained_settings(data, args.overlays)
    bundle = args.out / f"seed_{seed}"
    complete = args.out / f"trained_{seed}"
    if complete.exists():
        return bundle
    if not bundle.exists():
        init(bundle, bundle=f"diffae_{len(data.shape)}d")
    if args.minutes is None:
        overrides["max_epochs"] = max(1, round(args.images / len(data.labels["train"])))
    given = dict(item.split("=", 1) for item in args.overrides)
    overrides |= {name: json.loads(value) for name, value in given.items()}
    training = Training(overlays=[*overlays, *args.overlays], seed=seed, batch_size=BATCH_SIZE, overrides=overrides)
    train(bundle, data.cohort, minutes=args.minutes, training=training)
    complete.touch()
    return bundle


def embedded(data: Data, columns: Literal["z", "wide"] = "z", **options: Any) -> Features:
    """What ``embed`` gives for all images."""
    table = read_embeddings(embed(cohort=data.cohort, **options).path)
    return {name: matrix(table[table["split"] == name], columns) for name in data.labels}


def together(first: Features, second: Features) -> Features:
    """Both features side by side, as ``probe --together`` combines them."""
    sizes = {name: len(values) for name, values in first.items()}
    both = [np.concatenate([*each.values()]) for each in (first, second)]
    parts = [FeatureSet.from_values("", values, standardise=False) for values in both]
    values = FeatureSet.together(parts).extract(np.arange(sizes["train"]))  # the training cases come first
    return dict(zip(sizes, np.split(values, np.cumsum([*sizes.values()])[:-1]), strict=True))


def pca(data: Data, dims: int) -> Features:
    """Principal components of the pixels, fitted to ``train``."""
    side = min(PCA_SIDE[len(data.shape)], *data.shape)
    with np.load(data.npz, allow_pickle=False) as arrays:
        images = {name: pooled(arrays[f"{name}_images"], side, len(data.shape)) / 255 for name in data.labels}
    components = PixelComponents.fit([images["train"]], dims)
    return {name: components.features(values) for name, values in images.items()}


def feature_sets(file: Data, data: Data, args: argparse.Namespace) -> dict[str, list[Features]]:
    """All features that are compared, one for each seed; ``data`` are the images that the Diff-AE sees."""
    bundles = {seed: trained(data, args, seed) for seed in args.seeds}
    options = [
        {"bundle": bundles[seed], "out": args.out / f"embedded_{seed}", "features": "wide"} for seed in args.seeds
    ]
    sets = {"z_sem": [embedded(data, **each) for each in options]}
    sets["wide"] = [embedded(data, "wide", **each) for each in options]
    first = bundles[args.seeds[0]]  # for its preprocessing
    sets["typical patches"] = [embedded(data, bundle=first, out=args.out / "words", encoder="words")]
    sets[PCA] = [pca(data, sets["z_sem"][0]["train"].shape[1])]
    if args.planar_weights is not None:
        planar = {"encoder": "planar", "weights": args.planar_weights, "backbone": args.planar_backbone}
        planar |= {"bundle": f"diffae_{len(file.shape)}d", "overrides": prepared(file)}
        name = f"planar, {args.planar_backbone}"
        sets[name] = [embedded(file, out=args.out / "planar", **planar)]
        sets[f"wide and {name}"] = [together(wide, sets[name][0]) for wide in sets["wide"]]
    return sets


def unusable_labels(labels: Mapping[str, Labels]) -> str | None:
    """Why AUROC cannot be computed with these labels of each split; None: it can."""
    classes = {name: [set(column.tolist()) for column in split.T] for name, split in labels.items()}
    for number, expected in enumerate(classes["train"]):
        column = f"label {number}" if len(classes["train"]) > 1 else "the label"
        if expected != set(range(len(expected))) or len(expected) < 2:
            return f"{column} has the classes {sorted(expected)} in train; it must have 0, 1, ... without a gap"
        if list(classes.values())[-1][number] != expected or not classes["val"][number] <= expected:
            return f"{column} has other classes in val or test than in train; remove those images, or move some"
    return None


def other_settings(args: argparse.Namespace) -> str | None:
    """The error if the folder of the results has those of other settings; else the settings are noted there."""
    overlays = [json.loads(path.read_text()) for path in args.overlays]
    names = ("images", "minutes", "side", "overrides")
    settings = {"overlays": overlays, **{name: getattr(args, name) for name in names}}
    file = args.out / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        return f"{args.out} has results of another training; choose another folder"
    write_json(file, settings)
    return None


def auroc_draws(labels: Labels, scores: Scores) -> tuple[float, NDArray[np.float64]]:
    """MedMNIST's AUROC, the mean over labels, or over classes against the rest; and in each draw of a bootstrap."""
    parts = [ClassScores(labels[:, 0], scores)]
    if labels.shape[1] > 1:
        parts = [ClassScores(y, np.stack([1 - p, p], axis=1)) for y, p in zip(labels.T, scores.T, strict=True)]

    def area(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.mean([part(weights)[:1] for part in parts], axis=0)

    return float(area(np.ones(len(labels)))[0]), bootstrapped(area, range(len(labels)))[:, 0]


def accuracy(labels: Labels, scores: Scores) -> float:
    """MedMNIST's accuracy: of the most probable class, or of each label at .5."""
    if labels.shape[1] > 1:
        return float(np.mean((scores > 0.5) == labels))
    return float(np.mean(scores.argmax(axis=1) == labels[:, 0]))


def logistic(fit: tuple[NDArray[Any], Labels], features: NDArray[Any], C: float | None) -> Scores:
    """Probabilities (N, C) of the classes, or (N, L) of several labels; without C, it is the package's linear probe."""
    values, labels = fit
    several = labels.shape[1] > 1
    predicted = []
    for column in labels.T:
        if C is None:
            num = 2 if several else int(labels.max()) + 1
            probe = ProbeModel("linear", standardise=False).fit(values, column, np.arange(len(values)), num)
            predicted.append(probe.predict(features))
        else:
            scaler = StandardScaler(with_std=False)
            model = make_pipeline(scaler, LogisticRegression(C=C, max_iter=2000)).fit(values, column)
            predicted.append(model.predict_proba(features))
    return np.stack([scores[:, 1] for scores in predicted], axis=1) if several else predicted[0]


def best_on_val(sides: Mapping[str, tuple[NDArray[Any], Labels]]) -> float:
    """The C with the best AUROC on ``val``, and the strongest of equals."""
    areas = []
    for C in LOGISTIC_CS:
        scores, labels = logistic(sides["train"], sides["val"][0], C), sides["val"][1]
        columns = labels if labels.shape[1] > 1 else np.eye(scores.shape[1], dtype=int)[labels[:, 0]]
        known = [k for k in range(columns.shape[1]) if len(set(columns[:, k])) == 2]  # val may lack a class
        areas.append(np.mean([roc_auc_score(columns[:, k], scores[:, k]) for k in known]))
    return float(LOGISTIC_CS[int(np.argmax(np.round(areas, 6)))])


def linear_layer(sides: Mapping[str, tuple[NDArray[Any], Labels]], seed: int) -> Scores:
    """The field's protocol: a linear layer by AdamW, until ``val`` does not get better for five epochs."""
    torch.manual_seed(seed)
    (x, y), (x_val, y_val) = ([torch.from_numpy(array) for array in sides[name]] for name in ("train", "val"))
    several = y.shape[1] > 1
    layer = torch.nn.Linear(x.shape[1], y.shape[1] if several else int(y.max()) + 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4)

    def loss(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        output = layer(features.float())
        if several:
            return torch.nn.functional.binary_cross_entropy_with_logits(output, labels.float())
        return torch.nn.functional.cross_entropy(output, labels[:, 0].long())

    best, patience, weights = float("inf"), 0, layer.state_dict()
    while patience < 5:
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(x[rows], y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            value = float(loss(x_val, y_val))
        if value < best - 1e-5:
            best, patience, weights = value, 0, {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        else:
            patience += 1
    layer.load_state_dict(weights)
    with torch.no_grad():
        output = layer(torch.from_numpy(sides["test"][0]).float())
    return (output.sigmoid() if several else output.softmax(dim=1)).double().numpy()


def evaluate(features: Features, data: Data, seed: int) -> dict[str, Scores]:
    """The predictions for the evaluated split by each protocol; those that need ``val`` only if there is a ``test``."""
    sides = {name: (features[name], data.labels[name]) for name in data.labels}
    test = sides[data.evaluated][0]
    scores = {"probe": logistic(sides["train"], test, None)}
    if data.evaluated == "test":
        both = tuple(np.concatenate(parts) for parts in zip(sides["train"], sides["val"], strict=True))
        scores["probe, train + val"] = logistic((both[0], both[1]), test, None)
        C = best_on_val(sides)
        scores["probe, C on val"] = logistic(sides["train"], test, C)
        scores["field: linear layer"] = linear_layer(sides, seed)
    if data.labels["train"].shape[1] == 1:
        nearest = KNeighborsClassifier(11).fit(sides["train"][0], sides["train"][1][:, 0])
        scores["field: 11 nearest"] = nearest.predict_proba(test)
    return scores


def rows(sets: Mapping[str, list[Features]], data: Data, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each set of features and protocol: the mean over the seeds, with intervals, and minus PCA."""
    truth = data.labels[data.evaluated]
    num = min(int(np.bincount(column).min()) for column in truth.T)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, each_seed in sets.items():
        predicted = [evaluate(features, data, seed) for features, seed in zip(each_seed, seeds, strict=False)]
        for protocol in predicted[0]:
            areas, draws = zip(*(auroc_draws(truth, scores[protocol]) for scores in predicted), strict=True)
            share = float(np.mean([accuracy(truth, scores[protocol]) for scores in predicted]))
            value, draw = float(np.mean(areas)), np.mean(draws, axis=0)
            found[name, protocol] = {
                "features": name, "protocol": protocol, "auroc": value, "interval": bounded_interval(value, draw, num),
                "accuracy": share, "seeds": areas, "draws": draw,
            }  # fmt: skip
    for (name, protocol), row in found.items():
        if name != PCA:
            other = found[PCA, protocol]
            difference = row["auroc"] - other["auroc"]
            row["minus_pca"] = (difference, *difference_interval(difference, row["draws"] - other["draws"], num))
    return [{key: value for key, value in row.items() if key != "draws"} for row in found.values()]


def markdown(name: str, data: Data, results: Mapping[str, Any]) -> str:
    """The table: ours, then the published figures."""
    length = f"{results['minutes']} minutes" if results["minutes"] else f"{results['images']} images"
    lines = [f"{name}, {data.shape[0]} px, {length} of training, seeds {results['seeds']}", ""]
    if data.evaluated != "test":
        lines += [
            "**Evaluated on val, as the file has no test images**; the published figures are of test.",
            "",
        ]
    lines += ["| features | protocol | AUROC (95 % interval) | accuracy | minus PCA, paired |", "|---|---|---|---|---|"]
    for row in results["rows"]:
        low, high = row["interval"]
        area = f"{100 * row['auroc']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        minus = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * x for x in row["minus_pca"])) if "minus_pca" in row else ""
        lines.append(f"| {row['features']} | {row['protocol']} | {area} | {100 * row['accuracy']:.1f} | {minus} |")
    for source, (area, share) in published(name, data.shape[0]).items():
        lines.append(f"| {source} | published | {area} | {'' if np.isnan(share) else share} | |")
    return "\n".join([*lines, "", results["machine"], ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", help="the set, such as adrenalmnist3d; by default the beginning of the file's name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=260_000, help="training images of each seed")
    parser.add_argument("--minutes", type=float, help="time for the training of each seed, in place of --images")
    parser.add_argument("--side", type=int, help="average images to this side, which divides that of the file")
    parser.add_argument("--planar-weights", type=Path, help="weights of a frozen network")
    parser.add_argument("--planar-backbone", default="alexnet", help="its name")
    parser.add_argument("--overlays", type=Path, nargs="*", default=[])
    parser.add_argument("--overrides", nargs="*", default=[], help="KEY=VALUE, with values as JSON")
    args = parser.parse_args()

    start = time.perf_counter()
    try:
        file = data = Data.of(args.npz, args.out / "cohort")
        if args.side is not None and any(n % args.side for n in file.shape):
            parser.error(f"--side {args.side} does not divide the side of the images, {file.shape[0]}")
        if args.side not in (None, *file.shape):
            small = args.out / f"{args.npz.stem}_{args.side}.npz"
            data = Data.of(small if small.exists() else reduced(file, args.side, small), args.out / "cohort_small")
        if problem := unusable_labels(file.labels) or other_settings(args):
            parser.error(problem)
        sets = feature_sets(file, data, args)
    except DiffAEError as error:
        parser.error(str(error))
    results = {
        "images": args.images,
        "minutes": args.minutes,
        "seeds": args.seeds,
        "evaluated": data.evaluated,
        "rows": rows(sets, data, args.seeds),
        "seconds": time.perf_counter() - start,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
    }
    write_json(args.out / "results.json", results)
    text = markdown(args.name or args.npz.stem.split("_")[0], data, results)
    write_atomic(args.out / "results.md", lambda temporary: temporary.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
