"""What the sections of a configuration share: checks that name the field and the valid values."""

import math
from typing import ClassVar

from model.errors import InvalidInput


class Section:
    """Base of a frozen dataclass of settings.

    Attributes:
      NAME: of the section in config.json and in errors.
    """

    NAME: ClassVar[str]

    def check_range(self, name: str, low: float, high: float | None = None) -> None:
        """Raise InvalidInput unless a field is finite and low ≤ value ≤ high."""
        value = getattr(self, name)
        in_range = value >= low and (high is None or value <= high)
        if not (in_range and math.isfinite(value)):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise InvalidInput(f"{self.NAME}.{name} {value}, expected {allowed}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise InvalidInput unless a field is one of the choices."""
        value = getattr(self, name)
        if value not in choices:
            raise InvalidInput(
                f"{self.NAME}.{name} {value!r}, expected one of {', '.join(choices)}"
            )
