"""How the decoder is fitted."""

from dataclasses import dataclass
from typing import ClassVar

from model.errors import InvalidInput
from model.settings import Section

CROSS_ENTROPY, SELF_CRITICAL = STAGES = ("cross_entropy", "self_critical")
MEAN, GREEDY = BASELINES = ("mean", "greedy")
CONSTANT, COSINE, STEP, PLATEAU = SCHEDULES = ("constant", "cosine", "step", "plateau")

FLOAT32, BFLOAT16, FLOAT16 = PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """How the decoder is fitted.

    Attributes:
      stage: what is minimised: "cross_entropy" of the captions; or "self_critical" (Rennie et al.
        2017): captions are drawn from the model and made likelier the more their CIDEr-D exceeds
        a baseline's. The second begins with --init_from; label smoothing and scheduled sampling
        belong to the first.
      samples: self-critical: captions drawn an image.
      baseline: self-critical: "mean" of the image's other samples (Luo 2020), or the "greedy"
        caption (Rennie et al. 2017).
      batch_size: images a step over all replicas, each with all its captions.
      epochs: passes over the training split, when no number of steps is given.
      learning_rate: Adam's, after warm-up.
      schedule: "constant"; "cosine" down to a hundredth at the last step; "step", times
        `decay_rate` every `decay_epochs`; "plateau", times `decay_rate` after `patience`
        validations without a better CIDEr.
      warmup_steps: steps of linear growth from 0.
      decay_rate: factor of the step and plateau schedules.
      decay_epochs: epochs between two steps of the step schedule.
      patience: validations in a row that the plateau schedule waits for a better score.
      clip_value: largest magnitude of a gradient's element, before clip_norm; 0 is any.
      clip_norm: largest global norm of a gradient; 0 is any.
      label_smoothing: share of a target's probability spread over the vocabulary.
      scheduled_sampling: share of input words drawn from the model instead of the caption, at
        the end of the ramp (Bengio et al. 2015).
      scheduled_sampling_epochs: epochs over which that share grows from 0; 0 is at once.
      attention_penalty: weight of the doubly stochastic attention penalty (Xu et al. 2015).
      l2: weight of half the sum of squares of every weight matrix.
      ema_decay: of the moving average of the weights that is validated and kept as the best;
        0 is the weights themselves.
      precision: of training's matmuls and attention, one of PRECISIONS; weights, softmax, loss,
        gradients and Adam are float32 in each, and so is all decoding. float16 scales the loss.
      xla: compile loss and gradient of the cross-entropy with XLA, once for each padded size of a
        batch.
      seed: of initial weights, shuffling, dropout and sampling.
      shuffle_buffer: records held to be shuffled.
      checkpoint_steps: steps between checkpoints.
      validation_steps: steps between validations; 0 is once an epoch.
      validation_split: split that picks the best checkpoint.
      validation_images: most images of it that are captioned; 0 is all.
    """

    NAME: ClassVar[str] = "training"

    stage: str = CROSS_ENTROPY
    samples: int = 5
    baseline: str = MEAN
    batch_size: int = 32
    epochs: int = 30
    learning_rate: float = 5e-4
    schedule: str = COSINE
    warmup_steps: int = 200
    decay_rate: float = 0.8
    decay_epochs: int = 3
    patience: int = 3
    clip_value: float = 0.0
    clip_norm: float = 5.0
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    scheduled_sampling_epochs: int = 0
    attention_penalty: float = 0.0
    l2: float = 0.0
    ema_decay: float = 0.0
    precision: str = FLOAT32
    xla: bool = False
    seed: int = 0
    shuffle_buffer: int = 1024
    checkpoint_steps: int = 500
    validation_steps: int = 0
    validation_split: str = "val"
    validation_images: int = 0

    def __post_init__(self) -> None:
        self.check_choice("stage", STAGES)
        self.check_choice("baseline", BASELINES)
        # One alone has no others to be better than.
        self.check_range("samples", 2 if self.baseline == MEAN else 1, 64)
        self.check_range("batch_size", 1)
        self.check_range("epochs", 1)
        self.check_range("learning_rate", 1e-9, 10.0)
        self.check_choice("schedule", SCHEDULES)
        self.check_range("warmup_steps", 0)
        self.check_range("decay_rate", 0.01, 1.0)
        self.check_range("decay_epochs", 1)
        self.check_range("patience", 1)
        self.check_range("clip_value", 0.0)
        self.check_range("clip_norm", 0.0)
        self.check_range("label_smoothing", 0.0, 0.5)
        self.check_range("scheduled_sampling", 0.0, 1.0)
        self.check_range("scheduled_sampling_epochs", 0)
        self.check_range("attention_penalty", 0.0)
        self.check_range("l2", 0.0)
        self.check_range("ema_decay", 0.0, 0.99999)
        self.check_choice("precision", PRECISIONS)
        if self.xla and self.stage == SELF_CRITICAL:
            # The reward is plain Python in the middle of what would be compiled.
            raise InvalidInput(
                f"training.xla true with training.stage {SELF_CRITICAL}, expected "
                f"{CROSS_ENTROPY}; set xla=false for this stage"
            )
        self.check_range("seed", 0, 1_000_000)
        self.check_range("shuffle_buffer", 1)
        self.check_range("checkpoint_steps", 1)
        self.check_range("validation_steps", 0)
        self.check_range("validation_images", 0)
