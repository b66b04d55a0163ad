"""The training loop. It does not depend on MLflow: a recorder receives the metrics.

The libraries of the evaluation (scikit-learn, matplotlib, scipy) take seconds to import. A thread imports
them during the first epoch, and the loop waits for it before it uses them, so that no two threads import the
same module.
"""

import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.console import percent, training_bar
from cifar_mlflow.data import Selection, Split
from cifar_mlflow.data.loader import TrainLoader
from cifar_mlflow.errors import TrainingDivergedError, UsageError
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.models.classifier import ImageClassifier
from cifar_mlflow.names import counted
from cifar_mlflow.training.checkpoint import CheckpointFile
from cifar_mlflow.training.device import Hardware, keep_freed_memory
from cifar_mlflow.training.distributed import World
from cifar_mlflow.training.progress import epoch_line, work_until
from cifar_mlflow.training.schedules import lr_factor
from cifar_mlflow.training.step import Step

logger = logging.getLogger(__name__)

# Reading a loss waits for the GPU, so losses are read once per this number of steps there.
STEPS_BETWEEN_CHECKS = 20
SECONDS_BETWEEN_LOG_LINES = 30


class Recorder(Protocol):
    """Receives the metrics of each epoch: an MLflow run, or a list in a benchmark."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


class NoRecorder:
    """Discards the metrics, as in a process that does not write the run."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        pass


History = list[dict[str, float]]


def no_pruning(history: History) -> bool:
    """Default prune callback: never stop early."""
    return False


@contextmanager
def _running(thread: threading.Thread) -> Iterator[None]:
    """Run a thread during the block and wait for its end, also after an error.

    An import that is still running when the interpreter shuts down fails with a traceback.
    """
    thread.start()
    try:
        yield
    finally:
        thread.join()


class Training:
    """A training in progress; `state_dict` contains everything that changes from step to step."""

    def __init__(
        self,
        classifier: ImageClassifier,
        classes: tuple[str, ...],
        train: Split | Selection,
        val: Split,
        config: TrainConfig,
        hardware: Hardware,
        world: World | None = None,
    ) -> None:
        keep_freed_memory()
        self.world = world or World.alone()
        self.classes = classes
        self.val = val
        self.config = config
        self.hardware = hardware
        self.loader = TrainLoader(train.images, train.labels, config, len(classes), hardware.device)
        self._check_batches()
        weights = self.loader.balancing_weights if config.class_weights == "balanced" else None
        self.take_step = Step(classifier, config, hardware, self.world, weights)
        self.classifier = self.take_step.classifier
        self.optimizers = self.take_step.optimizers
        self.averaged = (
            AveragedModel(self.classifier, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        self.epoch = 0  # completed epochs
        self.step = 0  # completed steps of the current epoch
        self.seen = 0  # images in these steps
        self.losses: list[Tensor] = []  # of these steps
        self.correct = torch.zeros((), dtype=torch.long, device=hardware.device)  # predictions in these steps
        self.epoch_seconds = 0.0  # of these steps
        self.seconds = 0.0  # of completed epochs, including validation
        self.peak_memory_mib = 0  # of the process that needed most, at the end
        self.history: History = []
        self.best_loss = math.inf
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] | None = None

    def _check_batches(self) -> None:
        """Check that each process has an image in each part of each batch."""
        needed = self.world.size * self.config.accumulate
        smallest = len(self.loader.labels) // self.loader.steps_per_epoch
        if smallest < needed:
            processes = counted(self.world.size, "process", "processes")
            raise UsageError(
                f"{processes} and accumulate={self.config.accumulate} need at least {needed} "
                f"images per step, but with batch_size={self.config.batch_size} the smallest batch has "
                f"{smallest}"
            )

    @property
    def evaluated(self) -> ImageClassifier:
        """The network that is evaluated and saved: the averaged one if `ema` is on."""
        return cast(ImageClassifier, self.averaged.module) if self.averaged else self.classifier

    @property
    def finished(self) -> bool:
        patience = self.config.patience
        out_of_patience = patience and self.epoch - self.best_epoch >= patience
        return bool(self.epoch >= self.config.epochs or out_of_patience)

    @property
    def _steps_done(self) -> int:
        return self.epoch * self.loader.steps_per_epoch + self.step

    @property
    def _work_done(self) -> float:
        return work_until(self._steps_done / self.loader.steps_per_epoch, self.config)

    @property
    def _bar_label(self) -> str:
        return f"training, epoch {self.epoch + 1}/{self.config.epochs}"  # the bar is that of all epochs

    def fit(
        self,
        recorder: Recorder,
        checkpoint: CheckpointFile | None = None,
        stop: StopRequest | None = None,
        prune: Callable[[History], bool] = no_pruning,
    ) -> ImageClassifier:
        """Train from the current state to the end, and return the network to keep, in eval mode.

        With `patience` it has the weights of the epoch with the lowest validation loss, otherwise the last.

        Args:
            recorder: receives the metrics of each epoch.
            checkpoint: written after each epoch and when the training is stopped.
            stop: checked after each step.
            prune: called before each epoch and after the last one with the metrics of all completed epochs;
                returns whether to stop.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite; the last good checkpoint is kept.
            Interrupted: `stop` was requested, in any process; the checkpoint is written.
            PeerLostError: another process of the training is gone.
        """
        self._imports = threading.Thread(
            target=importlib.import_module, args=("cifar_mlflow.evaluation.report",), name="imports"
        )
        with _running(self._imports), self.world.explained(), training_bar() as bar:
            total = work_until(self.config.epochs, self.config)
            task = bar.add_task(self._bar_label, total=total, note="first step")
            bar.update(task, completed=self._work_done)
            while not (prune(self.history) or self.finished):
                for _ in self._train_epoch():
                    bar.update(task, completed=self._work_done, description=self._bar_label)
                    if bar.live.is_started and self._may_wait_for_device():
                        accuracy, speed = self.correct.item() / self.seen, self.seen / self.epoch_seconds
                        note = (
                            f"loss {self.losses[-1]:.3f}  accuracy {percent(accuracy)}  {speed:,.0f} images/s"
                        )
                        bar.update(task, note=note)
                    if stop and (signum := self.world.stop_signal(stop.signum)):
                        self._raise_if_diverged()
                        self._raise_if_weights_diverged()
                        if checkpoint:
                            checkpoint.save(self.state_dict())
                        stop.interrupt(signum)
                metrics = self._finish_epoch()
                if checkpoint:
                    checkpoint.save(self.state_dict())
                recorder.log_metrics(metrics, step=self.epoch)
                if self.world.is_main:
                    logger.info("%s", epoch_line(self.history, self.config))
            self.peak_memory_mib = self.world.max(self.hardware.peak_memory_mib())
        if self.best_weights is not None:
            self.evaluated.load_state_dict(self.best_weights)
        return self.evaluated.eval()

    def _train_epoch(self) -> Iterator[None]:
        """Train the rest of the current epoch; yield after each step."""
        config, loader = self.config, self.loader
        total_steps = config.epochs * loader.steps_per_epoch
        self.classifier.train()
        resumed_seconds, start = self.epoch_seconds, time.perf_counter()
        last_line = start
        for batch in loader.epoch(self.epoch, first_step=self.step):
            progress = self._steps_done / total_steps
            loss, correct = self.take_step(batch, lr_factor(config.schedule, config.warmup, progress))
            if self.averaged:
                self.averaged.update_parameters(self.classifier)

            self.correct += correct
            self.losses.append(loss)
            self.step += 1
            self.seen += len(batch)
            now = time.perf_counter()
            self.epoch_seconds = resumed_seconds + now - start
            if self._may_wait_for_device():
                self._raise_if_diverged()
            if now - last_line > SECONDS_BETWEEN_LOG_LINES and self.world.is_main:
                last_line = now
                logger.info(
                    "epoch %d/%d step %d/%d loss %.3f",
                    self.epoch + 1, config.epochs, self.step, loader.steps_per_epoch, self.losses[-1],
                )  # fmt: skip
            yield
        self._raise_if_diverged()
        # Reading the last loss has waited for the GPU to finish.
        self.epoch_seconds = resumed_seconds + time.perf_counter() - start

    def _may_wait_for_device(self) -> bool:
        """Return whether to read a loss after this step."""
        return self.hardware.device.type == "cpu" or self.step % STEPS_BETWEEN_CHECKS == 0

    def _raise_if_diverged(self) -> None:
        """Check the latest losses, no more than needed, since this runs after each step on a CPU."""
        self.world.wait_for(self.hardware.device)
        losses = torch.stack(self.losses[-STEPS_BETWEEN_CHECKS:])
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            first = int(bad[0])
            step = len(self.losses) - len(losses) + first + 1
            raise self._diverged(f"the loss became {losses[first].item()}", step)

    def _raise_if_weights_diverged(self) -> None:
        """Check the weights before they are kept: the step after a finite loss can still spoil them."""
        if not all(tensor.isfinite().all() for tensor in self.evaluated.state_dict().values()):
            raise self._diverged("the weights became NaN or infinite", self.step)

    def _diverged(self, problem: str, step: int) -> TrainingDivergedError:
        overall = self.epoch * self.loader.steps_per_epoch + step
        return TrainingDivergedError(
            f"{problem} at step {overall} (epoch {self.epoch + 1}) with "
            f"lr={self.config.lr:g}, optimizer={self.config.optimizer}, "
            f"batch_size={self.config.batch_size}: try a lower --lr, a longer --warmup, or --grad-clip 1"
        )

    def _finish_epoch(self) -> dict[str, float]:
        """Validate, append the epoch to the history, and reset the state of the epoch; return its metrics."""
        self._raise_if_weights_diverged()
        metrics = {
            "train/loss": torch.stack(self.losses).mean().item(),
            "train/accuracy": self.correct.item() / self.seen,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "images_per_second": self.seen / self.epoch_seconds,
        }
        self._imports.join()
        from cifar_mlflow.evaluation.metrics import evaluate_logits

        start = time.perf_counter()
        if len(self.val.labels):
            scalars = evaluate_logits(self._predict_val(), self.val.labels, self.classes).scalars("val")
            metrics |= {name: scalars[name] for name in ("val/loss", "val/accuracy", "val/f1_macro")}
        self.seconds += self.epoch_seconds + time.perf_counter() - start
        self.epoch += 1
        self.step, self.seen, self.losses, self.epoch_seconds = 0, 0, [], 0.0
        self.correct.zero_()
        if self.config.patience and metrics["val/loss"] < self.best_loss:
            self.best_loss, self.best_epoch = metrics["val/loss"], self.epoch
            self.best_weights = {name: t.detach().clone() for name, t in self.evaluated.state_dict().items()}
        self.history.append({"epoch": self.epoch, "seconds": self.seconds, **metrics})
        return metrics

    def _predict_val(self) -> NDArray[np.float32]:
        """Return the logits of all validation images (N, classes); each process computes its share."""
        share = self.world.share(len(self.val))
        logits = np.zeros((0, len(self.classes)), np.float32)
        if share.stop > share.start:
            logits = predict_logits(
                self.evaluated,
                self.val.images[share.start : share.stop],
                device=self.hardware.device,
                precision=self.hardware.precision,
            )
        return self.world.gather_rows(torch.from_numpy(logits)).numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed training ends with the weights of an uninterrupted one.

        The order of the images and their augmentation depend only on seed, epoch and step; the generator
        states saved here are those of dropout.
        """
        cuda = self.hardware.device.type == "cuda"
        return {
            # A URL of a mirror may have a password; the images are in the cache.
            "config": self.config.model_dump(mode="json", exclude={"mirrors"}),
            "classifier": self.classifier.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.take_step.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.hardware.device) if cuda else None,
            "epoch": self.epoch,
            "step": self.step,
            "seen": self.seen,
            "losses": torch.stack(self.losses) if self.losses else [],
            "correct": self.correct,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "history": self.history,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.classifier.load_state_dict(state["classifier"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if scaler := state.get("scaler"):  # empty without fp16
            self.take_step.scaler.load_state_dict(scaler)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.hardware.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.hardware.device)
        self.losses = [loss.to(self.hardware.device) for loss in state["losses"]]
        self.correct = state["correct"].to(self.hardware.device)
        plain = (
            "epoch",
            "step",
            "seen",
            "epoch_seconds",
            "seconds",
            "history",
            "best_loss",
            "best_epoch",
            "best_weights",
        )
        for name in plain:
            setattr(self, name, state[name])
