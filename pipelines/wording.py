"""Wording that several messages share."""

from collections.abc import Sequence

_DIGEST_SHOWN = 12
_NAMED = 5


def short(digest: str) -> str:
    """A hex digest as messages show it: enough to tell two apart."""
    return digest[:_DIGEST_SHOWN]


def some_of(names: Sequence[str], most: int = _NAMED) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
