"""Text to ids and back: the one definition that every stage shares.

A caption's tokens are those of coco-caption: Stanford's PTBTokenizer in lower case without
punctuation marks, here in Python, so that vocabulary, captions and scores agree and no
stage needs Java. Imports nothing heavy.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.errors import InvalidInput

SCHEMA_VERSION = 1
PAD, START, END, UNK = SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")

# Joins a clitic to the word before it. RE2 syntax (no look-around), since the exported graph
# applies the same pair with tf.strings.regex_replace; each clitic is replaced on its own.
CLITIC_PATTERN = r" ('(?:s|m|d|ll|re|ve)|n't)\b"
CLITIC_REPLACEMENT = r"\1"

# coco-caption drops these, and runs of full stops or hyphens.
_PUNCTUATION = frozenset("'`\".?!,:;-")
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_BRACKET_TOKEN = re.compile("-[lr][rsc]b-")

# Typographic variants, and the currency signs that PTB writes in ASCII.
_ASCII = str.maketrans("‘’‛′“”„″«»£€", "'" * 4 + '"' * 6 + "#$") | str.maketrans(
    {"–": " -- ", "—": " -- ", "…": " ... ", "¢": " cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)

# Words of up to five letters that keep the full stop behind them; so do single letters.
_ABBREVIATIONS = (
    "al|cf|co|ct|dr|ft|ga|jr|ky|lt|md|mo|mr|ms|mt|ph|rd|rt|sq|sr|st|va|vs|vt|wm|adj|adm|adv|ala|"
    "apr|aug|ave|bhd|cie|col|cos|cpl|dak|dec|det|drs|ens|esq|est|etc|ext|feb|fla|fri|gen|gov|"
    "hon|inc|ind|jan|jos|jul|jun|kan|ltd|maj|mar|mfg|mme|mon|mrs|mtg|neb|nev|nov|oct|pfc|plc|"
    "pte|pty|pvt|rep|rev|sen|sep|seq|sfc|sgt|spc|ste|sys|tel|thu|tue|wed|wis|wyo|alex|ariz|assn|"
    "asst|atty|bldg|blvd|brig|bros|capt|cmdr|colo|conn|corp|dept|elec|govs|insp|intl|invt|kans|"
    "mich|minn|mlle|mont|msgr|natl|okla|penn|ppty|pres|prof|reps|sens|sept|supt|tenn|tues|univ|"
    "wisc|assoc|attys|calif|comdr|lieut|profs|supts|thurs|treas"
)

_LETTER, _ALNUM = r"[^\W\d_]", r"[^\W_]"

# The first alternative that matches wins, so the special cases stand before the plain word.
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"<>()]*[^\s"<>().,;:!?']
  | [\w.+-]+@\w[\w-]*(?:\.[\w-]+)+ | @\w+ | \#{_LETTER}+  # mail, @names, #tags
  | </?[a-z]+/?>
  | [:;=]-?[()]                                            # smileys
  | '(?:s|m|d|ll|re|ve)(?!\w) | n't(?!\w)
  | 't(?=[ ]?(?:is|was)\b) | y'(?=[ ]?all\b)               # 'tis, y'all, joined or not
  | 'n' | 'n(?!\w)                                         # rock 'n' roll
  | (?<!\w)'\d\ds?(?!\w) | 'em(?!\w)                      # the '70s
  | (?:can(?=not)|gon(?=na)|wan(?=na)|got(?=ta)|lem(?=me)|gim(?=me))(?=\w\w\w?(?![\w'-]))
  | (?:o'clock|ma'am|c'mon|s'mores|[eo]'er|ne'er|ol')(?!\w)
  | [a-z]{{1,2}}&[a-z](?!\w)                                # at&t
  | (?:{_LETTER}\.)+(?:{_LETTER}(?!\w)\.?)? (?!\w)         # u.s. and initials
  | (?:{_ABBREVIATIONS})\.(?!\w)
  | (?:nos?|figs?|pp)\.(?=\s*\d)
  | [-+]?\d+(?:[.,]\d+)+(?:-{_LETTER}+)* | [-+]?\d+(?::\d+)+ # 1,000  3.5-inch  10:30
  | [-+]?[.,:]\d+
  | {_LETTER}+?(?=n't(?!\w))
  | [odl]'(?={_LETTER}{{2}}){_ALNUM}+(?:-{_ALNUM}+)*         # o'neil
  | {_LETTER}+(?:[.!?]{_LETTER}+)+                         # a blank forgotten: end.the
  | {_ALNUM}+(?:[-/_]{_ALNUM}+)*                           # hyphenated words stay whole
  | (?<![-+])[-+]\d+
  | \.{{2,}} | [!?]{{2,}} | -{{2,}} | \*+ | _+ | \S
    """,
    re.VERBOSE,
)


def ptb_tokens(text: str) -> list[str]:
    """Split text as coco-caption does; brackets come out as `-lrb-` and the like."""
    # JSON may smuggle in half a surrogate pair, which no file can hold.
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = unicodedata.normalize("NFC", text).translate(_ASCII).lower()
    tokens = (token.translate(_BRACKETS) for token in _TOKEN.findall(text))
    return [token for token in tokens if token not in _PUNCTUATION and token.strip("-.")]


def tokenise(text: str) -> list[str]:
    """Split a caption into the words that a captioner learns.

    These are `ptb_tokens` without brackets: coco-caption means to drop brackets, but looks
    for `-LRB-` after lower-casing, so that its scores count them.
    """
    return [token for token in ptb_tokens(text) if not _BRACKET_TOKEN.search(token)]


def detokenise(words: Iterable[str]) -> str:
    """Join words with blanks and clitics to the word before: "man 's" becomes "man's"."""
    return re.sub(CLITIC_PATTERN, CLITIC_REPLACEMENT, " ".join(words))


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
        ids = (self._ids.get(word, self.unk_id) for word in words)
        special = {self.pad_id, self.start_id, self.end_id}
        return [self.unk_id if index in special else index for index in ids]

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
