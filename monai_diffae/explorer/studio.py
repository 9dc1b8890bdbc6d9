"""Decodes the images of the page: cases are opened once, and what does not change is computed once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_diffae.apps.session import Session
from monai_diffae.apps.synthesis.combination import Axes, Combination
from monai_diffae.bundle.model_case import Detail, ModelCase
from monai_diffae.data.cases import Case
from monai_diffae.explorer.worker import Check
from monai_diffae.transforms import NativeSpace

T = TypeVar("T")
U = TypeVar("U")

_KEPT = 12  # cases that stay open, and plain reconstructions
_PREVIEW_S = 0.1
_LEAST_STEPS, _MOST_STEPS = 2, 8  # network evaluations of a preview


@dataclass(frozen=True)
class Decoded:
    """An image of a combination.

    Attributes:
        image: (1, C, *S) in the model's range.
        difference: (1, C, *S), from the plain reconstruction with as many steps.
        z_target: (1, D), the z_sem that was decoded.
        z_image: (1, D), the z_sem of the decoded image; None: the encoder cannot look at it.
        steps: network evaluations.
    """

    image: Tensor
    difference: Tensor
    z_target: Tensor
    z_image: Tensor | None
    steps: int


@dataclass
class Studio:
    """Decodes combinations of the cases of a session; for one thread.

    ``axes`` are the lines along which z_sem is moved; ``progress`` is what takes long now, or empty.
    """

    session: Session
    axes: Axes
    preview_steps: int = _LEAST_STEPS
    progress: str = ""
    _opened: OrderedDict[str, ModelCase] = field(default_factory=OrderedDict)
    _plain: OrderedDict[tuple[str, int], Tensor] = field(default_factory=OrderedDict)

    @property
    def steps(self) -> int:
        """Network evaluations of a full image."""
        return self.session.trained.inferer.decoding_evaluations

    def warm_up(self) -> float:
        """Decode noise, so that the first request is not slow, and choose the steps of a preview.

        A fast decoder has one number of steps, so its previews are full images. Returns the time of one network
        evaluation, in s.
        """
        trained = self.session.trained
        z_sem = torch.zeros(1, trained.z_channels, device=trained.device)
        x_T = torch.zeros(1, *trained.x_T_shape, device=trained.device)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._decode(z_sem, x_T, _LEAST_STEPS, _no_check)
            times.append((time.perf_counter() - start) / _LEAST_STEPS)
        seconds = min(times)  # the first one is slow, and others may be on a busy machine
        if trained.inferer.decoder == "fast":
            self.preview_steps = self.steps
            return seconds * _LEAST_STEPS / self.steps
        self.preview_steps = min(self.steps, max(_LEAST_STEPS, min(_MOST_STEPS, int(_PREVIEW_S / seconds))))
        return seconds

    def open(self, case: Case) -> ModelCase:
        """Open a case, or return it as it was opened before."""
        return _remembered(self._opened, case.id, lambda: self.session.open_case(case))

    def decode(
        self, combination: Combination, case: Case, others: Mapping[str, Case], steps: int, check: Check
    ) -> Decoded:
        """Decode a combination with ``steps`` network evaluations; ``check`` is called between them and may raise."""
        opened = {each.id: self.open(each) for each in (case, *others.values())}
        for name in dict.fromkeys([case.id, *combination.x_T_cases]):
            self._invert(opened[name], check)
        z_sem, x_T = combination.codes(case.id, opened, self.axes)
        check()
        own = opened[case.id]
        plain = self._plain_image(case.id, own, steps, check)
        is_plain = combination.has_own_x_T and torch.equal(z_sem, own.z_sem)
        image = plain if is_plain else self._decode(z_sem, x_T, steps, check)
        return Decoded(image, image - plain, z_sem, self._encoded(image), steps)

    def sample(self, z_sem: Tensor, x_T: Tensor, check: Check) -> Tensor:
        """Decode z_sem (N, D) with x_T (N, C, *S), one by one."""
        images = [self._decode(z, x, self.steps, check) for z, x in zip(z_sem.split(1), x_T.split(1), strict=True)]
        return torch.cat(images)

    def _invert(self, opened: ModelCase, check: Check) -> None:
        """Invert a case, and report the progress; a known inversion is not repeated."""
        phases = iter(("Inverting the scan", "Decoding it to check x_T"))
        phase = ""

        def tell(done: int, total: int, x: Tensor) -> None:
            nonlocal phase
            check()
            phase = next(phases, phase) if done == 1 else phase
            self.progress = f"{phase}, step {done} of {total}"

        try:
            opened.invert(callback=tell)
        finally:
            self.progress = ""

    def _plain_image(self, name: str, own: ModelCase, steps: int, check: Check) -> Tensor:
        return _remembered(self._plain, (name, steps), lambda: self._decode(own.z_sem, own.x_T, steps, check))

    def _decode(self, z_sem: Tensor, x_T: Tensor, steps: int, check: Check) -> Tensor:
        trained = self.session.trained
        inferer = trained.inferer if steps == self.steps else trained.inferer.replace(steps=steps, invert_steps=None)
        return inferer.decode(z_sem, x_T, trained.network, lambda done, total, x: check())

    def _encoded(self, image: Tensor) -> Tensor | None:
        if not self.session.encoder_sees_decoded_images:
            return None
        return self.session.trained.inferer.encode(image, self.session.trained.network)


def shown_arrays(opened: ModelCase, decoded: Decoded, detail: Detail) -> dict[str, Any]:
    """The pictures ``image`` and ``difference``, ``[C, *S]`` in the model's range, in the model's grid.

    Those of a 2D scan with detail ``own`` are in the scan's own grid, with the difference to the scan, and ``scan``.
    """
    if detail == "model" or opened.scan.array.ndim != 3:
        return {"image": decoded.image[0], "difference": decoded.difference[0]}
    (native,) = (space for space in opened.spaces.values() if isinstance(space, NativeSpace))
    edited = opened.add_difference(decoded.difference)
    scan, image = native.to_model_range(opened.scan.array), native.to_model_range(edited)
    return {"scan": scan, "image": image, "difference": image - scan}


def _remembered(memory: OrderedDict[T, U], key: T, make: Callable[[], U]) -> U:
    """The value of a key, made if it is not there; the one that was not used for longest is forgotten."""
    if key not in memory:
        memory[key] = make()
    memory.move_to_end(key)
    while len(memory) > _KEPT:
        memory.popitem(last=False)
    return memory[key]


def _no_check() -> None:
    pass
