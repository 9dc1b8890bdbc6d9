"""Decodes the images of the page in one thread: cases are opened once, and newer requests replace older ones."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_diffae.apps.session import Session
from monai_diffae.apps.synthesis.decode import Axes, Combination
from monai_diffae.bundle.model import ModelCase
from monai_diffae.data.cases import Case
from monai_diffae.policies import Detail
from monai_diffae.serving.answers import ConflictError

T = TypeVar("T")
U = TypeVar("U")
Check = Callable[[], None]
"""Raises :class:`SupersededError` if a newer job has replaced the one that runs."""

_KEPT = 12  # cases that stay open, and plain reconstructions
_PREVIEW_S = 0.1
_LEAST_STEPS, _MOST_STEPS = 2, 8  # network evaluations of a preview


@dataclass(frozen=True)
class Decoded:
    """An image of a combination."""

    image: Tensor  # (1, C, *S) in the model's range
    difference: Tensor  # from the plain reconstruction with as many steps
    codes: dict[str, Tensor]  # z_sem (1, D): case, target (what was decoded), and image, if the encoder can look at it


@dataclass
class Studio:
    """Decodes combinations of the cases of a session; for one thread."""

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
        """Decode noise, so that the first request is not slow, and choose the steps of a preview."""
        trained = self.session.trained
        z_sem = torch.zeros(1, trained.z_channels, device=trained.device)
        x_T = torch.zeros(1, *trained.x_T_shape, device=trained.device)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._decode(z_sem, x_T, _LEAST_STEPS, lambda: None)
            times.append((time.perf_counter() - start) / _LEAST_STEPS)
        seconds = min(times)  # the first one is slow, and others may be on a busy machine
        if trained.inferer.settings.decoder == "fast":
            self.preview_steps = self.steps
            return seconds * _LEAST_STEPS / self.steps
        self.preview_steps = min(self.steps, max(_LEAST_STEPS, min(_MOST_STEPS, int(_PREVIEW_S / seconds))))
        return seconds

    def open(self, case: Case) -> ModelCase:
        """Open a case, or return it as it was opened before."""
        return _remembered(self._opened, case.id, lambda: self.session.trained.open(case))

    def decode(
        self, combination: Combination, case: Case, others: Mapping[str, Case], steps: int, check: Check
    ) -> Decoded:
        """Decode a combination with ``steps`` network evaluations; ``check`` is called between them and may raise."""
        opened = {each.id: self.open(each) for each in (case, *others.values())}
        for name in dict.fromkeys([case.id, *combination.x_T_cases]):
            self._invert(opened[name], check)
        z_sem, x_T = combination.codes(case.id, opened, self.axes, self.session.trained)
        check()
        own = opened[case.id]
        plain = _remembered(self._plain, (case.id, steps), lambda: self._decode(own.z_sem, own.x_T, steps, check))
        is_plain = combination.has_own_x_T and torch.equal(z_sem, own.z_sem)
        image = plain if is_plain else self._decode(z_sem, x_T, steps, check)
        codes = {"case": own.z_sem, "target": z_sem}
        if self.session.encoder_sees_decoded_images:
            codes["image"] = self.session.trained.inferer.encode(image, self.session.trained.network)
        return Decoded(image, image - plain, codes)

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

    def _decode(self, z_sem: Tensor, x_T: Tensor, steps: int, check: Check) -> Tensor:
        trained = self.session.trained
        inferer = trained.inferer if steps == self.steps else trained.inferer.replace(steps=steps, invert_steps=None)
        return inferer.decode(z_sem, trained.network, x_T, lambda done, total, x: check())


class SupersededError(ConflictError):
    """A newer job of the same lane replaced this one."""


class ModelWorker:
    """Runs one job after the other in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._newest: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._is_closed = False

    def submit(self, lane: str | None, run: Callable[[Check], T]) -> Future[T]:
        """Queue a job, which may call its argument between steps; it replaces older jobs of its lane, if it has one."""
        with self._lock:
            self._count += 1
            number = self._count
            if lane is not None:
                self._newest[lane] = number

        def check() -> None:
            if self._is_closed or (lane is not None and self._newest[lane] != number):
                raise SupersededError(
                    "request: a newer one of this window replaced it, or the server ends; send it again"
                )

        def start() -> T:
            check()
            return run(check)

        return self._thread.submit(start)

    def close(self) -> None:
        """End the thread after the job that runs; waiting jobs are superseded."""
        self._is_closed = True
        self._thread.shutdown()


def shown_arrays(opened: ModelCase, decoded: Decoded, detail: Detail) -> dict[str, Any]:
    """The pictures ``image`` and ``difference``, ``[C, *S]`` in the model's range, in the model's grid."""
    if detail == "model" or opened.scan.array.ndim != 3:
        return {"image": decoded.image[0], "difference": decoded.difference[0]}
    native, edited = opened.native, opened.add_difference(decoded.difference)
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
