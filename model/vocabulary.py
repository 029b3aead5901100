"""Text to ids and back: the one definition that every stage shares.

A caption's words are those of model/tokeniser. Imports nothing heavy.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.errors import InvalidInput
from model.tokeniser import detokenise, tokenise

SCHEMA_VERSION = 1
_KERAS_CLASS = "Tokenizer"
PAD, START, END, UNK = SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Words by id; V of them, the four special ones included.

    Attributes:
      words: word of each id; `<pad>` is 0, the other specials are found by name.

    Raises:
      InvalidInput: a special word is missing, `<pad>` is not 0, or a word is there twice.
    """

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {word: index for index, word in enumerate(self.words)}
        if missing := [word for word in SPECIALS if word not in ids]:
            raise InvalidInput(f"vocabulary without {missing[0]}, expected all of {SPECIALS}")
        if len(ids) != len(self.words):
            twice = next(word for index, word in enumerate(self.words) if ids[word] != index)
            raise InvalidInput(f"vocabulary has {twice!r} twice, expected each word once")
        if ids[PAD] != 0:
            raise InvalidInput(f"vocabulary has {PAD} at {ids[PAD]}, expected at 0")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def pad_id(self) -> int:
        """Fills the end of a batch's shorter captions; always 0."""
        return self._ids[PAD]

    @property
    def start_id(self) -> int:
        """Fed before the first word."""
        return self._ids[START]

    @property
    def end_id(self) -> int:
        """Learned after the last word."""
        return self._ids[END]

    @property
    def unk_id(self) -> int:
        """Stands for every word that is not in the vocabulary."""
        return self._ids[UNK]

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the words in order as canonical JSON."""
        canonical = json.dumps(self.words, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a caption's words, `unk_id` for unknown ones; no start, no end."""
        return self.encode_words(tokenise(text))

    def encode_words(self, words: Iterable[str]) -> list[int]:
        """Ids of words already split; the text "<pad>" of a caption is no padding."""
        ids, unk_id = self._caption_ids, self.unk_id
        return [ids.get(word, unk_id) for word in words]

    @cached_property
    def _caption_ids(self) -> dict[str, int]:
        """Ids of the words that a caption may have."""
        return {word: index for word, index in self._ids.items() if word not in (PAD, START, END)}

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first `end_id`, without padding and start.

        Raises:
          IndexError: an id outside 0..V-1.
        """
        words = []
        for index in map(int, ids):
            if index == self.end_id:
                break
            if not 0 <= index < len(self.words):
                raise IndexError(f"id {index}, expected 0 to {len(self.words) - 1}")
            if index not in (self.pad_id, self.start_id):
                words.append(self.words[index])
        return detokenise(words)

    @classmethod
    def build(cls, counts: Mapping[str, int], min_count: int) -> "Vocabulary":
        """Specials at 0..3, then words seen at least `min_count` times, most frequent first."""
        kept = [w for w, n in counts.items() if n >= min_count and w not in SPECIALS]
        return cls((*SPECIALS, *sorted(kept, key=lambda word: (-counts[word], word))))

    def to_json(self) -> str:
        """Canonical text: the same vocabulary always has the same bytes."""
        fields = {"schema_version": SCHEMA_VERSION, "words": self.words}
        return json.dumps(fields, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "vocabulary") -> "Vocabulary":
        """Read `to_json`'s text; `source` names it in errors."""
        fields = _json_object(text, source)
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInput(
                f"{source}: schema version {fields.get('schema_version')}, expected "
                f"{SCHEMA_VERSION}; use a vocabulary.json that captionbeam preprocess wrote"
            )
        words = fields.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvalidInput(f"{source}: no list of strings under 'words'; run preprocess again")
        return _checked(words, source)

    def save(self, path: str | Path) -> None:
        """Write `to_json`, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        temporary.write_text(self.to_json(), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a saved vocabulary.

        Raises:
          InvalidInput: no such file, or not one of ours.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"{path}: cannot be read ({error}), expected the vocabulary.json of a records or "
                "model directory"
            ) from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_keras_tokenizer(cls, text: str, source: str = "tokenizer") -> "Vocabulary":
        """Read `Tokenizer.to_json()` as TensorFlow's captioning tutorial saved it.

        Its `word_index` starts at 1 with the most frequent word, `<pad>` was set to 0 by hand
        (or is absent), and only ids below `num_words` are ever produced.
        """
        try:
            config = _json_object(text, source)["config"]
            index = config["word_index"]
            # Keras writes the table as JSON text inside the JSON.
            index = json.loads(index) if isinstance(index, str) else index
            ids = {word: int(number) for word, number in index.items()}
            limit = int(config.get("num_words") or max(ids.values()) + 1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"{source}: no word_index, expected the text of a Keras Tokenizer.to_json()"
            ) from error
        words = {0: PAD} | {number: word for word, number in ids.items() if number < limit}
        if sorted(words) != list(range(len(words))):
            raise InvalidInput(
                f"{source}: word_index has gaps or negative ids, expected 1, 2, 3 and so on"
            )
        return _checked([words[number] for number in range(len(words))], source)

    def to_keras_tokenizer(self) -> str:
        """The text of a Keras `Tokenizer.to_json()` with this vocabulary's ids.

        `from_keras_tokenizer` reads it back to the same vocabulary, and Keras' own
        `tokenizer_from_json` loads it. That Tokenizer splits at blanks alone, so it has to be fed
        words that `tokenise` has split, joined by blanks. How often a word was seen is not known.
        """
        index = {word: number for number, word in enumerate(self.words)}
        tables: dict[str, Mapping[Any, Any]] = {
            "word_counts": {},
            "word_docs": {},
            "index_docs": {},
            "index_word": dict(enumerate(self.words)),
            "word_index": index,
        }
        config = {
            "num_words": len(self),
            "filters": "",
            "lower": True,
            "split": " ",
            "char_level": False,
            "oov_token": UNK,
            "document_count": 0,
            **{name: json.dumps(table) for name, table in tables.items()},
        }
        return json.dumps({"class_name": _KERAS_CLASS, "config": config})

    @classmethod
    def from_text(cls, text: str, source: str = "vocabulary") -> "Vocabulary":
        """Read `to_json`'s text or that of a Keras Tokenizer, whichever it is."""
        is_keras = "word_index" in str(_json_object(text, source).get("config"))
        return (cls.from_keras_tokenizer if is_keras else cls.from_json)(text, source)


def _json_object(text: str, source: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{source}: not JSON ({error}); write it again") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{source}: JSON {type(fields).__name__}, expected an object")
    return fields


def _checked(words: Sequence[str], source: str) -> Vocabulary:
    try:
        return Vocabulary(tuple(words))
    except InvalidInput as error:
        raise InvalidInput(f"{source}: {error}") from error
