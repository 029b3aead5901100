"""Walks trees depth first; what comes next is listed in threads before it is asked for.

A tree of ten million files is walked elsewhere from some place on: what is left to list is a row
of branches, which others may list each for itself (pipelines/listing_job).
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from pipelines.listing import Found

# Clients of buckets keep ten connections, and warn of each one more.
THREADS = 8
_AHEAD = 2 * THREADS
# Weight of the nodes that are listed before others are called in; a listing call weighs 1. That
# many take seconds on a bucket, as a job on another machine takes to begin.
HERE = 1000


@dataclass(frozen=True)
class Listed:
    """What was found at a node; all of it can be written as JSON.

    Attributes:
      items: the images (pipelines/listing), in order.
      skipped: what was passed over, by kind.
      children: nodes below it, in order.
      path: of a directory.
      real: its path without links.
      links: paths of the links in it that lead to directories.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    children: Sequence[Any] = ()
    path: str | None = None
    real: str | None = None
    links: list[str] = field(default_factory=list)


class Branch(NamedTuple):
    """A node that is not listed yet: how far below the roots, and what it is, as JSON has it."""

    depth: int
    node: Any


class Nodes(Protocol):
    """What a kind of tree is made of; can be pickled.

    Attributes:
      weight: what it costs to list a node, in listing calls.
    """

    weight: ClassVar[int]

    def opened(self) -> Callable[[Any], Listed]:
        """What lists a node in this process, by threads; raises InvalidInput as they shall."""


class Elsewhere(Protocol):
    """Lists the branches that a walk has left."""

    def __call__(self, branches: Sequence[Branch], nodes: Nodes) -> Iterator[tuple[int, Listed]]:
        """Depths and contents of the branches' nodes, in the order of `Walk`."""


class Walk:
    """Lists the nodes of branches, each before those below it, in an order that threads keep.

    Attributes:
      weight: of the nodes listed so far.
    """

    def __init__(self, branches: Iterable[Branch], nodes: Nodes) -> None:
        self._stack = list(branches)[::-1]
        self._nodes = nodes
        self._ahead: dict[int, Future[Listed]] = {}
        self.weight = 0

    @property
    def left(self) -> list[Branch]:
        """What is not listed yet, in order."""
        return self._stack[::-1]

    def __iter__(self) -> Generator[tuple[int, Listed]]:
        """Depth and content of each node; raises what listing one does."""
        expand = self._nodes.opened()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="list") as pool:
            try:
                while stack := self._stack:
                    # The next ones are those on top, and a node keeps its place until its turn.
                    for place in range(len(stack) - 1, max(len(stack) - _AHEAD, 0) - 1, -1):
                        if place not in self._ahead:
                            self._ahead[place] = pool.submit(expand, stack[place].node)
                    depth = stack.pop().depth
                    listed = self._ahead.pop(len(stack)).result()
                    stack.extend(Branch(depth + 1, node) for node in reversed(listed.children))
                    self.weight += self._nodes.weight
                    yield depth, listed
            finally:
                for future in self._ahead.values():
                    future.cancel()
                self._ahead.clear()

    def leave_out(self, depth: int) -> None:
        """Leave out what is below the node of this depth that was listed last."""
        while self._stack and self._stack[-1].depth > depth:
            self._stack.pop()


def find(
    roots: Iterable[Any], nodes: Nodes, skipped: Counter[str], elsewhere: Elsewhere | None
) -> Iterator[Found]:
    """The images of trees.

    Args:
      roots: as of `walk`.
      nodes: likewise.
      skipped: counts what is passed over, by kind.
      elsewhere: as of `walk`.
    """
    for listed in walk(roots, nodes, elsewhere):
        skipped.update(listed.skipped)
        yield from map(Found, listed.items)


def walk(
    roots: Iterable[Any],
    nodes: Nodes,
    elsewhere: Elsewhere | None = None,
    admit: Callable[[Listed], bool] = lambda _: True,
) -> Generator[Listed]:
    """List trees in an order that depends on the trees alone.

    Args:
      roots: nodes where to begin.
      nodes: what lists a node; called in threads, for a few nodes before they are needed.
      elsewhere: lists what is left once HERE is spent; None where all is listed in this process.
      admit: called in order; whether a node is part of the tree, or it and what is below left
        out.

    Yields:
      The contents of the nodes, each before those of its children.
    """
    here = Walk((Branch(0, root) for root in roots), nodes)
    for depth, listed in here:
        if admit(listed):
            yield listed
        else:
            here.leave_out(depth)
        if elsewhere is not None and here.weight >= HERE:
            break
    if elsewhere is None or not here.left:
        return
    left_out: int | None = None
    for depth, listed in elsewhere(here.left, nodes):
        if left_out is not None and depth > left_out:
            continue
        left_out = None
        if admit(listed):
            yield listed
        else:
            left_out = depth
