"""Objects of a bucket: those below a prefix, those that match a glob, or one object.

Prefixes are listed in threads, a page of objects at a time, by the clients of Beam's
filesystems: Beam's own listing goes through all objects one page after the other, holds them,
and tells neither ETag nor generation.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from apache_beam.io.filesystem import FileSystem
from apache_beam.io.filesystems import FileSystems

from model.errors import InvalidInput
from pipelines import storage
from pipelines.buckets import os_errors
from pipelines.listing import Found, is_image, make_item
from pipelines.tree_walk import Elsewhere, Listed, find


class _Page(NamedTuple):
    """A page of a prefix's objects; the first one has no token."""

    prefix: str
    token: str | None = None


_Objects = Iterable[tuple[str, str]]
"""Names below the bucket, and their states."""
_ListPage = Callable[[_Page], tuple[list[tuple[str, str]], list[_Page]]]


@dataclass(frozen=True)
class _Wanted:
    """Which objects of a bucket are items.

    Attributes:
      where: as the user named them.
      prefix: with which their paths begin; where it is no pattern, keys are relative to it.
      pattern: a regular expression that paths match; None for all images.
      deepest: slashes that a path has at most; None for any number.
    """

    where: str
    prefix: str
    pattern: str | None = None
    deepest: int | None = None
    weight: ClassVar[int] = 1

    def opened(self) -> Callable[[Any], Listed]:
        scheme, bucket, _ = _split(self.prefix)
        with _listing_errors(self.where):
            list_page = _LISTERS[scheme](FileSystems.get_filesystem(self.prefix), bucket)
        return partial(self._list, list_page, f"{scheme}://{bucket}/")

    def _list(self, list_page: _ListPage, root: str, node: Any) -> Listed:
        with _listing_errors(self.where):
            objects, pages = list_page(_Page(*node))
        if self.deepest is not None:
            pages = [page for page in pages if f"{root}{page.prefix}".count("/") <= self.deepest]
        items, skipped = self.items((root + path, state) for path, state in objects)
        return Listed(items, skipped, pages)

    def items(self, objects: _Objects) -> tuple[list[dict[str, Any]], Counter[str]]:
        """Those of the objects (paths and states) that are items, and what is passed over."""
        items: list[dict[str, Any]] = []
        skipped: Counter[str] = Counter()
        matches = None if self.pattern is None else re.compile(self.pattern).match
        for path, state in objects:
            if matches is not None:
                if matches(path):
                    items.append(make_item(path, path, state))
            elif is_image(path):
                items.append(make_item(path.removeprefix(self.prefix), path, state))
            else:
                skipped["no_image_suffix"] += 1
        return items, skipped


def list_prefix(
    where: str, skipped: Counter[str], elsewhere: Elsewhere | None = None
) -> Iterator[Found]:
    """Every image below a prefix; keys are relative to it.

    Args:
      where: the prefix.
      skipped: counts what is passed over, by kind.
      elsewhere: as of tree_walk.walk.

    Raises:
      InvalidInput: it cannot be listed.
    """
    yield from _listed(_Wanted(where, where.rstrip("/") + "/"), skipped, elsewhere)


def list_glob(
    pattern: str, skipped: Counter[str], elsewhere: Elsewhere | None = None
) -> Iterator[Found]:
    """Every object that matches, whatever its suffix; the key is its path.

    Args:
      pattern: as of Beam's filesystems.
      skipped: as of list_prefix.
      elsewhere: likewise.

    Raises:
      InvalidInput: it cannot be listed.
    """
    literal = pattern[: re.search(r"[*?[]", pattern).start()]  # type: ignore[union-attr]
    # `*` stays within a part of the path; what else a pattern may have does not.
    deepest = None if "**" in pattern or set("?[") & set(pattern) else pattern.count("/")
    wanted = _Wanted(pattern, literal, FileSystem.translate_pattern(pattern), deepest)
    yield from _listed(wanted, skipped, elsewhere)


def list_object(
    path: str, skipped: Counter[str], elsewhere: Elsewhere | None = None
) -> Iterator[Found]:
    """One object, or nothing where it is not there; the key is its path."""
    wanted = _Wanted(path, path, rf"{re.escape(path)}\Z", path.count("/"))
    yield from _listed(wanted, skipped, elsewhere)


def _listed(wanted: _Wanted, skipped: Counter[str], elsewhere: Elsewhere | None) -> Iterator[Found]:
    scheme, bucket, name = _split(wanted.prefix)
    where = wanted.where
    if scheme not in _LISTERS:
        with _listing_errors(where):
            files = storage.list_files(f"{wanted.prefix}**")
        items, others = wanted.items(
            (file.path, f"{file.size_in_bytes}-{file.last_updated_in_seconds}")
            for file in sorted(files, key=lambda file: str(file.path))
        )
        skipped.update(others)
        yield from map(Found, items)
        return
    if not bucket or bucket != _split(where)[1]:
        raise InvalidInput(f"{where}: no bucket in it, expected {scheme}://BUCKET/…")
    yield from find([_Page(name)], wanted, skipped, elsewhere)


def _split(path: str) -> tuple[str, str, str]:
    """Scheme, bucket, and name below it."""
    scheme, _, rest = path.partition("://")
    bucket, _, name = rest.partition("/")
    return scheme, bucket, name


@contextmanager
def _listing_errors(where: str) -> Iterator[None]:
    try:
        with os_errors():
            yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{where}: cannot be listed ({said})") from error


def _s3_lister(filesystem: Any, bucket: str) -> _ListPage:
    from apache_beam.io.aws import s3io

    return partial(_s3_page, s3io.S3IO(options=filesystem._options).client.client, bucket)


def _gcs_lister(filesystem: Any, bucket: str) -> _ListPage:
    return partial(_gcs_page, filesystem._gcsIO().client, bucket)


def _s3_page(client: Any, bucket: str, page: _Page) -> tuple[list[tuple[str, str]], list[_Page]]:
    more = {} if page.token is None else {"ContinuationToken": page.token}
    answer = client.list_objects_v2(Bucket=bucket, Prefix=page.prefix, Delimiter="/", **more)
    objects = [
        (entry["Key"], f"{entry['Size']}-" + entry["ETag"].strip('"'))
        for entry in answer.get("Contents", ())
    ]
    below = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
    return objects, _pages(page, answer.get("NextContinuationToken"), below)


def _gcs_page(client: Any, bucket: str, page: _Page) -> tuple[list[tuple[str, str]], list[_Page]]:
    found = client.list_blobs(bucket, prefix=page.prefix, delimiter="/", page_token=page.token)
    blobs = next(found.pages, ())
    objects = [(blob.name, f"{blob.size}-{blob.generation}") for blob in blobs]
    return objects, _pages(page, found.next_page_token, sorted(found.prefixes))


def _pages(page: _Page, token: str | None, below: list[str]) -> list[_Page]:
    """The pages after one: the next of its prefix, and the first of each prefix below."""
    return [*([page._replace(token=token)] if token else []), *map(_Page, below)]


_LISTERS = {"s3": _s3_lister, "gs": _gcs_lister}
