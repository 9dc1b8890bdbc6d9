"""Train, embed and probe a MedMNIST set with its official split: one table with published figures beside it.

    python benchmarks/medmnist.py pneumoniamnist.npz OUT [--seeds 0 1 2] [--images 260000]
        [--overlays my.json ...] [--overrides z_channels=64 ...]

Any MedMNIST ``.npz`` file, 2D or 3D, of any size, one or several labels. For each seed, a Diff-AE is trained on the
images of ``train``, without their labels, and all images are encoded. Then z_sem predicts the labels of ``test``:

- ``probe``: ``monai-diffae probe``'s logistic regression, whose regularisation is chosen by cross-validation on
  ``train``; also with ``val`` added to ``train``, and for the principal components of the pixels.
- ``field``: the protocol of Doerrich et al. (Scientific Reports 2025) for frozen encoders: one linear layer, AdamW with
  a learning rate of 1e-4, until five epochs in a row bring no better loss on ``val``; and the 11 nearest neighbors.

AUROC and accuracy are those of MedMNIST: the mean over classes (one against the rest) or over labels. It writes
``results.json`` and ``results.md``, and a run that was stopped resumes. Time: almost all of it is training,
``--images`` divided by the images per second.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import monai_diffae
from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.settings import Training
from monai_diffae.apps.training.init import init
from monai_diffae.apps.training.train import train
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.data.samples import medmnist_to_cohort
from monai_diffae.errors import DiffAEError
from monai_diffae.latents.probing import fit_probe, pca_features

Labels = NDArray[np.int64]  # (N, L): one class, or several labels that are 0 or 1
Scores = NDArray[np.float64]  # (N, C): a probability per class, or per label

# AUROC and accuracy in percent. MedMNIST v2: Yang et al., Scientific Data 2023, tables 3 and 4. The others: Doerrich et
# al., Scientific Reports 2025, read from the plots of their repository.
PUBLISHED: dict[tuple[str, int], dict[str, tuple[float, float]]] = {
    ("pneumoniamnist", 28): {
        "DINO ViT-B/16, linear layer": (97.3, 86.6),
        "ResNet-18, end to end": (95.0, 83.1),
        "MedMNIST v2, ResNet-18": (94.4, 85.4),
    },
    ("pneumoniamnist", 64): {"DINO ViT-B/16, linear layer": (97.6, 86.4), "VGG16, end to end (best)": (98.7, 89.3)},
    ("breastmnist", 28): {
        "DINO ViT-B/16, linear layer": (86.8, 83.3),
        "AlexNet, end to end (best)": (89.1, 86.5),
        "MedMNIST v2, ResNet-18": (90.1, 86.3),
    },
    ("breastmnist", 64): {"DINO ViT-B/16, linear layer": (91.7, 85.7), "AlexNet, end to end (best)": (89.7, 87.6)},
    ("organmnist3d", 28): {"MedMNIST v2, ResNet-18 3D": (99.6, 90.7)},
    ("vesselmnist3d", 28): {"MedMNIST v2, ResNet-18 3D": (87.4, float("nan"))},
}
BATCH_SIZE = 32


def settings(shape: Sequence[int], colour: bool) -> tuple[list[Path], dict[str, Any]]:
    """The overlays and overrides of the training, for images of this shape."""
    overlays = Path(monai_diffae.__file__).parents[1] / "configs"
    divisor = 8 if min(shape) <= 40 else 16  # of the encoder
    size = [side + -side % divisor for side in shape]
    overrides: dict[str, Any] = {"image_size": size, "mlflow": False}
    if len(shape) == 3:  # their voxels are 1 wide, without a unit
        overrides |= {"intensity": "window", "window_hu": [0, 255], "spacing_mm": [1.0, 1.0, 1.0]}
        return [overlays / "embed_volumes.json"], overrides
    overrides |= {"z_channels": 256, "network_def#encoder#base_channels": 32}
    if min(shape) > 40:
        overrides["channel_mult"] = [1, 2, 4, 4]
    if colour:
        overrides |= {"in_channels": 3, "colour": "rgb"}
    return [overlays / "medmnist.json", overlays / "encoder_view.json"], overrides


def embedded(cohort: Path, shape: Sequence[int], colour: bool, args: argparse.Namespace, seed: int) -> Path:
    """Train with a seed and encode all images; the table of z_sem."""
    overlays, overrides = settings(shape, colour)
    bundle, table = args.out / f"seed_{seed}", args.out / f"embedded_{seed}"
    if not (table / "embeddings.parquet").exists():
        if not bundle.exists():
            init(bundle, bundle=f"diffae_{len(shape)}d")
        num_train = int((pd.read_csv(cohort)["split"] == "train").sum())
        overrides["max_epochs"] = max(1, round(args.images / num_train))
        given = dict(item.split("=", 1) for item in args.overrides)
        values = {name: json.loads(value) for name, value in given.items()}
        training = Training(
            overlays=[*overlays, *args.overlays], seed=seed, batch_size=BATCH_SIZE, overrides=overrides | values
        )
        train(bundle, cohort, training=training)
        embed(bundle, cohort, table)
    return table / "embeddings.parquet"


def unusable_labels(labels: Mapping[str, Labels]) -> str | None:
    """Why AUROC cannot be computed with these labels of each split; None: it can."""
    classes = {
        name: [set(column.tolist()) for column in split.reshape(len(split), -1).T] for name, split in labels.items()
    }
    for number, (train_classes, val_classes, test_classes) in enumerate(zip(*classes.values(), strict=True)):
        column = f"label {number}" if len(classes["train"]) > 1 else "the label"
        if train_classes != set(range(len(train_classes))) or len(train_classes) < 2:
            return f"{column} has the classes {sorted(train_classes)} in train; it must have 0, 1, ... without a gap"
        if test_classes != train_classes or not val_classes <= train_classes:
            return f"{column} has other classes in val or test than in train; remove those images, or move some"
    return None


def other_settings(args: argparse.Namespace) -> str | None:
    """The error if the folder of the results has those of other settings; else the settings are noted there."""
    overlays = [json.loads(path.read_text()) for path in args.overlays]
    settings = {"images": args.images, "overlays": overlays, "overrides": args.overrides}
    file = args.out / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        return f"{args.out} has results of other --images, --overlays or --overrides; choose another folder"
    write_json(file, settings)
    return None


def auroc(labels: Labels, scores: Scores) -> float:
    """MedMNIST's AUROC: the mean over labels, or over classes against the rest."""
    if labels.shape[1] == 1 and scores.shape[1] == 2:
        return float(roc_auc_score(labels[:, 0], scores[:, 1]))
    truth = labels if labels.shape[1] > 1 else np.arange(scores.shape[1]) == labels
    return float(np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]))


def accuracy(labels: Labels, scores: Scores) -> float:
    """MedMNIST's accuracy: of the most probable class, or of each label at .5."""
    if labels.shape[1] > 1:
        return float(np.mean((scores > 0.5) == labels))
    return float(np.mean(scores.argmax(axis=1) == labels[:, 0]))


def logistic(fit: tuple[NDArray[Any], Labels], features: NDArray[Any], standardise: bool = True) -> Scores:
    """The package's linear probe: probabilities (N, C) of the classes, or (N, L) of several labels."""
    values, labels = fit
    cases = np.arange(len(values))
    several = labels.shape[1] > 1
    probes = [
        fit_probe("linear", values, column, cases, 2 if several else int(labels.max()) + 1, standardise=standardise)
        for column in labels.T
    ]
    predicted = [probe.predict(features) for probe in probes]
    return np.stack([scores[:, 1] for scores in predicted], axis=1) if several else predicted[0]


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


def evaluate(features: NDArray[Any], labels: Labels, splits: NDArray[Any], seed: int) -> dict[str, tuple[float, float]]:
    """AUROC and accuracy on ``test`` by each protocol."""
    sides = {name: (features[splits == name], labels[splits == name]) for name in ("train", "val", "test")}
    both = tuple(np.concatenate(parts) for parts in zip(sides["train"], sides["val"], strict=True))
    test, truth = sides["test"]
    scores = {
        "probe": logistic(sides["train"], test),
        "probe, train + val": logistic((both[0], both[1]), test),
        "field: linear layer": linear_layer(sides, seed),
    }
    if labels.shape[1] == 1:
        nearest = KNeighborsClassifier(11).fit(sides["train"][0], sides["train"][1][:, 0])
        scores["field: 11 nearest"] = nearest.predict_proba(test)
    return {name: (auroc(truth, value), accuracy(truth, value)) for name, value in scores.items()}


def pixels(path: Path, dims: int) -> tuple[float, float]:
    """AUROC and accuracy of as many principal components of the pixels as z_sem has numbers."""
    with np.load(path, allow_pickle=False) as arrays:
        images = {name: arrays[f"{name}_images"] / 255 for name in ("train", "test")}
        truth = {name: arrays[f"{name}_labels"].astype(np.int64).reshape(len(images[name]), -1) for name in images}
    fitted, test = pca_features(images["train"], images["test"], dims)
    scores = logistic((fitted, truth["train"]), test, standardise=False)
    return auroc(truth["test"], scores), accuracy(truth["test"], scores)


def markdown(name: str, size: int, results: Mapping[str, Any]) -> str:
    """The table: mean and range over the seeds, then the published figures."""
    lines = [f"{name}, {size} px, {results['images']} training images, seeds {results['seeds']}", ""]
    lines += ["| features | protocol | AUROC | accuracy |", "|---|---|---|---|"]
    for protocol in results["z_sem"][0]:
        values = 100 * np.array([seed[protocol] for seed in results["z_sem"]])
        cells = [f"{column.mean():.1f} ({column.min():.1f} to {column.max():.1f})" for column in values.T]
        lines.append(f"| z_sem | {protocol} | {cells[0]} | {cells[1]} |")
    lines.append("| PCA of the pixels | probe | {:.1f} | {:.1f} |".format(*(100 * x for x in results["pca"])))
    for source, (area, share) in PUBLISHED.get((name, size), {}).items():
        lines.append(f"| {source} | published | {area} | {share} |")
    return "\n".join([*lines, "", results["machine"], ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=260_000, help="training images of each seed")
    parser.add_argument("--overlays", type=Path, nargs="*", default=[])
    parser.add_argument("--overrides", nargs="*", default=[], help="KEY=VALUE, with values as JSON")
    args = parser.parse_args()

    start = time.perf_counter()
    try:
        cohort = medmnist_to_cohort(args.npz, args.out / "cohort")
    except DiffAEError as error:
        parser.error(str(error))
    with np.load(args.npz, allow_pickle=False) as arrays:
        shape = arrays["train_images"].shape[1:]
        labels = {name: arrays[f"{name}_labels"].astype(np.int64) for name in ("train", "val", "test")}
    if problem := unusable_labels(labels) or other_settings(args):
        parser.error(problem)
    colour = shape[-1] == 3
    shape = shape[:-1] if colour else shape
    scores = []
    for seed in args.seeds:
        table = read_embeddings(embedded(cohort, shape, colour, args, seed))
        names = [name for name in table.columns if name == "label" or name.startswith("label_")]
        features = z_matrix(table)
        scores.append(evaluate(features, table[names].to_numpy(np.int64), table["split"].to_numpy(), seed))
        print(f"seed {seed}: {scores[-1]}", flush=True)
    results = {
        "images": args.images,
        "seeds": args.seeds,
        "z_sem": scores,
        "pca": pixels(args.npz, features.shape[1]),
        "seconds": time.perf_counter() - start,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
    }
    write_json(args.out / "results.json", results)
    name = args.npz.stem.split("_")[0]
    text = markdown(name, shape[0], results)
    write_atomic(args.out / "results.md", lambda temporary: temporary.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
