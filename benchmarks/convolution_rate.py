"""The best rate of convolutions on a device, to which the rate of a training step is compared.

    python benchmarks/convolution_rate.py [--device cpu --seconds 2]

3 x 3 convolutions of images in channels last, without bias, forward and backward, of several widths and sizes; the
fastest counts. Prints TFLOP/s in float32 (without TF32) and bfloat16.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from monai_diffae.networks.kernels import exact_convolutions

SHAPES = {  # images, channels, side
    "cpu": [(2, 64, 32), (4, 128, 32), (4, 256, 16), (2, 256, 32)],
    "cuda": [(64, 128, 64), (64, 256, 32), (64, 512, 32), (32, 512, 64)],
}


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done its work; before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP per second of the fastest shape; ``seconds`` is the time for all of them."""
    shapes = SHAPES.get(device.type, SHAPES["cpu"])
    with exact_convolutions():
        return max(_rate(device, dtype, shape, seconds / len(shapes)) for shape in shapes)


def _rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    count, channels, side = shape
    options = {"device": device, "dtype": dtype}
    images = torch.randn(count, channels, side, side, **options).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, **options).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    weight.requires_grad_()
    gradient = torch.randn_like(images)

    def work() -> None:
        torch.autograd.grad(F.conv2d(images, weight, padding=1), (images, weight), gradient)

    work()
    synchronise(device)
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not times:
        for _ in range(5 if device.type == "cuda" else 1):
            work()
            times += 1
        synchronise(device)
    flop = 3 * 2 * count * side * side * channels * channels * 9  # backward is two convolutions
    return times * flop / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    for dtype in (torch.float32, torch.bfloat16):
        print(
            f"{str(dtype).removeprefix('torch.'):9s} {best_rate(args.device, dtype, args.seconds) / 1e12:.3f} TFLOP/s"
        )


if __name__ == "__main__":
    main()
