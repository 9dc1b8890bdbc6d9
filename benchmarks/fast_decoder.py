"""A bundle's fast decoder beside its exact one, on held-out cases: reconstructions, images from noise, edits, time.

    python benchmarks/fast_decoder.py BUNDLE COHORT --target label [--columns image=file patient=key] [--limit 128]

The label must have two classes. An edit moves z_sem by two standard deviations of the training cases, along the
direction of a logistic regression. The judge is a logistic regression on the pixels' principal components, which knows
neither of the decoders. Prints one line per comparison. Times are comparable with one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from monai_diffae import load_bundle
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Choice, Reading, Run
from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.cases import spread_cases
from monai_diffae.metrics.image_quality import reconstruction_errors

DEVICE, TRAIN_CASES, MOVES, REPEATS = "cpu", 720, (-2.0, 2.0), 5


def quality(images: Tensor, others: Tensor) -> str:
    errors = reconstruction_errors(others, images, (-1.0, 1.0))
    return f"ssim {float(errors['ssim'].mean()):.5f} mse {float(errors['mse'].mean()):.2e}"


def timed(trained: TrainedBundle, z_sem: Tensor, x_T: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return trained.inferer.decode(z_sem, trained.network, x_T), time.perf_counter() - start


def cpu_ms(trained: TrainedBundle, z_sem: Tensor, x_T: Tensor) -> float:
    start = time.process_time()
    trained.inferer.decode(z_sem, trained.network, x_T)
    return 1000 * (time.process_time() - start)


def direction(z_sem: Tensor, labels: NDArray[np.int64]) -> Tensor:
    """One standard deviation of the training cases along the direction between two classes, (D,)."""
    std = z_sem.std(dim=0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=2000).fit((z_sem / std).numpy(), labels)
    towards = torch.tensor(fit.coef_[0], dtype=torch.float32) / std
    towards = towards / towards.norm()
    return towards * (z_sem @ towards).std()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--target", required=True)
    parser.add_argument("--columns", nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=128)
    arguments = parser.parse_args()
    columns = dict(pair.split("=", 1) for pair in arguments.columns)
    session = Session.open(
        arguments.bundle, arguments.cohort, reading=Reading(columns=columns), run=Run(device=DEVICE, batch_size=32)
    )
    exact, fast = session.trained, load_bundle(arguments.bundle, DEVICE, {"inferer#decoder": "fast"})
    steps = fast.inferer.decoding_evaluations
    few = exact.inferer.replace(steps=steps, invert_steps=None)
    train = spread_cases(session.choose(Choice(split="train")), TRAIN_CASES)
    held_out = spread_cases(session.choose(Choice(split="test")), arguments.limit)
    with TemporaryDirectory() as folder:
        read = session.read([*train, *held_out], Path(folder))
    count = sum(case in train for case in read.cases)
    images = torch.stack([read.dataset[i]["image"] for i in range(len(read.cases))])
    z_sem = torch.from_numpy(session.encode(read))
    labels = np.unique([str(case.labels[arguments.target]) for case in read.cases], return_inverse=True)[1]
    pixels = images.flatten(1).numpy()
    components = PCA(64, random_state=0).fit(pixels[:count])
    judge = LogisticRegression(max_iter=3000).fit(components.transform(pixels[:count]), labels[:count])

    def judged(edited: Tensor) -> NDArray[np.float64]:
        return judge.predict_proba(components.transform(edited.flatten(1).numpy()))[:, 1]

    scans, own = images[count:], z_sem[count:]
    x_T = exact.inferer.invert(scans, exact.network, own)
    (by_exact, exact_s), (by_fast, fast_s) = (timed(trained, own, x_T) for trained in (exact, fast))
    print(f"{len(scans)} held-out images; evaluations: exact {exact.inferer.steps}, fast {steps}")
    print(f"decoding: exact {exact_s:.1f} s, fast {fast_s:.1f} s")
    one = [[cpu_ms(trained, own[:1], x_T[:1]) for trained in (exact, fast)] for _ in range(REPEATS)]
    exact_ms, fast_ms = np.median(one, axis=0)
    print(f"one image: exact {exact_ms:.0f} ms of CPU time, fast {fast_ms:.0f} ms, ratio {exact_ms / fast_ms:.1f}")
    print(f"both codes: exact {quality(by_exact, scans)}; fast {quality(by_fast, scans)}")
    print(f"both codes, exact decoder with {steps} steps: {quality(few.decode(own, exact.network, x_T), scans)}")
    noise = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(0))
    drawn, drawn_fast = (trained.inferer.decode(own, trained.network, noise) for trained in (exact, fast))
    print(f"z_sem and noise: exact {quality(drawn, scans)}; fast {quality(drawn_fast, scans)}")
    print(f"z_sem and noise, fast beside exact: {quality(drawn_fast, drawn)}")
    for move in MOVES:
        moved = own + move * direction(z_sem[:count], labels[:count])
        edited = [trained.inferer.decode(moved, trained.network, x_T) for trained in (exact, fast)]
        changes = [exact.inferer.encode(each, exact.network) - own for each in edited]
        cosines = torch.nn.functional.cosine_similarity(*changes, dim=1)
        scores = [judged(each) for each in edited]
        print(
            f"edit {move:+g} SD: cosine of the changes of z_sem {cosines.mean():.3f} (least {cosines.min():.3f}); "
            f"judge exact {scores[0].mean():.3f}, fast {scores[1].mean():.3f}, mean difference of a case "
            f"{np.abs(scores[0] - scores[1]).mean():.3f}; fast beside exact {quality(edited[1], edited[0])}"
        )


if __name__ == "__main__":
    main()
