"""Reads the long lists of a JSON file one element at a time, so that the whole is never held.

COCO's captions are 90 MB of text and ten times that as Python objects.
"""

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from model.errors import InvalidInput
from pipelines import storage

Handler = Callable[[int, Any], None]
"""Takes an element's position in its list, and the element."""

_CHUNK_BYTES = 2**20
_BLANK = " \t\n\r"
_AFTER_VALUE = frozenset((*_BLANK, *",:]}"))


def read_lists(path: str, handlers: Mapping[str, Handler], expected: str) -> set[str]:
    """Give the elements of the top object's lists to their handlers, in the file's order.

    Args:
      path: a JSON file on any Beam filesystem.
      handlers: by the name of the list; other fields are passed over.
      expected: what the file should be, for messages.

    Returns:
      Names of those lists that the file has.

    Raises:
      InvalidInput: missing, or not JSON.
    """
    try:
        with storage.open_read(path) as file:
            return _read_object(_Window(file), handlers)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}), expected {expected}") from error
    # A parser of the whole says where it is wrong; brackets nested by the thousand end one with
    # the second error.
    except (ValueError, RecursionError):
        _explain(path, expected)
        return set()


def read_elements(
    file: BinaryIO, name: str, longest: float = math.inf
) -> Iterator[tuple[bool, Any]]:
    """The elements of the top list, or of the list `name` of the top object, one after the other.

    What follows that list in the object is not read.

    Args:
      file: JSON, open for reading.
      name: of the list.
      longest: characters of a value, above which no more is read.

    Yields:
      Whether the element is the object's, and the element.

    Raises:
      ValueError, RecursionError: not JSON, without such a list, or a value without end.
    """
    window = _Window(file, longest)
    in_object = window.peek() != "["
    if in_object:
        _step_into(window, name)
    for element in _elements(window):
        yield in_object, element
    if not in_object:
        window.expect("")


def _step_into(window: "_Window", name: str) -> None:
    """Go on to a list of the top object."""
    window.expect("{")
    while not window.accept("}"):
        found = window.value()
        window.expect(":")
        if window.peek() == "[":
            if found == name:
                return
            for _ in _elements(window):
                pass
        else:
            window.value()
        window.accept(",")
    raise ValueError(f"no list {name!r} in it")


def _explain(path: str, expected: str) -> None:
    """Raise InvalidInput with the place of the error; nothing when the file is other JSON."""
    try:
        json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: invalid JSON ({error}), expected {expected}; download it again"
        ) from error


def _read_object(window: "_Window", handlers: Mapping[str, Handler]) -> set[str]:
    found = set()
    window.expect("{")
    more = not window.accept("}")
    while more:
        name = window.value()
        window.expect(":")
        if window.peek() == "[":
            handler = handlers.get(name)
            for position, element in enumerate(_elements(window)):
                (handler or _pass_over)(position, element)
            found |= {name} if handler else set()
        else:
            window.value()
        more = window.accept(",")
        if not more:
            window.expect("}")
    window.expect("")
    return found


def _elements(window: "_Window") -> Iterator[Any]:
    window.expect("[")
    if window.accept("]"):
        return
    while True:
        yield window.value()
        if not window.accept(","):
            window.expect("]")
            return


def _pass_over(position: int, element: Any) -> None:
    del position, element


class _Window:
    """The part of a text that is being parsed; grows where a value does not fit."""

    def __init__(self, file: BinaryIO, longest: float = math.inf) -> None:
        self._file, self._longest = file, longest
        first = file.read(_CHUNK_BYTES)
        # As json.loads reads bytes.
        decoder = codecs.getincrementaldecoder(json.detect_encoding(first))
        self._decode = decoder("surrogatepass").decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = self._decode(first), 0, False

    def peek(self) -> str:
        """The next character that is no blank, or "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANK:
                    return self._text[self._at]
                self._at += 1
            if not self._grow():
                return ""

    def accept(self, character: str) -> bool:
        """Step over a character if it comes next."""
        found = self.peek() == character
        self._at += found and len(character)
        return found

    def expect(self, character: str) -> None:
        """Step over a character, "" for the end; ValueError when another comes."""
        if not self.accept(character):
            raise ValueError(f"{self.peek()!r}, expected {character!r}")

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except ValueError:
                if not self._grow():
                    raise
                continue
            # A number may go on behind the window: of "-1." that ends it, -1 is a value.
            if self._text[end : end + 1] not in _AFTER_VALUE and self._grow():
                continue
            self._at = end
            return value

    def _grow(self) -> bool:
        """Drop what was parsed and read on; False at the end of the file.

        Raises:
          ValueError: a value is longer than any may be.
        """
        if self._ended:
            return False
        begun = len(self._text) - self._at
        if begun > self._longest:
            raise ValueError(f"a value of over {self._longest} characters")
        # As much again as is there, so that a huge value is not parsed once a megabyte.
        data = self._file.read(max(_CHUNK_BYTES, begun))
        self._ended = not data
        self._text = self._text[self._at :] + self._decode(data, final=self._ended)
        self._at = 0
        return not self._ended
