"""Text to words and back: the tokens of coco-caption's reference.

A caption's tokens are those of Stanford's PTBTokenizer in lower case without punctuation
marks, here in Python, so that vocabulary, captions and scores agree and no stage needs Java.
"""

import re
import unicodedata
from collections.abc import Iterable

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
    | {"\N{SOFT HYPHEN}": None}
)

_LAST_OF_BMP, _EMOJI_STYLE = 0xFFFF, "\N{VARIATION SELECTOR-16}"

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


def _marks() -> str:
    """Combining marks, which \\w leaves out: accents that NFC cannot join, vowel signs of Hindi.

    As ranges for a character class of `re`.
    """
    runs: list[list[int]] = []
    for code in range(0x300, 0xFE00):
        if unicodedata.category(chr(code)).startswith("M"):
            if runs and runs[-1][1] == code - 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


_MARKS = _marks()
# Powers stand alone, as in the reference.
_LETTER, _ALNUM = rf"(?:[^\W\d_¹²³][{_MARKS}]*)", rf"(?:[^\W_¹²³][{_MARKS}]*)"

# Nine words of ten: what is followed by a blank or a comma is none of the special cases that
# begin with a letter, but for the joined words.
_PLAIN_WORD = "(?!cannot|gonna|wanna|gotta|lemme|gimme)[a-z]+(?=[ ,]|$)"

# The first alternative that matches wins, so the special cases stand before any other word.
_TOKEN = re.compile(
    rf"""
    {_PLAIN_WORD}
  | (?:https?://|www\.)[^\s"<>()]*[^\s"<>().,;:!?']
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
    # Neither brackets nor what follows concern a word of letters and digits.
    return [
        token if token.isalnum() else token.translate(_BRACKETS)
        for token in _TOKEN.findall(text)
        if token.isalnum()
        or (token not in _PUNCTUATION and token.strip("-.") and not _is_dropped(token))
    ]


def _is_dropped(token: str) -> bool:
    """Whether it is a character that the reference cannot read: an emoji, or an invisible one."""
    if len(token) > 1 or token.isascii():
        return False
    is_symbol = ord(token) > _LAST_OF_BMP and not token.isalnum()
    return is_symbol or token == _EMOJI_STYLE or unicodedata.category(token) in ("Cc", "Cf")


def tokenise(text: str) -> list[str]:
    """Split a caption into the words that a captioner learns.

    These are `ptb_tokens` without brackets: coco-caption means to drop brackets, but looks
    for `-LRB-` after lower-casing, so that its scores count them.
    """
    return [
        token for token in ptb_tokens(text) if token.isalnum() or not _BRACKET_TOKEN.search(token)
    ]


def detokenise(words: Iterable[str]) -> str:
    """Join words with blanks and clitics to the word before: "man 's" becomes "man's"."""
    return re.sub(CLITIC_PATTERN, CLITIC_REPLACEMENT, " ".join(words))
