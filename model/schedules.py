"""Learning-rate schedules, from Keras."""

import keras

from model.config import TrainingConfig

# Where a cosine ends, as a share of the learning rate.
_COSINE_FLOOR = 0.01


def learning_rate(
    config: TrainingConfig, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of each step.

    Args:
      config: rate, schedule and warm-up.
      total_steps: the step at which a cosine ends.
    """
    warmup = min(config.warmup_steps, max(total_steps - 1, 0))
    # A cosine over no steps stays where it starts; Keras wants at least one.
    floor = _COSINE_FLOOR if config.schedule == "cosine" else 1.0
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=max(total_steps - warmup, 1),
        alpha=floor,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
