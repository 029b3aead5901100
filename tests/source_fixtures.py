"""What inputs hold, all at once, for tests that look at every item."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.columns import Columns
from pipelines.keys import unique
from pipelines.sources import Sources


@dataclass(frozen=True)
class Listed:
    """What inputs hold, all at once.

    Attributes:
      items: with unique keys.
      skipped: what was passed over, by kind.
    """

    items: list[dict[str, Any]]
    skipped: dict[str, int]


def list_sources(inputs: str | Sequence[str], columns: Columns | None = None) -> Listed:
    """Lists inputs as a whole, with unique keys.

    Raises:
      InvalidInput: nothing is there, or it cannot be read as what it is.
    """
    sources = Sources([inputs] if isinstance(inputs, str) else inputs, columns)
    items = list(unique(sources))
    return Listed(items, sources.skipped)
