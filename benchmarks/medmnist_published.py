"""Published AUROC and accuracy of MedMNIST sets, on their official test images, in percent."""

from __future__ import annotations

# MedMNIST v2: Yang et al., Scientific Data 2023, tables 3 and 4. The others: Doerrich et al., Scientific Reports 2025,
# read from the plots of their repository.
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
# Raptor (ICML 2025, arXiv 2507.08254), table 3, probably at 64 px. MAE is self-supervised on the set itself and then
# fine-tuned; those after it were pretrained on other images.
SETS_3D = ("organmnist3d", "nodulemnist3d", "fracturemnist3d", "adrenalmnist3d", "vesselmnist3d", "synapsemnist3d")
AUROC_3D = {
    "ResNet-50 3D, end to end": (99.5, 88.6, 75.9, 86.9, 93.2, 88.9),
    "MAE on the set itself": (98.2, 82.0, 60.0, 71.0, 60.7, 56.0),
    "SuPreM": (99.9, 89.1, 64.5, 90.6, 96.4, 90.7),
    "VoCo": (99.2, 79.7, 69.9, 91.3, 79.9, 84.4),
    "Merlin": (97.6, 80.9, 69.1, 83.6, 87.0, 83.3),
    "Raptor-B": (99.8, 90.4, 64.7, 93.0, 94.5, 92.2),
    "Raptor": (99.9, 92.9, 67.7, 92.6, 96.6, 94.3),
}
ACCURACY_3D = {
    "ResNet-50 3D, end to end": (91.8, 86.0, 48.7, 83.5, 91.5, 85.3),
    "MAE on the set itself": (80.0, 82.8, 48.1, 75.2, 88.0, 73.7),
    "SuPreM": (96.8, 84.8, 49.2, 86.9, 92.9, 87.9),
    "VoCo": (87.0, 83.6, 53.5, 87.2, 88.0, 83.0),
    "Merlin": (76.6, 86.1, 54.9, 80.1, 87.9, 82.5),
}


def published(name: str, size: int) -> dict[str, tuple[float, float]]:
    """AUROC and accuracy of each method; NaN: not published."""
    figures = dict(PUBLISHED.get((name, size), {}))
    if name in SETS_3D:
        k, unknown = SETS_3D.index(name), (float("nan"),) * len(SETS_3D)
        figures |= {method: (areas[k], ACCURACY_3D.get(method, unknown)[k]) for method, areas in AUROC_3D.items()}
    return figures
