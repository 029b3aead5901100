"""What several inputs are called in front of their keys, so that no two inputs share a key."""

import os
from collections.abc import Sequence
from itertools import combinations

from model.errors import InvalidInput


def name_inputs(inputs: Sequence[str]) -> list[str]:
    """The last part of each input's path; as many parts of all as it takes to tell them apart.

    Raises:
      InvalidInput: an input comes twice.
    """
    parts = [_parts(where) for where in inputs]
    for (one, first), (other, second) in combinations(zip(inputs, parts, strict=True), 2):
        if first == second:
            raise InvalidInput(f"--input {one} {other}: the same input twice; give it once")
    for length in range(1, 2 + max(map(len, parts), default=0)):
        names = ["/".join(of_one[-length:]) for of_one in parts]
        if not any(_may_clash(one, other) for one, other in combinations(names, 2)):
            return names
    raise InvalidInput(
        f"--input {' '.join(inputs)}: one lies in another, and their keys would be the same; "
        "caption them into two outputs"
    )


def _may_clash(one: str, other: str) -> bool:
    """Whether a key behind one name can equal a key behind the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _parts(where: str) -> list[str]:
    scheme, mark, rest = where.partition("://")
    path = f"{scheme}:/{rest}" if mark else os.path.abspath(where)  # noqa: PTH100
    return [part for part in path.split("/") if part]
