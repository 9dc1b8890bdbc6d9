"""Checkpoints of a training. A full disk or a killed process never destroys the last good one."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Workflow
from torch import nn

from monai_diffae.bundle.described_model import describe_model
from monai_diffae.bundle.layout import CHECKPOINT, CONFIG, MODEL
from monai_diffae.data.atomic import write_atomic
from monai_diffae.engines.trainer import TrainingEvents, diverged
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.handlers.ema import EMA
from monai_diffae.handlers.validation import Validation

logger = logging.getLogger(__name__)


class CheckpointKeeper:
    """Ignite handler: save and resume a training: weights, EMA, optimiser, learning-rate schedule, scaler and step.

    ``models/checkpoint.pt`` has everything, ``models/model.pt`` the flat EMA state dict that MONAI bundles load. Both
    are written to temporary files, flushed to the disk and then renamed (MONAI's and Ignite's savers delete the old
    file first). They are saved at the end of each epoch, every ``interval_minutes`` within an epoch, and when the
    process is asked to stop (SIGTERM, Ctrl-C), which ends it with exit code 143 or 130. Nothing is saved between
    accumulation steps, and the last step of an epoch only after its validation. Weights that are not finite are never
    saved: training ends with an error instead, and the files of the last save do not change.

    A resumed run uses the checkpoint's weights, averages, moments and step. The following come from its own
    configuration: ``max_epochs``, learning rate and schedule, weight decay, decay of the average, precision.

    Args:
        directory: the ``models`` folder.
        network: the network that is trained (not its DDP wrapper).
        ema: the average of its weights.
        optimizer: its optimiser.
        lr_scheduler: the learning-rate schedule, stepped once per iteration.
        validation: the handler with the state of early stopping.
        model_config: the configuration that describes the model, written beside the weights; a resumed run must have
            the same.
        fingerprint: fingerprint of the data and their split; a resumed run must have the same. It is written into
            ``_meta_`` of the model's configuration, which no bundle run uses.
        prefix: prefix of the files' names, so that several models can share the folder: with ``latent_`` they are
            ``latent_checkpoint.pt``, ``latent_model.pt`` and ``latent_config.json``.
        interval_minutes: the longest time between two saves.
        overwrite: start from the first step although there is a checkpoint.
        enabled: False on ranks other than 0, which read but do not write.
    """

    def __init__(
        self,
        directory: str | Path,
        network: nn.Module,
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        validation: Validation,
        model_config: dict[str, Any],
        fingerprint: str = "",
        prefix: str = "",
        interval_minutes: float = 5.0,
        overwrite: bool = False,
        enabled: bool = True,
    ) -> None:
        self.checkpoint, self.model, self.config = (Path(directory) / (prefix + n) for n in (CHECKPOINT, MODEL, CONFIG))
        self.parts: dict[str, Any] = {
            "network": network,
            "ema": ema,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "validation": validation,
        }
        self.ema = ema
        self.model_config = model_config
        self.fingerprint = fingerprint
        self.interval_s = interval_minutes * 60
        self.overwrite = overwrite
        self.enabled = enabled
        self._has_saved = False
        self._saved_at = time.monotonic()
        self._stop_signal: int | None = None
        self._handlers_before: dict[int, Any] = {}

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer: resume before it runs, and save while it runs."""
        engine.add_event_handler(TrainingEvents.BEFORE_RUN, self._start)
        engine.add_event_handler(Events.STARTED, self._listen_for_signals)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.COMPLETED, self._stop_listening)
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self._stop_listening())

    def save(self, engine: Workflow) -> None:
        """Write both files now.

        Raises:
            ConfigError: the weights or their averages are not finite; raised on every rank.
            MachineError: the disk is full, or the folder cannot be written.
        """
        state = engine.state
        if not (_is_finite(self.parts["network"]) and _is_finite(self.ema.network)):
            raise diverged(f"the weights are not finite at step {state.iteration}")
        self._saved_at = time.monotonic()
        if not self.enabled:
            return
        checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint["trainer"] = {"iteration": state.iteration, "epoch_length": state.epoch_length}
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["model_config"] = json.dumps(self.model_config, sort_keys=True)
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not self._has_saved:  # not before the first weights, to which it belongs
            meta = {"_meta_": {"data_fingerprint": self.fingerprint}} if self.fingerprint else {}
            text = json.dumps({**meta, **self.model_config}, indent=2) + "\n"
            write_atomic(self.config, lambda target: target.write_text(text))
            if self.config.name == CONFIG:
                describe_model(self.config.parents[1])
            self._has_saved = True
        contents = {self.model: self.ema.network.state_dict(), self.checkpoint: checkpoint}
        # The checkpoint is written last: a training that is killed between the two repeats its last steps. The first
        # time it is written first, as weights without a checkpoint would count as those of a finished training.
        is_first = not self.checkpoint.is_file()
        for path in (self.checkpoint, self.model) if is_first else (self.model, self.checkpoint):
            _save(contents[path], path)
        self._saved_at = time.monotonic()

    def _start(self, engine: Workflow) -> None:
        self.parts["scaler"] = engine.grad_scaler  # type: ignore[attr-defined]
        if self.checkpoint.is_file() and not self.overwrite:
            self._resume(engine, self.checkpoint)
        elif self.model.is_file() and not self.overwrite:
            raise ConfigError(
                f"{self.model.name}: there are trained weights, but no {self.checkpoint.name} to resume from; choose "
                "another output_dir, or set overwrite to replace them"
            )

    def _resume(self, engine: Workflow, path: Path) -> None:
        checkpoint = _read(path, {*self.parts, "trainer", "fingerprint", "model_config"})
        _refuse_other_model(json.loads(checkpoint["model_config"]), self.model_config, path)
        if checkpoint["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{path.name}: was trained on other data, or on another split; use the same dataset_dir or another "
                "output_dir, or set overwrite to start again"
            )
        state, saved = engine.state, checkpoint["trainer"]
        if saved["epoch_length"] != state.epoch_length:
            raise ConfigError(
                f"{path.name}: was trained with {saved['epoch_length']} steps per epoch, but this run has "
                f"{state.epoch_length}; use the same data and batch_size, or another output_dir"
            )
        rates = [(group["initial_lr"], group["weight_decay"]) for group in self.parts["optimizer"].param_groups]
        for name, part in self.parts.items():
            part.load_state_dict(checkpoint[name])
        self._set_rates(rates)
        _lay_out_like_parameters(self.parts["optimizer"])
        if self.enabled and not self.model.is_file():
            _save(self.ema.network.state_dict(), self.model)
        is_stopped_early = self.parts["validation"].is_patience_exhausted
        if is_stopped_early or saved["iteration"] >= state.max_epochs * state.epoch_length:
            engine.is_complete = True  # type: ignore[attr-defined]
            logger.info(
                "training is complete after %d steps; nothing to do. Increase %s to train further, choose another "
                "output_dir, or set overwrite to start again",
                saved["iteration"],
                "early_stop_patience" if is_stopped_early else "max_epochs",
            )
            return
        state.iteration = saved["iteration"]
        state.epoch = saved["iteration"] // state.epoch_length
        logger.info("resuming from step %d of %d", state.iteration, state.max_epochs * state.epoch_length)

    def _set_rates(self, rates: list[tuple[float, float]]) -> None:
        """Use this run's learning rates and weight decays, at the schedule's current position."""
        self.parts["lr_scheduler"].base_lrs = [rate for rate, _ in rates]
        for group, (rate, decay) in zip(self.parts["optimizer"].param_groups, rates, strict=True):
            before = group["initial_lr"]
            if rate != before:
                group["lr"] = group["lr"] * rate / before if before else rate
            group["initial_lr"], group["weight_decay"] = rate, decay

    def _after_iteration(self, engine: Workflow) -> None:
        # A checkpoint of an epoch's last step means that its validation is complete.
        is_last_of_epoch = engine.state.iteration % engine.state.epoch_length == 0
        if is_last_of_epoch or engine.is_between_updates:  # type: ignore[attr-defined]
            return
        if self._stop_signal is not None or time.monotonic() - self._saved_at > self.interval_s:
            engine.check_gradients()  # type: ignore[attr-defined]
            self.save(engine)
        self._stop_if_asked(engine)

    def _after_epoch(self, engine: Workflow) -> None:
        self.save(engine)
        self._stop_if_asked(engine)

    def _stop_if_asked(self, engine: Workflow) -> None:
        if self._stop_signal is not None:
            logger.info("stopped at step %d; the same command resumes from there", engine.state.iteration)
            raise SystemExit(128 + self._stop_signal)

    def _listen_for_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def remember(number: int, frame: FrameType | None) -> None:
            self._stop_signal = number
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers_before[number] = signal.signal(number, remember)

    def _stop_listening(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before.clear()


def _is_finite(network: nn.Module) -> bool:
    # parameters alone: a buffer may hold infinities (a mask) or NaN (a value that is not known yet)
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def _save(content: dict[str, Any], path: Path) -> None:
    """Write a file of torch.

    Raises:
        MachineError: the disk is full, or the folder cannot be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:  # torch raises its own error instead of the disk's OSError
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    write_atomic(path, write)


def _read(path: Path, parts: set[str]) -> dict[str, Any]:
    """Read a checkpoint that has these parts.

    Raises:
        ScanError: the file cannot be read.
        ConfigError: a part is missing.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = parts - checkpoint.keys()
    except Exception as error:  # torch raises the errors of pickle and zip, and its own
        raise ScanError(f"{path.name}: cannot be read as a checkpoint; copy it again, or set overwrite") from error
    if missing:
        raise ConfigError(
            f"{path.name}: is not a checkpoint of this package (no {min(missing)!r}); set overwrite to start again"
        )
    return checkpoint


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory format of their weights, as fused optimisers update both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _refuse_other_model(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint is that of the current model.

    Raises:
        ConfigError: keys of the configuration differ.
    """
    keys = sorted(key for key in (saved.keys() | current.keys()) - {"imports"} if saved.get(key) != current.get(key))
    if keys:
        raise ConfigError(
            f"{path.name}: belongs to another model with other values of {', '.join(keys)}; use the same configuration "
            "or another output_dir, or set overwrite to start again"
        )
