"""Frozen, validated settings of decoder, search, training and encoder; JSON round trip.

`--config FILE.json` holds any subset of the fields by section, `--set FIELD=VALUE` one
field, named alone or with its section (`--set dropout=0.3`, `--set decoder.dropout=0.3`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from model.encoder_config import EncoderConfig
from model.errors import InvalidInput
from model.settings import Section
from model.training_config import FLOAT32, TrainingConfig

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class DecoderConfig(Section):
    """Sizes of the decoder.

    Attributes:
      embedding_size: E, of a word.
      hidden_size: H, of every GRU and of a projected grid cell.
      attention_size: A, in which query and cells are compared.
      num_layers: GRUs in all: one that attends, the rest that write; at least 2.
      dropout: share of embedding, cell and output units dropped in training.
      tie_embeddings: the output layer's weights are the words' embeddings (Press and Wolf 2017),
        with a projection where hidden_size is another.
      normalise_cells: divide each projected grid cell by its root mean square (Zhang and Sennrich
        2019) before its place is added.
    """

    NAME: ClassVar[str] = "decoder"

    embedding_size: int = 512
    hidden_size: int = 512
    attention_size: int = 512
    num_layers: int = 2
    dropout: float = 0.5
    tie_embeddings: bool = False
    normalise_cells: bool = False

    def __post_init__(self) -> None:
        self.check_range("embedding_size", 1)
        self.check_range("hidden_size", 1)
        self.check_range("attention_size", 1)
        self.check_range("num_layers", 2, 16)
        self.check_range("dropout", 0.0, 0.95)


@dataclass(frozen=True)
class SearchConfig(Section):
    """How a caption is searched for.

    Attributes:
      beam_width: hypotheses kept; 1 is greedy.
      max_length: T, most words of a caption.
      length_penalty: alpha of Wu et al. 2016, eq. 14: captions are ranked by
        log P / ((5 + words and `<end>`) / 6)^alpha; 0 ranks by log P alone.
      min_length: fewest words of a caption that could go on.
      block_ngrams: no n-gram of that many words is written twice in a caption; 0 allows all.
    """

    NAME: ClassVar[str] = "search"

    beam_width: int = 3
    max_length: int = 20
    length_penalty: float = 0.0
    min_length: int = 0
    block_ngrams: int = 0

    def __post_init__(self) -> None:
        self.check_range("beam_width", 1, 64)
        self.check_range("max_length", 1, 256)
        self.check_range("length_penalty", 0.0, 10.0)
        self.check_range("min_length", 0, self.max_length)
        self.check_range("block_ngrams", 0, 16)


@dataclass(frozen=True)
class Config:
    """Everything that decides a trained model, besides its records."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        training = self.training
        if self.encoder.is_trained and (training.xla or training.precision != FLOAT32):
            raise InvalidInput(
                f"encoder.trainable {self.encoder.trainable} with training.precision "
                f"{training.precision} and training.xla {str(training.xla).lower()}, expected "
                f"precision {FLOAT32} and xla false: an encoder is fine-tuned so alone"
            )

    def to_json(self) -> str:
        """Canonical text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any], source: str) -> "Config":
        """Fill in defaults and validate; `source` names the input in errors."""
        config = cls()
        if not isinstance(sections, Mapping):
            raise InvalidInput(f"{source}: got {type(sections).__name__}, expected an object")
        for section, values in sections.items():
            if section not in _SECTIONS or not isinstance(values, Mapping):
                raise InvalidInput(
                    f"{source}: section {section!r}, expected objects named {', '.join(_SECTIONS)}"
                )
            config = config.updated((f"{section}.{name}", value) for name, value in values.items())
        return config

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        """Read a JSON file of settings."""
        try:
            sections = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise InvalidInput(f"{path}: not JSON ({error})") from error
        return cls.from_dict(sections, str(path))

    def updated(self, changes: Iterable[tuple[str, Any]]) -> "Config":
        """A copy with fields changed; each named "section.field" or, alone, "field"."""
        # A section changes at once: whether fields fit together must not depend on their order.
        parts: dict[str, dict[str, Any]] = {}
        for name, value in changes:
            section, attribute = _locate(name)
            parts.setdefault(section, {})[attribute] = _typed(section, attribute, value)
        changed = {name: replace(getattr(self, name), **part) for name, part in parts.items()}
        return replace(self, **changed)


_SECTIONS: dict[str, type] = {
    section.NAME: section
    for section in (DecoderConfig, SearchConfig, TrainingConfig, EncoderConfig)
}


def parse_setting(text: str) -> tuple[str, Any]:
    """Read the FIELD=VALUE of `--set`; the value is JSON, or else a plain string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"--set {text!r}, expected FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _locate(name: str) -> tuple[str, str]:
    known = {
        f"{section}.{part.name}": (section, part.name)
        for section, kind in _SECTIONS.items()
        for part in fields(kind)
    }
    # Alone, learning_rate is training's: the first section that has a name.
    for section, attribute in list(known.values()):
        known.setdefault(attribute, (section, attribute))
    if name not in known:
        choices = ", ".join(sorted(choice for choice in known if "." in choice))
        raise InvalidInput(f"no setting {name!r}, expected one of {choices}")
    return known[name]


def _typed(section: str, attribute: str, value: Any) -> Any:
    wanted = get_type_hints(_SECTIONS[section])[attribute]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
        raise InvalidInput(f"{section}.{attribute} {value!r}, expected {wanted.__name__}")
    return value
