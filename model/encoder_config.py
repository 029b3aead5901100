"""Which of the encoder's layers are fitted, and how fast."""

from dataclasses import dataclass
from typing import ClassVar

from model.settings import Section

NONE = "none"
# From which of ResNet50's stages on, conv2 to conv5 (He et al. 2015, table 1).
FIRST_STAGES = {f"from_block_{stage}": stage for stage in (2, 3, 4, 5)}


@dataclass(frozen=True)
class EncoderConfig(Section):
    """How the encoder is fine-tuned, from records of images.

    Attributes:
      trainable: "none", or from which stage on convolutions are trained: "from_block_4" trains
        those of conv4 and conv5. Batch normalisation never is.
      learning_rate: the encoder's own, shaped by training's schedule and warm-up.
    """

    NAME: ClassVar[str] = "encoder"

    trainable: str = NONE
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        self.check_choice("trainable", (NONE, *FIRST_STAGES))
        self.check_range("learning_rate", 1e-9, 10.0)

    @property
    def is_trained(self) -> bool:
        """Whether any layer is."""
        return self.trainable != NONE
