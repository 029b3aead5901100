"""Caption one or a few images or URLs.

    captionbeam caption photo.jpg https://example.org/cat.png --model models/captioner
    captionbeam caption *.jpg --server localhost:8500 --explain attention/

Prints `image: caption` for each. An image that cannot be captioned is named on stderr with
the reason, and the others are captioned all the same; the exit code is then 1.
For many images use `captionbeam bulk`.
"""

import argparse
import io
import json
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from model.errors import InvalidInput, ItemFailure, Reason
from model.startup import import_tensorflow
from pipelines import fetch_settings
from serving import flags

if TYPE_CHECKING:
    from serving.client import CaptionResult, Client, Explained

Read = Callable[[str], bytes]
_Result = TypeVar("_Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_URL", help="file, http or https URL")
    flags.add_target(parser)
    parser.add_argument(
        "--explain", metavar="DIR", type=Path, help="draw where the model looked at each word"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    fetch_settings.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Captions every image; 1 if one failed. Raises CaptionbeamError for model or server."""
    target, settings = flags.target(args), fetch_settings.from_arguments(args)
    import_tensorflow()
    from serving.client import connect_to

    pictures = _Pictures(args.explain) if args.explain else None
    report = _print_json if args.json else _print_text
    failed = 0
    with (
        connect_to(target) as client,
        _Reader(settings) as reader,
    ):
        for row in caption_each(args.images, client, reader, pictures):
            report(row)
            failed += "reason" in row
    return 1 if failed else 0


def caption_each(
    sources: Sequence[str], client: "Client", read: Read, pictures: "_Pictures | None" = None
) -> Iterator[dict[str, Any]]:
    """One row for each source, in order.

    Args:
      sources: files and URLs.
      client: where captions come from.
      read: source → bytes, or ItemFailure.
      pictures: draws the attention, if wanted.

    Yields:
      key, caption, log_prob, width, height, model and model_version; or key, reason and
      message.
    """
    for source in sources:
        try:
            yield {"key": source} | _caption(source, client, read, pictures)
        except ItemFailure as failure:
            yield {"key": source, "reason": str(failure.reason), "message": failure.message}


def _caption(
    source: str, client: "Client", read: Read, pictures: "_Pictures | None"
) -> dict[str, Any]:
    from model.image_bytes import canonicalise

    image = canonicalise(read(source))
    result: CaptionResult
    if pictures is None:
        result = _found(client.caption_each([image.data])[0])
    else:
        result = _found(client.explain_each([image.data])[0])
        pictures.draw(source, image.data, result)
    name, _ = client.model
    return {
        "caption": result.caption,
        "log_prob": result.log_prob,
        "width": image.width,
        "height": image.height,
        "model": name,
        "model_version": result.model_version,
    }


def _found(outcome: _Result | ItemFailure) -> _Result:
    if isinstance(outcome, ItemFailure):
        raise outcome
    return outcome


class _Reader:
    """Reads files and, through the one guarded way, URLs."""

    def __init__(self, settings: fetch_settings.FetchSettings) -> None:
        self._settings = settings
        self._fetcher: Any = None
        self._open = ExitStack()

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, source: str) -> bytes:
        if not _is_url(source):
            return _read_file(Path(source))
        if self._fetcher is None:
            from pipelines.fetch import Fetcher

            self._fetcher = self._open.enter_context(Fetcher(self._settings))
        return bytes(self._fetcher.fetch(source))


class _Pictures:
    """Draws DIR/STEM.png for each image; a stem that comes again gets a number."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"--explain {directory}: {error.strerror}; give a directory"
            ) from error
        self._directory = directory
        self._names: set[str] = set()

    def draw(self, source: str, data: bytes, result: "Explained") -> None:
        """Draws canonical image bytes with the attention of each word."""
        import numpy as np
        from PIL import Image

        from model.figures import draw_attention

        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
        path = self._directory / f"{self._name(source)}.png"
        try:
            draw_attention(pixels, result.words, result.attention, result.places, path)
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be written ({error.strerror})") from error

    def _name(self, source: str) -> str:
        path = urlsplit(source).path if _is_url(source) else source
        stem = re.sub(r"[^\w.-]", "_", Path(path).stem) or "image"
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name)
        return name


def _is_url(source: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def _read_file(path: Path) -> bytes:
    """As pipelines/image_files, whose Beam takes seconds to import; a test compares the two."""
    from model.image_bytes import Limits

    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            # Opening it would wait for ever.
            raise ItemFailure(Reason.UNREADABLE, "a pipe, expected a file")
        with path.open("rb") as file:
            # One byte over the cap tells canonicalise; the rest of a huge file stays unread.
            return file.read(Limits().max_bytes + 1)
    except FileNotFoundError as error:
        raise ItemFailure(Reason.MISSING_FILE, "no such file, expected an image") from error
    except (OSError, ValueError) as error:
        raise ItemFailure(Reason.UNREADABLE, f"{type(error).__name__}: {error}") from error


def _print_text(row: dict[str, Any]) -> None:
    if "reason" in row:
        failure = f"{row['key']}: failed ({row['reason']}: {row['message']})"
        print(failure, file=sys.stderr, flush=True)
    else:
        print(f"{row['key']}: {row['caption']}", flush=True)


def _print_json(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)
