"""The training loop: stochastic gradient descent on the cross-entropy, testing after each epoch.

Nothing here depends on the clock, so that a run can stop between any two steps and continue elsewhere with
the same result; see :mod:`scratchnn.data.order` and :mod:`scratchnn.train.checkpoint`.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from tqdm import tqdm

from scratchnn import models
from scratchnn.data import Dataset, augmentation_generator, epoch_batches, normalise, random_crop_flip
from scratchnn.errors import UserError
from scratchnn.train import checkpoint
from scratchnn.train.checkpoint import Progress
from scratchnn.train.config import Config
from scratchnn.train.log import EPOCH_COLUMNS, STEP_COLUMNS, Table, describe_data
from scratchnn.train.schedule import learning_rate
from scratchnn.train.stop import StopRequest

_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_TEST_BATCH = 256  # images; fixed, so that the test does not depend on a hyper-parameter


class Stopped(Exception):
    """A stop was asked for, and the run is saved between two steps."""


class Trainer:
    """One run: a model, its optimizer, the data, and how far it is.

    Args:
        config: the hyper-parameters.
        dataset: the images.
        out: an existing folder for the tables and the checkpoint.

    Raises:
        UserError: from its methods, where a checkpoint does not fit the run, or the loss is no longer a number.
    """

    def __init__(self, config: Config, dataset: Dataset, out: Path) -> None:
        self.config = config
        self.dataset = dataset
        self.checkpoint_path = out / "checkpoint.pt"
        self._out = out
        self.data = describe_data(dataset)
        self.progress = Progress()
        self._mean, self._std = dataset.mean_and_std()
        self._memory_format = _MEMORY_FORMATS[config.memory_format]
        torch.manual_seed(config.seed)
        model = models.build(config.model, num_classes=len(dataset.classes), nn=_namespace(config.layers))
        self.model = model.to(memory_format=self._memory_format)
        self.optimizer = make_optimizer(self.model, config)
        self.steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
        self.total_steps = config.total_steps(self.steps_per_epoch)

    def resume(self, content: dict) -> None:
        """Continue from a loaded checkpoint.

        Raises:
            UserError: when it is of other classes, other images, or another model.
        """
        theirs = content["data"]
        if theirs["classes"] != self.data["classes"]:
            raise UserError(
                f"{self.checkpoint_path} was trained on other classes: {_listed(theirs['classes'])}, "
                f"the data have {_listed(self.data['classes'])}"
            )
        if theirs["sha256"] != self.data["sha256"]:
            raise UserError(f"{self.checkpoint_path} was trained on other images than those of {self.config.data}")
        self.progress = checkpoint.restore(content, self.checkpoint_path, self.model, self.optimizer)

    def fit(self, stop: StopRequest) -> None:
        """Train to the end, saving after every epoch.

        Args:
            stop: looked at between two steps.

        Raises:
            Stopped: when ``stop`` was made; the checkpoint then continues at the very next step.
            UserError: when the loss is no longer finite; the checkpoint is the last good one.
        """
        progress = self.progress
        with (
            Table(self._out / "steps.csv", STEP_COLUMNS, upto=("step", progress.step)) as steps,
            Table(self._out / "epochs.csv", EPOCH_COLUMNS, upto=("epoch", progress.epoch)) as epochs,
        ):
            try:
                if progress.step == 0:
                    self._save(steps, epochs)  # from here on the run can be resumed, whatever happens
                while progress.step < self.total_steps or progress.batch > 0:
                    self._train_epoch(steps, stop)
                    test_loss, test_accuracy = self._test(stop)
                    self._finish_epoch(epochs, test_loss, test_accuracy)
                    self._save(steps, epochs)
            except Stopped:
                self._save(steps, epochs)
                raise

    def speed(self) -> float:
        """Images trained on per second, over the whole run and without testing."""
        return self.progress.images / max(self.progress.seconds, 1e-9)

    def _train_epoch(self, steps: Table, stop: StopRequest) -> None:
        """The steps of the current epoch that are not done yet."""
        progress = self.progress
        self.model.train()
        batches = epoch_batches(len(self.dataset.train), self.config.batch_size, self.config.seed, progress.epoch)
        batches = batches[: progress.batch + self.total_steps - progress.step]
        with _bar(len(batches), f"epoch {progress.epoch + 1}/{self.config.epochs}") as bar:
            bar.update(progress.batch)
            for indices in batches[progress.batch :]:
                start = time.perf_counter()
                self._step(indices, steps)
                progress.seconds += time.perf_counter() - start
                bar.set_postfix_str(
                    f"loss {progress.loss_sum / progress.seen:.3f}, "
                    f"accuracy {progress.correct / progress.seen:.1%}, {self.speed():.0f} images/s",
                    refresh=False,
                )
                bar.update()
                if stop.made:
                    raise Stopped

    def _step(self, indices: Tensor, steps: Table) -> None:
        """One batch forward and backward, and one step of the optimizer."""
        progress, config = self.progress, self.config
        images, labels = self._training_batch(indices)
        rate = learning_rate(progress.step, self.total_steps, config.lr, config.schedule, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scores = self.model(images)
        loss = self._loss(scores, labels)
        value = loss.item()
        self._require_finite(value)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        progress.step += 1
        progress.batch += 1
        progress.loss_sum += value * len(labels)
        progress.correct += int((scores.argmax(dim=1) == labels).sum())
        progress.seen += len(labels)
        progress.images += len(labels)
        steps.add(progress.epoch + 1, progress.step, value, rate)

    def _training_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``float32 [N, 3, H, W]`` and labels ``int64 [N]``."""
        images = self.dataset.train.images[indices]
        if self.config.augment:
            generator = augmentation_generator(self.config.seed, self.progress.epoch, self.progress.batch)
            images = random_crop_flip(images, generator, flip=self.dataset.mirrored)
        images = normalise(images, self._mean, self._std, self._memory_format)
        return images, self.dataset.train.labels[indices]

    @torch.no_grad()
    def _test(self, stop: StopRequest) -> tuple[float, float]:
        """Loss and accuracy over all test images."""
        self.model.eval()
        test = self.dataset.test
        loss_sum, correct = 0.0, 0
        for images, labels in zip(test.images.split(_TEST_BATCH), test.labels.split(_TEST_BATCH), strict=True):
            if stop.made:
                raise Stopped
            scores = self.model(normalise(images, self._mean, self._std, self._memory_format))
            loss_sum += self._loss(scores, labels).item() * len(labels)
            correct += int((scores.argmax(dim=1) == labels).sum())
        return loss_sum / len(test), correct / len(test)

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of ``scores [N, classes]`` and ``labels [N]``."""
        return torch.nn.functional.cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)

    def _finish_epoch(self, epochs: Table, test_loss: float, test_accuracy: float) -> None:
        """Write the row of the epoch, and get ready for the next one."""
        progress = self.progress
        self._require_finite(test_loss)  # before a checkpoint is made of weights that are spoilt
        train_loss = progress.loss_sum / progress.seen
        train_accuracy = progress.correct / progress.seen
        progress.epoch += 1
        progress.batch = 0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        epochs.add(progress.epoch, progress.step, train_loss, train_accuracy, test_loss, test_accuracy)
        print(
            f"epoch {progress.epoch}/{self.config.epochs}: "
            f"train loss {train_loss:.4f}, accuracy {train_accuracy:.2%}; "
            f"test loss {test_loss:.4f}, accuracy {test_accuracy:.2%}; {self.speed():.0f} images/s",
            flush=True,
        )

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            progress = self.progress
            raise UserError(
                f"the loss became {loss} in epoch {progress.epoch + 1} after step {progress.step}; "
                f"{self.checkpoint_path} holds the last good state, start anew with a smaller --lr "
                f"than {self.config.lr:g}"
            )

    def _save(self, steps: Table, epochs: Table) -> None:
        # Tables first: the rows that a checkpoint counts on must be on the disk when it is.
        steps.sync()
        epochs.sync()
        checkpoint.save(self.checkpoint_path, asdict(self.config), self.data, self.model, self.optimizer, self.progress)


def make_optimizer(model: torch.nn.Module, config: Config) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay for matrices and filters, not for norms and biases.

    Args:
        model: whose parameters to train.
        config: learning rate, momentum and weight decay.

    Returns:
        the optimizer.
    """
    parameters = list(model.parameters())
    return torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )


def _namespace(layers: str) -> ModuleType:
    return torch.nn if layers == "torch" else models.default_namespace()


def _bar(total: int, label: str) -> tqdm:
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(total=total, desc=label, unit="step", leave=False, disable=not sys.stderr.isatty())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
