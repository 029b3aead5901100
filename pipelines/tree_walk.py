"""Walks a tree depth first; what comes next is listed in threads before it is asked for."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from pipelines.listing import THREADS

Node = TypeVar("Node")
Content = TypeVar("Content")
_AHEAD = 2 * THREADS


class Listing(NamedTuple, Generic[Node, Content]):
    """What was found at a node.

    Attributes:
      content: of the node itself.
      children: nodes below it, in order.
    """

    content: Content
    children: Sequence[Node]


def walk(
    root: Node,
    expand: Callable[[Node], Listing[Node, Content]],
    admit: Callable[[Content], bool] = lambda _: True,
) -> Generator[Content, None, None]:
    """List a tree in an order that depends on `expand` alone.

    Args:
      root: where to begin.
      expand: lists a node; called in threads, for at most a few nodes before they are needed.
      admit: called in order; whether a node is part of the tree, or it and what is below left
        out.

    Yields:
      The contents of the nodes, each before its children's.
    """
    stack: list[Node] = [root]
    ahead: dict[int, Future[Listing[Node, Content]]] = {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="list") as pool:
        try:
            while stack:
                # The next ones are those on top, and a node keeps its place until it is taken.
                for place in range(len(stack) - 1, max(len(stack) - _AHEAD, 0) - 1, -1):
                    if place not in ahead:
                        ahead[place] = pool.submit(expand, stack[place])
                stack.pop()
                content, children = ahead.pop(len(stack)).result()
                if admit(content):
                    yield content
                    stack.extend(reversed(children))
        finally:
            for future in ahead.values():
                future.cancel()
