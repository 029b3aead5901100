"""Tars as inputs: every image member is an item, and nothing of a damaged tar is passed over."""

import gzip
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.image_files import read_item
from tests.source_fixtures import Listed, list_sources

BLOCK = tarfile.BLOCKSIZE


def write_tar(path: Path, members: Mapping[str, bytes], **links: tuple[bytes, str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(data))
        for name, (kind, target) in links.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.type, member.linkname = kind, target
            tar.addfile(member)
    os.utime(path, ns=(0, 5))
    return path


def keys(found: Listed) -> list[str]:
    return [item["key"] for item in found.items]


def failure(item: Mapping[str, Any]) -> tuple[Reason, str]:
    with pytest.raises(ItemFailure) as caught:
        read_item(item)
    return caught.value.reason, caught.value.message


def test_the_image_members_of_a_webdataset_are_items(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        {
            "set/": b"",
            "set/1.jpg": b"one",
            "set/1.txt": b"a dog",
            "set/1.json": b"{}",
            "set/1.cls": b"3",
            "./set/2.left.PNG": b"two",
            "set/._1.jpg": b"mac",
        },
        soft=(tarfile.SYMTYPE, "set/1.jpg"),
        hard=(tarfile.LNKTYPE, "set/1.jpg"),
        lost=(tarfile.LNKTYPE, "set/1.txt"),
    )
    found = list_sources(str(tar))
    assert keys(found) == [
        f"{tar}/{name}" for name in ("set/1.jpg", "set/2.left.PNG", "hard.jpg", "lost.jpg")
    ]
    assert [item["source"] for item in found.items] == keys(found)
    assert found.skipped == {"hidden": 1, "no_image_suffix": 3, "no_regular_file": 1}
    assert [read_item(item) for item in found.items[:3]] == [b"one", b"two", b"one"]
    assert failure(found.items[3])[0] is Reason.MISSING_FILE
    # Of the tar, and where in it.
    state = f"{tar.stat().st_size}-5"
    assert found.items[0]["state"] == f"{state}@{found.items[0]['tar'][1]}"
    assert found.items[0]["state"] != found.items[1]["state"]


def test_members_that_a_later_one_replaces_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("a.jpg", b"one"),
            ("b.jpg", b"two"),
            ("./a.jpg", b"3"),
            ("a.jpg", b"4"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    found = list_sources(str(path))
    assert keys(found) == [f"{path}/a.jpg", f"{path}/b.jpg"]
    assert [read_item(item) for item in found.items] == [b"4", b"4"]
    assert found.skipped == {"replaced_in_tar": 3}


def test_a_glob_is_every_tar_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write_tar(tmp_path / f"s-{number:02d}.tar", {"a.jpg": b"%d" % number, "b.jpg": b"x"})
    (tmp_path / "s-9.txt").write_text("no tar")
    monkeypatch.chdir(tmp_path)
    found = list_sources("s-*.tar")
    assert keys(found) == [f"s-{n:02d}.tar/{name}.jpg" for n in range(40) for name in "ab"]
    assert read_item(found.items[14]) == b"7"
    # Paths name themselves: as one of several inputs, too.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    both = list_sources(["s-07.tar", "photos"])
    assert keys(both) == ["s-07.tar/a.jpg", "s-07.tar/b.jpg", "photos/a.jpg"]


@pytest.mark.parametrize("end", [6 * BLOCK, 4 * BLOCK + 100])
def test_a_cut_tar_has_a_row_of_its_own(tmp_path: Path, end: int) -> None:
    members = {f"{name}.jpg": name.encode() * 1000 for name in "abc"}
    tar = write_tar(tmp_path / "s-0.tar", members)
    tar.write_bytes(tar.read_bytes()[:end])
    whole = write_tar(tmp_path / "s-1.tar", {"d.jpg": b"d"})
    found = list_sources(f"{tmp_path}/s-*.tar")
    assert keys(found) == [f"{tar}/a.jpg", f"{tar}/b.jpg", str(tar), f"{whole}/d.jpg"]
    assert read_item(found.items[0]) == members["a.jpg"]
    if end == 6 * BLOCK:
        assert read_item(found.items[1]) == members["b.jpg"]
    else:
        assert failure(found.items[1])[0] is Reason.TRUNCATED
    assert failure(found.items[2]) == (
        Reason.TRUNCATED,
        f"is cut short or damaged at byte {6 * BLOCK}, so that members may be missing; "
        "make it again",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{tar}: no tar (empty file), expected photographs in one"),
        (b"<html>404</html>" * 100, "{tar}: no tar ("),
        (gzip.compress(b"x", mtime=0), "{tar}: a compressed tar, in which no image can be found"),
    ],
)
def test_a_file_that_is_no_tar_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_tar(tmp_path / "s-0.tar", {"a.jpg": b"x"})
    tar = tmp_path / "s-1.tar"
    tar.write_bytes(content)
    for where in (str(tar), f"{tmp_path}/s-*.tar"):
        with pytest.raises(InvalidInput) as caught:
            list_sources(where)
        assert str(caught.value).startswith(message.format(tar=tar))
        assert "\n" not in str(caught.value)


def test_a_compressed_tar_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"a\.tar\.gz: a compressed tar"):
        list_sources(str(tmp_path / "a.tar.gz"))


def test_a_tar_without_images_says_what_it_has(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.txt": b"x", "2.txt": b"x"})
    with pytest.raises(InvalidInput, match=r"no image in it \(2 no_image_suffix\)"):
        list_sources(str(tar))
