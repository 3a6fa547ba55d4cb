"""The training loop: stochastic gradient descent on the cross-entropy, testing after each epoch.

Nothing here depends on the clock, so that a run can stop between any two steps and continue elsewhere with
the same result; see :mod:`scratchnn.data.order` and :mod:`scratchnn.train.checkpoint`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
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

_TEST_BATCH = 256  # images; fixed, so that the test does not depend on a hyper-parameter


class Stopped(Exception):
    """A stop was asked for, and the run is saved."""


class Trainer:
    """One run: a model, its optimizer, the data, and how far it is.

    Args:
        config: the hyper-parameters.
        dataset: the images.
        out: an existing folder for the tables and the checkpoint.
    """

    def __init__(self, config: Config, dataset: Dataset, out: Path) -> None:
        self.config = config
        self.dataset = dataset
        self.checkpoint_path = out / "checkpoint.pt"
        self._steps_path, self._epochs_path = out / "steps.csv", out / "epochs.csv"
        self.data = describe_data(dataset)
        self.progress = Progress()
        self._mean, self._std = dataset.mean_and_std()
        self._memory_format = getattr(
            torch, "contiguous_format" if config.memory_format == "contiguous" else config.memory_format
        )
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
            Table(self._steps_path, STEP_COLUMNS, progress.step) as steps,
            Table(self._epochs_path, EPOCH_COLUMNS, self._tested_step()) as epochs,
        ):
            self._tables = steps, epochs
            if progress.step == 0:
                self._save()  # from here on the run can be resumed, whatever happens
            while progress.step < self.total_steps or progress.batch > 0:
                self._train_epoch(steps, stop)
                test_loss, test_accuracy = self._test(stop)
                train_loss = progress.loss_sum / progress.seen
                train_accuracy = progress.correct / progress.seen
                progress.epoch += 1
                progress.batch = 0
                self._require_finite(test_loss)
                epochs.add(progress.epoch, progress.step, train_loss, train_accuracy, test_loss, test_accuracy)
                progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
                self._save()
                print(
                    f"epoch {progress.epoch}: train loss {train_loss:.4f} accuracy {train_accuracy:.2%}, "
                    f"test loss {test_loss:.4f} accuracy {test_accuracy:.2%}, {self.speed():.0f} images/s",
                    flush=True,
                )

    def speed(self) -> float:
        """Images trained on per second, over the whole run and without testing."""
        return self.progress.images / max(self.progress.seconds, 1e-9)
