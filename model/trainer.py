"""Fits the captioner under tf.distribute, and goes on where an earlier run stopped."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any

import keras
import tensorflow as tf

from model.averages import WeightAverages
from model.captioner import Captioner
from model.checkpoints import Checkpoints, Progress, adopt_records, load_encoder, load_records
from model.dataset import (
    TRAIN_SPLIT,
    Split,
    Stream,
    batch_keys,
    grid_statistics,
    training_batches,
)
from model.decoding import CaptionWriter
from model.errors import CheckFailed, InvalidInput
from model.fine_tuning import TunedEncoder, check_content, grids_by
from model.history import History
from model.illustrations import Illustrator
from model.initial_weights import begin_with
from model.loss_scale import LEAST, LossScale
from model.meter import Meter
from model.objectives import CrossEntropy, Objective
from model.progress import Progress as ProgressLine
from model.records import MANIFEST_FILE, Manifest
from model.run import Run, check_first
from model.schedules import Schedule
from model.self_critical import SelfCritical
from model.split_optimizer import SplitOptimizer
from model.stopping import on_sigterm
from model.strategies import all_must_answer, is_chief, sum_over_replicas
from model.training_config import FLOAT16, SELF_CRITICAL
from model.training_step import Fitted, Taken, TrainingStep
from model.validation import validate, validation_split

# Enough for the statistics of a channel over 49 cells an image.
_STATISTICS_IMAGES = 2048
_LOG_STEPS = 20
# A cross-entropy this many times that of a model that knows nothing, ln V, will not come back.
_EXPLODED = 10.0


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
        check_content(manifest, run.config.encoder, str(run.records))
        self._illustrator = Illustrator(self._vocabulary, manifest, run.images)
        if not (run.model_dir / MANIFEST_FILE).exists():
            check_first(run)
        if self.is_chief:
            adopt_records(run.model_dir, run.records, manifest, run.config)
        self._train_split = Split(run.records, manifest, TRAIN_SPLIT)
        self._validation_split = validation_split(run.records, manifest, settings)
        self._steps_per_epoch = math.ceil(
            max(self._train_split.num_images, 1) / settings.batch_size
        )
        self.total_steps = run.steps or settings.epochs * self._steps_per_epoch
        keras.utils.set_random_seed(settings.seed)
        self.progress = Progress(self._vocabulary.digest, settings)
        self._rate = self._schedule(settings.learning_rate)
        with run.strategy.scope():
            self.captioner = Captioner(
                run.config.decoder, len(self._vocabulary), manifest.grid_shape
            )
            self.encoder = self._load_encoder(manifest)
            self.optimizer = self._make_optimizer()
            encoder = [] if self.encoder is None else self.encoder.trained
            self.averages = WeightAverages(
                [*self.captioner.trainable_variables, *encoder], settings.ema_decay
            )
            self.loss_scale = LossScale(settings.precision)
        self._fitted = Fitted(
            self.captioner, self.optimizer, self.averages, self.loss_scale, self.encoder
        )
        self._history = History(run.model_dir)
        self._checkpoints = Checkpoints(run.model_dir, self._fitted, self.progress)
        self._grids = grids_by(self.encoder and tf.function(self.encoder, reduce_retracing=True))
        self._writer = CaptionWriter(
            self.captioner, self._vocabulary, run.config.search, self._grids
        )

    @cached_property
    def _objective(self) -> Objective:
        """Made when first needed: self-critical training reads all captions for it."""
        config = self._run.config
        if config.training.stage == SELF_CRITICAL:
            return SelfCritical(self.captioner, config, self._vocabulary, self._train_split)
        pad = self._vocabulary.pad_id
        return CrossEntropy(self.captioner, config.training, pad, self._steps_per_epoch)

    @cached_property
    def _step(self) -> TrainingStep:
        settings, pad = self._run.config.training, self._vocabulary.pad_id
        return TrainingStep(self._fitted, self._strategy, settings, self._objective, pad)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes checkpoints, history and events."""
        return is_chief(self._strategy.cluster_resolver)

    def _load_encoder(self, manifest: Manifest) -> TunedEncoder | None:
        """The encoder that is to be fine-tuned, with the weights that the records name."""
        config = self._run.config.encoder
        if not config.is_trained:
            return None
        return TunedEncoder(load_encoder(manifest, self._run.encoder_weights), config)

    def _make_optimizer(self) -> keras.optimizers.Optimizer | SplitOptimizer:
        adam, variables = keras.optimizers.Adam(self._rate), self.captioner.trainable_variables
        if self.encoder is None:
            adam.build(variables)
            return adam
        rate = self._schedule(self._run.config.encoder.learning_rate)
        return SplitOptimizer(
            (adam, variables), (keras.optimizers.Adam(rate), self.encoder.trained)
        )

    def _schedule(self, learning_rate: float) -> Schedule:
        """Training's schedule, to this rate."""
        return Schedule(
            replace(self._run.config.training, learning_rate=learning_rate),
            self.total_steps,
            self._steps_per_epoch,
            self.progress.plateau.scale,
        )

    def fit(self, log: Callable[[str], None] = print) -> None:
        """Train to the last step, validating and saving on the way.

        SIGTERM ends it within two steps, with a checkpoint.

        Args:
          log: takes one line for each validation.

        Raises:
          CheckFailed: loss or gradient is no longer finite (in float16, whatever the loss is
            scaled by), or the cross-entropy far above that of a model that knows nothing; the
            last checkpoint before it stays.
          InvalidInput: a damaged shard.
        """
        step = self._restore(log)
        if step >= self.total_steps:
            log(f"nothing to do: step {step} of {self.total_steps} is taken")
            return
        batches = self._batches(step)
        take = self._step.compiled(batches.element_spec)
        stream, meter = self._train_split.iterate(batches), Meter()
        before: Taken | None = None
        with (
            closing(ProgressLine("train", self.total_steps - step, "steps")) as line,
            self._events().as_default(),
            on_sigterm() as asked,
        ):
            if step == 0 and self._run.init_from is not None:
                # What it began with stays the best until training has found better.
                self._validate({"step": 0}, log)
            while step < self.total_steps:
                with meter.waiting():
                    batch = next(stream)
                taken = take(batch, tf.constant(step), tf.constant(int(bool(asked))))
                meter.add(taken.captions)
                # The step before: a GPU has work while that one is looked at. All processes
                # learn in the same step that one of them is to stop.
                stopping = before is not None and bool(before.stopping)
                if before is not None:
                    self._check(step, before)
                step, before = step + 1, taken
                line.advance(note=self._after(step, taken, meter, stopping, log))
                if stopping and step < self.total_steps:
                    log(f"stopped at step {step} of {self.total_steps}; the same command goes on")
                    return

    def _after(
        self, step: int, taken: Taken, meter: Meter, stopping: bool, log: Callable[[str], None]
    ) -> str:
        """Log, validate and save where it is time to; returns the progress line's note."""
        settings = self._run.config.training
        last = step == self.total_steps
        validates = last or step % (settings.validation_steps or self._steps_per_epoch) == 0
        saves = validates or stopping or step % settings.checkpoint_steps == 0
        note = ""
        if validates or saves or step % _LOG_STEPS == 0:
            self._check(step, taken)
            numbers = self._numbers(taken) | meter.read()
            for name, value in numbers.items():
                tf.summary.scalar(f"training/{name}", value, step=step)
            note = f"loss {numbers['loss']:.3f}, {numbers['captions_per_s']:.0f} captions/s"
            if validates:
                better = self._validate({"step": step, **numbers}, log)
                self.progress.plateau.validated(self._from_chief(better))
        if saves:
            self._save(step)
        if note:
            # Validating and saving are no part of the speed.
            meter.restart()
        return note

    def _numbers(self, taken: Taken) -> dict[str, float]:
        numbers = {
            "loss": float(taken.loss),
            self._objective.measure: float(taken.measured),
            "gradient_norm": float(taken.gradient_norm),
            # The rate that the last step took, not the next one's; a step that was skipped is
            # none of the optimiser's.
            "learning_rate": float(
                self._rate(max(int(self.optimizer.iterations.value.numpy()) - 1, 0))
            ),
        }
        if self._run.config.training.precision == FLOAT16:
            numbers["loss_scale"] = float(taken.loss_scale)
        # A skipped step's gradient has no norm, and JSON no word for that.
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    def _restore(self, log: Callable[[str], None]) -> int:
        if self._checkpoints.restore(log):
            step = int(self.progress.step)
            self._check_same_step(step)
            log(f"resuming at step {step} of {self.total_steps}")
        else:
            step = 0
            self._check_same_step(step)
            if self.is_chief:
                self._history.keep_until(-1)
            self._begin()
            return step
        if self.is_chief:
            self._history.keep_until(step)
        return step

    def _begin(self) -> None:
        """Make ready what the first step changes."""
        check_first(self._run)
        if self._run.init_from is None:
            mean, variance = grid_statistics(
                self._train_split,
                self._run.config.training.batch_size,
                _STATISTICS_IMAGES,
                self._grids,
            )
            self.captioner.set_grid_statistics(mean, variance)
            return
        split = self._train_split
        begin_with(
            self.captioner, self._vocabulary, split.manifest, self._run.init_from, self.encoder
        )
        self.averages.restart()

    def _check_same_step(self, step: int) -> None:
        """Every process must go on from the same checkpoint."""
        if (
            sum_over_replicas(self._strategy, float(step))
            != float(step) * self._strategy.num_replicas_in_sync
        ):
            raise InvalidInput(
                f"{self._run.model_dir}: this process is at step {step}, others are not; "
                "--model_dir must lie on a disk that all processes share"
            )

    def _from_chief(self, truth: bool) -> bool:
        """What the chief, which alone validates, knows; all processes must ask."""
        return sum_over_replicas(self._strategy, float(truth and self.is_chief)) > 0

    def _batches(self, step: int) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        def pipeline(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
            return training_batches(
                self._train_split, self._vocabulary, self._stream(step), context
            )

        if self._strategy.num_replicas_in_sync == 1:
            return pipeline()
        return self._strategy.distribute_datasets_from_function(pipeline)

    def _stream(self, first_step: int) -> Stream:
        settings = self._run.config.training
        return Stream(settings.seed, settings.shuffle_buffer, settings.batch_size, first_step)

    def _validate(self, row: dict[str, Any], log: Callable[[str], None]) -> bool:
        """Keep the best weights by CIDEr of free-running captions, or the last without a split.

        Args:
          row: step and numbers, for the history.
          log: takes the row.

        Returns:
          Whether they are the best so far; False but in the chief.
        """
        if not self.is_chief:
            return False
        step = row["step"]
        score = float(step)
        with self.averages.applied():
            if self._validation_split is not None:
                settings = self._run.config.training
                score, predictions = validate(self._writer, self._validation_split, settings)
                row["val_cider"] = score
                self._illustrator.write(predictions, step)
                tf.summary.scalar("validation/cider", score, step=step)
            better = score > float(self.progress.best_score)
            if better:
                self.progress.best_score.assign(score)
                self.progress.step.assign(step)
                self._checkpoints.save_best(step)
                row["best"] = True
        self._history.append(row)
        log(", ".join(f"{name} {_short(value)}" for name, value in row.items()))
        return better

    def _save(self, step: int) -> None:
        self.progress.step.assign(step)
        if self.is_chief:
            self._checkpoints.save(step)

    def _check(self, step: int, taken: Taken) -> None:
        """Raise CheckFailed after a step that leaves nothing to go on with."""
        # Of a cross-entropy in nats; CIDEr-D never gets as high.
        most = _EXPLODED * math.log(len(self._vocabulary))
        loss, norm = float(taken.loss), float(taken.gradient_norm)
        # A gradient that a lower scale of the loss may save was skipped, not taken.
        sound = math.isfinite(norm) or float(taken.loss_scale) > LEAST
        if math.isfinite(loss) and sound and float(taken.measured) <= most:
            return
        keys = batch_keys(self._train_split, self._stream(step - 1))
        settings = self._run.config.training
        measure = f"its {self._objective.measure.replace('_', '-')} {float(taken.measured):g}"
        if settings.stage != SELF_CRITICAL:
            measure += f", expected at most {most:.3g}"
        other = "" if settings.precision != FLOAT16 else " or another training.precision"
        raise CheckFailed(
            f"the loss is {loss:g} at step {step}, {measure}, and its gradient's norm {norm:g}; "
            f"the batch was {', '.join(keys)}; the checkpoint before it is kept, start again with "
            f"a lower training.learning_rate{other} in another --model_dir"
        )

    def _events(self) -> Any:
        if self.is_chief:
            return tf.summary.create_file_writer(str(self._run.model_dir / "events"))
        return tf.summary.create_noop_writer()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def train(run: Run, log: Callable[[str], None] = print) -> Trainer:
    """Make a Trainer and `fit`.

    Raises:
      CheckFailed: as `fit`, or a process of the cluster died or left.
    """
    with all_must_answer(run.strategy):
        trainer = Trainer(run)
        trainer.fit(log)
    return trainer
