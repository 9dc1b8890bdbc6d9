"""Checkpoints of a training, and requests to stop it. No full disk or kill destroys the last good checkpoint."""

import logging
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.engines import Workflow
from torch import nn

from monai_diffae.bundle.folders import WriteLock, write_model_card
from monai_diffae.bundle.layout import ANOMALY, CHECKPOINT, METRICS, MODEL, MODELS, MONAI_MODEL, PROVENANCE
from monai_diffae.bundle.model_file import FIRST_STAGE, read_model, refuse_other_weights, write_for_monai, write_model
from monai_diffae.bundle.training import TrainingDescription
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.data.tensor_files import read_torch_file, save_tensors
from monai_diffae.engines.trainer import TrainingEvents, diverged
from monai_diffae.errors import ConfigError, DiffAEError, counted
from monai_diffae.handlers.validation import Validation, is_of_probes
from monai_diffae.handlers.weights import EMA, WeightMonitor, lay_out_like_parameters, set_rates, set_schedule_back

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """Ends a training whose program asked it to stop, after its checkpoint was saved."""


class StopRequests:
    """Remembers that SIGTERM, Ctrl-C (in the main thread) or an event came, until a checkpoint can be saved."""

    def __init__(self) -> None:
        self.event: threading.Event | None = None  # set by the program that runs the training, from any thread
        self._signal: int | None = None
        self._handlers_before: dict[int, Any] = {}

    @property
    def are_pending(self) -> bool:
        """Whether the training should stop."""
        return self._signal is not None or (self.event is not None and self.event.is_set())

    def fulfil(self) -> None:
        """End the training if it should stop."""
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        if self.are_pending:
            raise TrainingStopped

    def listen(self) -> None:
        """Note signals from now on; does nothing outside the main thread, which alone receives them."""
        if threading.current_thread() is not threading.main_thread():
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers_before[number] = signal.signal(number, note)

    def stop_listening(self) -> None:
        """Leave signals to the handlers from before."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before.clear()


@dataclass(eq=False, repr=False)
class CheckpointKeeper:
    """Ignite handler: save and resume a training: weights, EMA, optimiser, learning-rate schedule, scaler and step.

    ``models/checkpoint.pt`` has everything, ``models/model.safetensors`` the averaged weights and their description,
    ``models/model.pt`` the same weights for MONAI's tools, and ``models/metrics.json`` the metrics of the last
    validation. Each is replaced in one step (MONAI's and Ignite's savers delete the old file first). They are saved at
    the end of each epoch after its validation, every ``interval_minutes`` within an epoch, and when the training is
    asked to stop, but not between accumulation steps. Weights that are not finite end the training instead.

    A folder with weights but no checkpoint is fine-tuned. A resumed run uses the checkpoint's weights, averages,
    moments and step, and its own ``max_epochs``, learning rate, weight decay, decay of the average and precision. In
    federated training, a server replaces the weights before each run of the same trainer: the first run resumes
    everything but the weights, from the first step of its round, and later ones continue from what is in memory.
    """

    directory: Path  #: the ``models`` folder
    network: nn.Module  #: the network that is trained (not its DDP wrapper)
    ema: EMA  #: the average of its weights
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler  #: stepped once per iteration
    validation: Validation  #: the handler with the state of early stopping
    #: model and data, which are written into the model's file; a resumed run must have the same
    description: TrainingDescription
    prefix: str = ""  #: of the files' names, such as ``latent_``, so that several models can share the folder
    interval_minutes: float = 5.0  #: the longest time between two saves
    overwrite: bool = False  #: start from the first step, although there are weights or a checkpoint
    #: False on ranks other than 0, which read but do not write
    enabled: bool = field(default_factory=lambda: idist.get_rank() == 0)
    fine_tune: bool = False  #: begin with the weights in the folder, although there is a checkpoint
    stop_requests: StopRequests = field(default_factory=StopRequests, init=False)
    _has_saved: bool = field(default=False, init=False)
    _has_run: bool = field(default=False, init=False)
    _started_from: str | None = field(default=None, init=False)  # checksum of the weights
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.directory = Path(self.directory)
        self.checkpoint, self.model = (self.directory / f"{self.prefix}{name}" for name in (CHECKPOINT, MODEL))
        self.parts: dict[str, Any] = {
            name: getattr(self, name) for name in ("network", "ema", "optimizer", "lr_scheduler", "validation")
        }
        self._weights = WeightMonitor(self.network)
        self._lock = WriteLock(self.directory)

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer: resume before it runs, and save while it runs."""
        self._weights.remember()
        self._announce_position(engine)
        engine.add_event_handler(TrainingEvents.BEFORE_RUN, self._start)
        engine.add_event_handler(Events.STARTED, self.stop_requests.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._announce_and_save)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop_if_asked)
        engine.add_event_handler(Events.COMPLETED | Events.INTERRUPT, lambda: self._end(has_run=True))
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda _: self._end(has_run=False))

    def save(self, engine: Workflow) -> None:
        """Write the checkpoint, the weights and the metrics now, or raise DivergenceError on every rank."""
        state = engine.state
        if not (_is_finite(self.network) and _is_finite(self.ema.network)):
            raise diverged(f"the weights are not finite at step {state.iteration}")
        self._saved_at = time.monotonic()
        if not self.enabled:
            return
        checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
        checkpoint["trainer"] = {"iteration": state.iteration, "epoch_length": state.epoch_length}
        checkpoint["unreported"] = getattr(state, "unreported", None)
        checkpoint |= {**self.description.state_dict(), "started_from": self._started_from}
        first = not self._has_saved or not self.model.is_file()  # somebody may have deleted the folder
        # The checkpoint comes first: a training that is killed before the model is written writes it when it resumes.
        write_atomic(self.checkpoint, partial(save_tensors, checkpoint))
        self._write_model()
        if not self.prefix:
            for name in (ANOMALY, PROVENANCE) if first else ():  # of an earlier model
                (self.directory / name).unlink(missing_ok=True)
            write_model_card(self.directory.parent, self._description())
        self._has_saved = True
        self._saved_at = time.monotonic()  # a save on a slow disk does not bring the next one closer

    def _write_model(self) -> None:
        """Write the averaged weights with their description, and copies for MONAI's tools and for people."""
        weights, stage = self.ema.network.state_dict(), self.description.first_stage
        tensors = {f"{FIRST_STAGE}{name}": tensor for name, tensor in (stage.state_dict() if stage else {}).items()}
        if not self.prefix:
            write_for_monai(self.directory / MONAI_MODEL, weights)
        write_json(self.directory / f"{self.prefix}{METRICS}", self.validation.metrics)
        # The model comes last: if it has the weights of the checkpoint, a resumed training need not write the others.
        write_model(self.model, self.description.kind, {**weights, **tensors}, self._description())

    def _description(self) -> dict[str, Any]:
        # figures of probes have the names of the table's columns, which are no part of a model
        metrics = self.validation.metrics
        return self.description.described({name: v for name, v in metrics.items() if not is_of_probes(name)})

    def _announce_position(self, engine: Workflow) -> None:
        """Set the round's first step before the run: MONAI's federated client (1.6.1) counts epochs and steps by it."""
        # Otherwise, a restarted site would report the steps of all its rounds as those of one round, and would get too
        # much weight in a server's average.
        with suppress(DiffAEError):  # the run reports it
            if self.checkpoint.is_file() and not (self.overwrite or self.fine_tune):
                saved = read_checkpoint(self.checkpoint, {"trainer"})["trainer"]
                length, per_round = saved["epoch_length"], engine.state.max_epochs
                engine.state.epoch = saved["iteration"] // length // per_round * per_round
                engine.state.iteration = engine.state.epoch * length

    def _start(self, engine: Workflow) -> None:
        self.parts["scaler"] = engine.grad_scaler  # type: ignore[attr-defined]
        if (predicted := getattr(engine, "predicted", None)) is not None:
            self.parts["predicted"] = predicted
        self.stop_requests.fulfil()
        if self.enabled:
            self._lock.acquire()
        try:
            if not self._has_run:
                self._resume_or_begin(engine)
            elif engine.state.iteration >= engine.state.max_epochs * engine.state.epoch_length:
                self._complete(engine, engine.state.iteration, "max_epochs")
        except BaseException:
            self._lock.release()
            raise

    def _resume_or_begin(self, engine: Workflow) -> None:
        is_given = self._weights.were_replaced()
        if self.checkpoint.is_file() and not (self.overwrite or self.fine_tune):
            self._resume(engine, self.checkpoint, is_given)
        elif (model := self._model_to_fine_tune()).is_file() and not self.overwrite and not is_given:
            self._fine_tune(model)
        elif is_given:
            self.ema.network.load_state_dict(self.network.state_dict())
        elif not self.overwrite and not self.prefix and (self.fine_tune or (self.directory / MONAI_MODEL).is_file()):
            raise ConfigError(
                f"{self.model.name}: is missing, so there are no weights to begin with; copy the whole bundle again, "
                "or set overwrite to begin with random ones"
            )
        if self.enabled:
            self.description.write_configs(self.directory.parent, is_complete=getattr(engine, "is_complete", False))

    def _model_to_fine_tune(self) -> Path:
        """The model in the folder, or with ``fine_tune`` in a new one that of the bundle."""
        root = Path(str(self.description.run_config.get("bundle_root", ".")))
        return root / MODELS / self.model.name if self.fine_tune and not self.model.is_file() else self.model

    def _fine_tune(self, path: Path) -> None:
        """Begin with the weights of a model without a checkpoint: of a bundle that was shipped, copied or sent."""
        if self.prefix:
            raise ConfigError(
                f"{self.model.name}: there are trained weights, but no {self.checkpoint.name} to resume from; choose "
                "another output_dir, or set overwrite to replace them"
            )
        refuse_other_weights(path.parent.parent)
        model = read_model(path, self.description.kind)
        if keys := self.description.differing(model.description, only_weights=True):
            raise ConfigError(
                f"{self.model.name}: was trained with other values of {', '.join(keys)}; use its values, choose "
                "another output_dir, or set overwrite to train another model"
            )
        for network in (self.network, self.ema.network):
            model.load_into(network)
        self._started_from = model.sha256
        replaces = (
            " Its first save replaces these weights; to keep them, stop now, and train a copy of the bundle: "
            f"monai-diffae init new_model --bundle {self.directory.resolve().parent.name}"
        )
        logger.warning(
            "fine-tuning: a new training begins with the weights of %s; it resumes none from %s.%s",
            path.name,
            self.checkpoint.name,
            replaces if path == self.model else "",
        )

    def _resume(self, engine: Workflow, path: Path, is_given: bool) -> None:
        checkpoint = read_checkpoint(path, {*self.parts, "trainer", "fingerprint", "model"})
        self.description.check_resumes(checkpoint, path.name)
        self._started_from = checkpoint.get("started_from")
        state, saved = engine.state, checkpoint["trainer"]
        if saved["epoch_length"] != state.epoch_length:
            raise ConfigError(
                f"{path.name}: was trained with {counted(saved['epoch_length'], 'step')} per epoch, but this run has "
                f"{state.epoch_length}; use the same data and batch_size, or another output_dir"
            )
        rates = [(group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        for name, part in self.parts.items():
            if not (is_given and name == "network"):
                part.load_state_dict(checkpoint[name])
        set_rates(self.optimizer, self.lr_scheduler, rates)
        iteration = saved["iteration"]
        if is_given:
            iteration = state.iteration
            set_schedule_back(self.lr_scheduler, saved["iteration"], iteration)
        lay_out_like_parameters(self.optimizer)
        if self.enabled and not self._has_same_weights():
            self._write_model()
        has_all_steps = iteration >= state.max_epochs * state.epoch_length
        limit = "max_epochs" if has_all_steps else self.validation.stopping_key
        if limit is not None:
            self._complete(engine, iteration, limit)
            return
        state.iteration = iteration
        state.epoch = iteration // state.epoch_length
        state.unreported = checkpoint["unreported"]
        weights = ", with the weights that a program has set" if is_given else ""
        logger.info("resuming from step %d of %d%s", iteration, state.max_epochs * state.epoch_length, weights)

    def _has_same_weights(self) -> bool:
        """Whether the model's file has the averaged weights of the checkpoint, which is written before it."""
        if not self.model.is_file():
            return False
        with suppress(DiffAEError):  # a damaged file is written again
            tensors, weights = read_model(self.model).tensors, self.ema.network.state_dict()
            return weights.keys() <= tensors.keys() and all(weights[n].cpu().equal(tensors[n]) for n in weights)
        return False

    def _complete(self, engine: Workflow, iteration: int, limit: str) -> None:
        engine.is_complete = True  # type: ignore[attr-defined]
        self._weights.remember()
        self._lock.release()
        logger.info(
            "training is complete after %s; nothing to do. Increase %s to train further, choose another "
            "output_dir, or set overwrite to start again",
            counted(iteration, "step"),
            limit,
        )

    def _after_iteration(self, engine: Workflow) -> None:
        # A checkpoint of an epoch's last step means that its validation is complete.
        is_last_of_epoch = engine.state.iteration % engine.state.epoch_length == 0
        if is_last_of_epoch or engine.is_between_updates:  # type: ignore[attr-defined]
            return
        is_due = time.monotonic() - self._saved_at > self.interval_minutes * 60
        if is_due or self.stop_requests.are_pending or engine.should_terminate:
            engine.check_last_step()  # type: ignore[attr-defined]
            self._announce_and_save(engine)
        self._stop_if_asked(engine)

    def _announce_and_save(self, engine: Workflow) -> None:
        engine.fire_event(TrainingEvents.SAVING)  # other handlers first write what they have of the steps so far
        self.save(engine)

    def _stop_if_asked(self, engine: Workflow) -> None:
        if self.stop_requests.are_pending:
            logger.info("stopped at step %d; the same command resumes from there", engine.state.iteration)
            self.stop_requests.fulfil()

    def _end(self, has_run: bool) -> None:
        self._has_run = has_run
        self._weights.remember()
        self.stop_requests.stop_listening()
        self._lock.release()


def _is_finite(network: nn.Module) -> bool:
    # parameters alone: a buffer may hold infinities (a mask) or NaN (a value that is not known yet)
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def read_checkpoint(path: Path, parts: set[str]) -> dict[str, Any]:
    """Read a checkpoint that has these parts."""
    checkpoint: dict[str, Any] = read_torch_file(
        path, "cannot be read as a checkpoint; copy it again, or set overwrite"
    )
    if missing := parts - (checkpoint.keys() if isinstance(checkpoint, dict) else set()):
        raise ConfigError(
            f"{path.name}: is not a checkpoint of this package (no {min(missing)!r}); set overwrite to start again"
        )
    return checkpoint


def check_resumes(description: TrainingDescription, path: str | Path, overwrite: bool = False) -> None:
    """Check that a training can resume from a checkpoint, if there is one, before it prepares its data for long."""
    path = Path(path)
    if path.is_file() and not overwrite:
        description.check_resumes(read_checkpoint(path, {"fingerprint", "model"}), path.name)
