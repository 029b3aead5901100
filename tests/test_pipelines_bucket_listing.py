"""Buckets as inputs: prefixes, globs, tars, manifests and single objects, by the real clients."""

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata

from model.errors import InvalidInput
from pipelines import bucket_listing, storage
from pipelines.columns import Columns
from pipelines.image_files import read_item
from tests.cloud_fixtures import BUCKET, Bucket, gcs_bucket, s3_bucket
from tests.source_fixtures import Listed, list_sources


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket of the scheme in the test's parameter; empty."""
    made = s3_bucket() if request.param == "s3" else gcs_bucket(monkeypatch)
    with made as bucket:
        storage.use_flags(bucket.flags)
        yield bucket


both = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)


def keys(found: Listed) -> list[str]:
    return [item["key"] for item in found.items]


@both
def test_a_bucket_is_an_input_in_every_way(bucket: Bucket) -> None:
    names = ["p/a.jpg", "p/b.PNG", "p/x/c.jpg", "p/x/y/d.jpg", "p/x/notes.txt", "q/e.jpg", "pf.jpg"]
    for name in names:
        bucket.put(name, name.encode())
    url = bucket.url

    found = list_sources(f"{url}/p")
    assert keys(found) == ["a.jpg", "b.PNG", "x/c.jpg", "x/y/d.jpg"]
    assert [item["source"] for item in found.items] == [f"{url}/p/{key}" for key in keys(found)]
    assert found.skipped == {"no_image_suffix": 1}
    assert [read_item(item) for item in found.items[:1]] == [b"p/a.jpg"]
    assert sorted(keys(list_sources(url))) == sorted(set(names) - {"p/x/notes.txt"})
    # The state changes with the object, and only then.
    again = list_sources(f"{url}/p/").items
    assert again == found.items
    bucket.put("p/a.jpg", b"another")
    changed = list_sources(f"{url}/p").items
    assert changed[0]["state"] != found.items[0]["state"]
    assert changed[1:] == found.items[1:]

    assert keys(list_sources(f"{url}/p/*")) == [f"{url}/p/a.jpg", f"{url}/p/b.PNG"]
    assert keys(list_sources(f"{url}/p/x/**.jpg")) == [f"{url}/p/x/c.jpg", f"{url}/p/x/y/d.jpg"]
    assert keys(list_sources(f"{url}/?/?.jpg")) == [f"{url}/p/a.jpg", f"{url}/q/e.jpg"]
    assert keys(list_sources(f"{url}/pf.jpg")) == [f"{url}/pf.jpg"]
    assert keys(list_sources([f"{url}/p/x", f"{url}/q"])) == [
        *("x/c.jpg", "x/y/d.jpg"),
        "q/e.jpg",
    ]

    for number in range(2):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"%03d" % number))
        bucket.put(f"t/s-{number}.tar", data.getvalue())
    tars = list_sources(f"{url}/t/s-*.tar").items
    assert [item["key"] for item in tars] == [f"{url}/t/s-{n}.tar/{n}.jpg" for n in range(2)]
    assert [read_item(item) for item in tars] == [b"000", b"001"]
    assert all("@" in item["state"] for item in tars)
    assert list_sources(f"{url}/t/s-1.tar").items == tars[1:]

    bucket.put("m/urls.csv.gz", gzip.compress(b"id,url\n7,a.jpg\n"))
    [item] = list_sources(f"{url}/m/urls.csv.gz", Columns(id="id")).items
    assert item == {"key": "7", "source": f"{url}/m/a.jpg"}
    table = io.BytesIO()
    pq.write_table(pa.table({"url": [f"{n}.jpg" for n in range(3000)]}), table)
    bucket.put("m/urls.parquet", table.getvalue())
    assert keys(list_sources(f"{url}/m/urls.parquet")) == [f"{n}.jpg" for n in range(3000)]


@both
def test_what_is_not_there_is_one_line(bucket: Bucket) -> None:
    for where, message in (
        ("/none", "no image in it (it is empty)"),
        ("/none/*.jpg", "no image in it (it is empty)"),
        ("/none.jpg", "no image in it (it is empty)"),
        ("/none.tar", "no image in it (it is empty)"),
        ("/none.csv", "cannot be read ("),
    ):
        with pytest.raises(InvalidInput) as caught:
            list_sources(bucket.url + where)
        assert str(caught.value).startswith(f"{bucket.url}{where}: {message}")
        assert "\n" not in str(caught.value)
    missing = bucket.url.replace(BUCKET, "none-such")
    with pytest.raises(InvalidInput) as caught:
        list_sources(f"{missing}/p")
    assert str(caught.value).startswith(f"{missing}/p: cannot be listed (")
    with pytest.raises(InvalidInput, match="no bucket in it"):
        list_sources(f"{bucket.url[:5]}b*/p")


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_pages_and_prefixes_are_all_listed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p/{a}/{b}.jpg" for a in range(5) for b in range(3)] + [f"p/{n}.jpg" for n in "xyz"]
    for name in names:
        bucket.put(name, b"x")
    asked = []
    page = bucket_listing._s3_page

    class TwoAtATime:
        def __init__(self, client: Any) -> None:
            self._client = client

        def list_objects_v2(self, **kwargs: Any) -> Any:
            asked.append(kwargs["Prefix"])
            return self._client.list_objects_v2(**kwargs, MaxKeys=2)

    monkeypatch.setattr(
        bucket_listing, "_s3_page", lambda client, *rest: page(TwoAtATime(client), *rest)
    )
    found = list_sources(f"{bucket.url}/p")
    assert sorted(f"p/{key}" for key in keys(found)) == sorted(names)
    assert len(asked) == 4 + 5 * 2
    assert keys(list_sources(f"{bucket.url}/p")) == keys(found)
    # A glob that goes no deeper lists no deeper.
    asked.clear()
    assert len(keys(list_sources(f"{bucket.url}/p/*.jpg"))) == 3
    assert set(asked) == {"p/"}


def test_another_filesystem_is_listed_by_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [FileMetadata(f"hdfs://n/p/{name}", 5, 1.5) for name in ("b.jpg", "x/a.jpg", "c.txt")]

    def list_files(pattern: str) -> list[FileMetadata]:
        assert pattern == "hdfs://n/p/**"
        return files

    monkeypatch.setattr(storage, "list_files", list_files)
    # Its client is not installed.
    monkeypatch.setattr(storage, "check_filesystem", lambda *_: None)
    found = list_sources("hdfs://n/p")
    assert [(item["key"], item["state"]) for item in found.items] == [
        ("b.jpg", "5-1.5"),
        ("x/a.jpg", "5-1.5"),
    ]
    assert found.skipped == {"no_image_suffix": 1}
    assert keys(list_sources("hdfs://n/p/*.jpg")) == ["hdfs://n/p/b.jpg"]


@pytest.mark.parametrize("where", ["none://b/p", "none://b/*.jpg", "none://b/m.csv", "hdfs://n/p"])
def test_a_scheme_that_nobody_serves_is_one_line(where: str) -> None:
    with pytest.raises(InvalidInput, match=f"^--input {re.escape(where)}: no filesystem"):
        list_sources(where)
