"""Fits the captioner under tf.distribute, and goes on where an earlier run stopped."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model import metrics
from model.captioner import Captioner
from model.checkpoints import Checkpoints, Progress, adopt_records, load_records
from model.config import Config
from model.dataset import TRAIN_SPLIT, Split, Stream, grid_statistics, training_batches
from model.decoding import CaptionWriter
from model.errors import CheckFailed, InvalidInput
from model.history import History
from model.losses import masked_cross_entropy
from model.progress import Progress as ProgressLine
from model.schedules import learning_rate
from model.strategies import is_chief

# Enough for the statistics of a channel over 49 cells an image.
_STATISTICS_IMAGES = 2048
_LOG_STEPS = 20

Batch = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Run:
    """What is to be trained, on what, for how long.

    Attributes:
      records: RECORDS.
      model_dir: MODEL_DIR.
      config: settings.
      strategy: of tf.distribute.
      steps: in all, over every resumed run; None is config.training.epochs.
    """

    records: Path
    model_dir: Path
    config: Config
    strategy: tf.distribute.Strategy
    steps: int | None = None


class Trainer:
    """One training run; `fit` returns when its last step is taken.

    Args:
      run: what to do.

    Raises:
      InvalidInput: records or MODEL_DIR that cannot be used for this run.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._strategy = run, run.strategy
        settings = run.config.training
        replicas = run.strategy.num_replicas_in_sync
        if settings.batch_size % replicas:
            raise InvalidInput(
                f"training.batch_size {settings.batch_size}, expected a multiple of the "
                f"{replicas} replicas"
            )
        manifest, self._vocabulary = load_records(run.records)
        if self.is_chief:
            adopt_records(run.model_dir, run.records, manifest, run.config)
        self._train_split = Split(run.records, manifest, TRAIN_SPLIT)
        self._validation_split = (
            Split(run.records, manifest, settings.validation_split)
            if settings.validation_split in manifest.splits
            else None
        )
        if self._validation_split is not None and self._validation_split.num_images == 0:
            raise InvalidInput(
                f"validation split {settings.validation_split!r} has no images, expected at least "
                "one; name another with --set validation_split=NAME"
            )
        self._steps_per_epoch = math.ceil(
            max(self._train_split.num_images, 1) / settings.batch_size
        )
        self.total_steps = run.steps or settings.epochs * self._steps_per_epoch
        keras.utils.set_random_seed(settings.seed)
        with run.strategy.scope():
            self.captioner = Captioner(
                run.config.decoder, len(self._vocabulary), manifest.grid_shape
            )
            self.optimizer = keras.optimizers.Adam(learning_rate(settings, self.total_steps))
            self.optimizer.build(self.captioner.trainable_variables)
        self._history = History(run.model_dir)
        self.progress = Progress(self._vocabulary.digest)
        self._checkpoints = Checkpoints(
            run.model_dir, self.captioner, self.optimizer, self.progress
        )
        self._writer = CaptionWriter(self.captioner, self._vocabulary, run.config.search)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints, history and events."""
        return is_chief(self._strategy.cluster_resolver)

    def fit(self, log: Callable[[str], None] = print) -> None:
        """Train to the last step, validating and saving on the way.

        Args:
          log: takes one line for each validation.

        Raises:
          CheckFailed: the loss is no longer finite; the last good checkpoint stays.
          InvalidInput: a damaged shard.
        """
        step = self._restore(log)
        if step >= self.total_steps:
            log(f"nothing to do: step {step} of {self.total_steps} is taken")
            return
        settings = self._run.config.training
        validation_steps = settings.validation_steps or self._steps_per_epoch
        batches = self._batches(step)
        # One trace for batches of any length.
        take_step = tf.function(
            self._distributed_step,
            input_signature=[batches.element_spec, tf.TensorSpec([], tf.int32)],
        )
        stream = self._train_split.iterate(batches)
        with (
            closing(ProgressLine("train", self.total_steps - step, "steps")) as line,
            self._events().as_default(),
        ):
            while step < self.total_steps:
                loss = take_step(next(stream), tf.constant(step))
                step += 1
                last = step == self.total_steps
                note = ""
                if step % _LOG_STEPS == 0 or last:
                    note = self._log(step, float(loss))
                validates = step % validation_steps == 0 or last
                if validates:
                    self._check_finite(step, float(loss))
                    self._validate(step, float(loss), log)
                if validates or step % settings.checkpoint_steps == 0:
                    self._check_finite(step, float(loss))
                    self._save(step)
                line.advance(note=note)

    def _restore(self, log: Callable[[str], None]) -> int:
        if self._checkpoints.restore(log):
            step = int(self.progress.step)
            self._check_same_step(step)
            log(f"resuming at step {step} of {self.total_steps}")
        else:
            step = 0
            self._check_same_step(step)
            mean, variance = grid_statistics(
                self._train_split, self._run.config.training.batch_size, _STATISTICS_IMAGES
            )
            self.captioner.set_grid_statistics(mean, variance)
        if self.is_chief:
            self._history.keep_until(step)
        return step

    def _check_same_step(self, step: int) -> None:
        """Every process must go on from the same checkpoint."""
        if self._strategy.num_replicas_in_sync == 1:
            return

        @tf.function
        def total() -> tf.Tensor:
            here = self._strategy.run(lambda: tf.constant(step, tf.float32))
            return self._strategy.reduce(tf.distribute.ReduceOp.SUM, here, axis=None)

        if float(total()) != float(step) * self._strategy.num_replicas_in_sync:
            raise InvalidInput(
                f"{self._run.model_dir}: this process is at step {step}, others are not; "
                "--model_dir must lie on a disk that all processes share"
            )

    def _batches(self, step: int) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        settings = self._run.config.training
        stream = Stream(settings.seed, settings.shuffle_buffer, settings.batch_size, step)

        def pipeline(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
            return training_batches(self._train_split, self._vocabulary, stream, context)

        if self._strategy.num_replicas_in_sync == 1:
            return pipeline()
        return self._strategy.distribute_datasets_from_function(pipeline)

    def _distributed_step(self, batch: Batch, step: tf.Tensor) -> tf.Tensor:
        losses = self._strategy.run(self._replica_step, args=(batch, step))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, batch: Batch, step: tf.Tensor) -> tf.Tensor:
        """One replica's share of the global mean loss; gradients are summed over replicas."""
        context = tf.distribute.get_replica_context()
        settings = self._run.config.training
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        seed = tf.stack([settings.seed * context.num_replicas_in_sync + replica, step])
        with tf.GradientTape() as tape:
            logits, _ = self.captioner(
                batch["grid"], batch["inputs"], batch["image_index"], dropout_seed=seed
            )
            total, count = masked_cross_entropy(
                logits, batch["labels"], self._vocabulary.pad_id, settings.label_smoothing
            )
            loss = total / context.all_reduce(tf.distribute.ReduceOp.SUM, count)
        variables = self.captioner.trainable_variables
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, settings.clip_norm)
        # Keras sums over replicas once more; each has the clipped global gradient already.
        replicas = float(context.num_replicas_in_sync)
        self.optimizer.apply([gradient / replicas for gradient in gradients], variables)
        return loss

    def _validate(self, step: int, loss: float, log: Callable[[str], None]) -> None:
        """Keep the best weights by CIDEr of free-running captions, or the last without a split."""
        if not self.is_chief:
            return
        row: dict[str, Any] = {"step": step, "loss": loss}
        score = float(step)
        if self._validation_split is not None:
            settings = self._run.config.training
            predictions = list(
                self._writer.predictions(
                    self._validation_split, settings.batch_size, settings.validation_images
                )
            )
            score = metrics.score(
                {prediction.key: prediction.caption for prediction in predictions},
                {prediction.key: prediction.references for prediction in predictions},
            )["cider"]
            row["val_cider"] = score
            tf.summary.scalar("validation/cider", score, step=step)
        if score > float(self.progress.best_score):
            self.progress.best_score.assign(score)
            self.progress.step.assign(step)
            self._checkpoints.save_best(step)
            row["best"] = True
        self._history.append(row)
        log(", ".join(f"{name} {_short(value)}" for name, value in row.items()))

    def _save(self, step: int) -> None:
        self.progress.step.assign(step)
        if self.is_chief:
            self._checkpoints.save(step)

    def _log(self, step: int, loss: float) -> str:
        self._check_finite(step, loss)
        tf.summary.scalar("training/loss", loss, step=step)
        tf.summary.scalar("training/learning_rate", self.optimizer.learning_rate, step=step)
        return f"loss {loss:.3f}"

    def _check_finite(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise CheckFailed(
                f"the loss is {loss} at step {step}; the checkpoint before it is kept, "
                "start again with a lower training.learning_rate in another --model_dir"
            )

    def _events(self) -> Any:
        if self.is_chief:
            return tf.summary.create_file_writer(str(self._run.model_dir / "events"))
        return tf.summary.create_noop_writer()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
