"""Objects of a bucket: those below a prefix, those that match a glob, or one object.

Prefixes are listed in threads, a page of objects at a time, by the clients of Beam's
filesystems: Beam's own listing goes through all objects one page after the other, holds them,
and tells neither ETag nor generation.
"""

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from apache_beam.io.filesystem import FileSystem
from apache_beam.io.filesystems import FileSystems

from model.errors import InvalidInput
from pipelines import storage
from pipelines.buckets import os_errors
from pipelines.listing import Found, is_image, make_item
from pipelines.tree_walk import Listing, walk


class _Page(NamedTuple):
    """A page of a prefix's objects; the first one has no token."""

    prefix: str
    token: str | None = None


_Objects = list[tuple[str, str]]
"""Names below the bucket, and their states."""
_ListPage = Callable[[_Page], Listing[_Page, _Objects]]


def list_prefix(where: str, skipped: Counter[str]) -> Iterator[Found]:
    """Every image below a prefix; keys are relative to it.

    Raises:
      InvalidInput: it cannot be listed.
    """
    prefix = where.rstrip("/") + "/"
    for path, state in _objects(where, prefix):
        if is_image(path):
            yield Found(make_item(path.removeprefix(prefix), path, state))
        else:
            skipped["no_image_suffix"] += 1


def list_glob(pattern: str) -> Iterator[Found]:
    """Every object that matches, whatever its suffix; the key is its path.

    Raises:
      InvalidInput: it cannot be listed.
    """
    matches = re.compile(FileSystem.translate_pattern(pattern)).match
    literal = pattern[: re.search(r"[*?[]", pattern).start()]  # type: ignore[union-attr]
    # `*` stays within a part of the path; what else a pattern may have does not.
    deepest = None if "**" in pattern or set("?[") & set(pattern) else pattern.count("/")
    for path, state in _objects(pattern, literal, deepest):
        if matches(path):
            yield Found(make_item(path, path, state))


def list_object(path: str) -> Iterator[Found]:
    """One object, or nothing where it is not there; the key is its path."""
    for found, state in _objects(path, path, path.count("/")):
        if found == path:
            yield Found(make_item(path, path, state))


def _objects(
    where: str, prefix: str, deepest: int | None = None
) -> Generator[tuple[str, str], None, None]:
    """Paths and states of the objects whose paths begin so; InvalidInput names `where`."""
    scheme, bucket, name = _split(prefix)
    if scheme not in _LISTERS:
        with _listing_errors(where):
            files = storage.list_files(f"{prefix}**")
        for file in sorted(files, key=lambda file: str(file.path)):
            yield file.path, f"{file.size_in_bytes}-{file.last_updated_in_seconds}"
        return
    if not bucket or bucket != _split(where)[1]:
        raise InvalidInput(f"{where}: no bucket in it, expected {scheme}://BUCKET/…")
    with _listing_errors(where):
        list_page = _LISTERS[scheme](FileSystems.get_filesystem(prefix), bucket)
    root = f"{scheme}://{bucket}/"

    def expand(page: _Page) -> Listing[_Page, _Objects]:
        with _listing_errors(where):
            objects, pages = list_page(page)
        if deepest is not None:
            pages = [page for page in pages if f"{root}{page.prefix}".count("/") <= deepest]
        return Listing(objects, pages)

    for objects in walk(_Page(name), expand):
        for path, state in objects:
            yield root + path, state


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


def _s3_page(client: Any, bucket: str, page: _Page) -> Listing[_Page, _Objects]:
    more = {} if page.token is None else {"ContinuationToken": page.token}
    answer = client.list_objects_v2(Bucket=bucket, Prefix=page.prefix, Delimiter="/", **more)
    objects = [
        (entry["Key"], f"{entry['Size']}-" + entry["ETag"].strip('"'))
        for entry in answer.get("Contents", ())
    ]
    below = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
    return Listing(objects, _pages(page, answer.get("NextContinuationToken"), below))


def _gcs_page(client: Any, bucket: str, page: _Page) -> Listing[_Page, _Objects]:
    found = client.list_blobs(bucket, prefix=page.prefix, delimiter="/", page_token=page.token)
    blobs = next(found.pages, ())
    objects = [(blob.name, f"{blob.size}-{blob.generation}") for blob in blobs]
    return Listing(objects, _pages(page, found.next_page_token, sorted(found.prefixes)))


def _pages(page: _Page, token: str | None, below: list[str]) -> list[_Page]:
    """The pages after one: the next of its prefix, and the first of each prefix below."""
    return [*([page._replace(token=token)] if token else []), *map(_Page, below)]


_LISTERS = {"s3": _s3_lister, "gs": _gcs_lister}
