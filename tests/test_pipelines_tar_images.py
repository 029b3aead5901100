import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import Limits
from pipelines import tar_files
from pipelines.coco import read_inputs
from pipelines.image_files import read_item
from pipelines.jobs import Item
from pipelines.runner import check_beam_args
from pipelines.source_flags import Source
from pipelines.tar_images import is_tar

BLOCK = tarfile.BLOCKSIZE
# Beyond ustar's 100 and 256 characters, and beyond ASCII.
LONG, LONGER = "n" * 120 + ".jpg", "/".join(["folder" * 20] * 3) + "/ä" + "m" * 90 + ".jpg"


def write_tar(
    path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT, **links: str
) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.type, member.linkname = tarfile.LNKTYPE, target
            tar.addfile(member)
    return path


def body(seed: str, size: int = 700) -> bytes:
    """Bytes of their own for every name."""
    return (seed.encode() * size)[:size]


def items(directory: Path, images: object, *names: str, split: str = "train") -> list[Item]:
    """What a token file with these names and IMAGES comes to, in that order."""
    path = directory / f"{split}.token"
    path.write_text("".join(f"{name}#0\ta dog\n" for name in names))
    return read_inputs([Source(split, str(path), str(images))]).splits[split]


def refusal(directory: Path, images: object, *names: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        items(directory, images, *names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failure(item: Item) -> tuple[Reason, str]:
    with pytest.raises(ItemFailure) as caught:
        read_item(item)
    return caught.value.reason, caught.value.message


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_item_reads_the_bytes_of_its_own_member(tmp_path: Path, kind: int) -> None:
    names = ["b.jpg", "a.jpg", "empty.jpg"]
    names += [] if kind == tarfile.USTAR_FORMAT else [LONG, LONGER]
    members = {
        name: body(name, 0 if name == "empty.jpg" else 300 * n) for n, name in enumerate(names)
    }
    tar = write_tar(tmp_path / "photos.tar", {"other.txt": b"x", **members}, kind)
    made = items(tmp_path, tar, *names)
    assert [item["source"] for item in made] == [f"{tar}/{name}" for name in names]
    assert [item["key"] for item in made] == names
    for item in made:
        # An item travels to its worker as JSON.
        assert read_item(json.loads(json.dumps(item))) == members[item["key"]]


def test_names_are_found_in_folders_and_in_several_tars(tmp_path: Path) -> None:
    one = write_tar(
        tmp_path / "t-0.tar", {"./photos/a.jpg": body("a"), "photos/x/b.jpg": body("b")}
    )
    two = write_tar(tmp_path / "t-1.tar", {"c.jpg": body("c"), "y/d.jpg": body("wrong")})
    three = write_tar(tmp_path / "t-2.tar", {"z/d.jpg": body("d"), "e.jpg": body("e")})
    made = items(tmp_path, tmp_path / "t-*.tar", "a.jpg", "x/b.jpg", "c.jpg", "z/d.jpg", "q/e.jpg")
    assert [item["source"] for item in made] == [
        f"{one}/photos/a.jpg",
        f"{one}/photos/x/b.jpg",
        f"{two}/c.jpg",
        f"{three}/z/d.jpg",
        f"{three}/e.jpg",
    ]
    assert [read_item(item) for item in made] == [body(name) for name in "abcde"]


def test_an_exact_name_counts_more_than_one_in_a_folder(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"x/a.jpg": body("wrong"), "a.jpg": body("a")})
    [item] = items(tmp_path, tar, "a.jpg")
    assert read_item(item) == body("a")


def test_another_folders_image_of_that_name_is_not_taken(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"x/a.jpg": body("wrong")})
    [item] = items(tmp_path, tar, "y/a.jpg")
    assert failure(item)[0] is Reason.MISSING_FILE


def test_of_a_name_that_comes_again_the_last_counts_as_for_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": body("old"), "./a.jpg": body("new")})
    [item] = items(tmp_path, tar, "a.jpg")
    assert read_item(item) == body("new")


def test_a_hard_link_has_the_bytes_of_its_target(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": body("a")}, linked="a.jpg")
    made = items(tmp_path, tar, "a.jpg", "linked.jpg")
    assert [read_item(item) for item in made] == [body("a")] * 2


def test_karpathys_folders_lead_into_a_tar(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"coco/val2014/1.jpg": body("v"), "train2014/1.jpg": b"t"})
    sentence = {"raw": "a dog", "sentid": 1}
    image = {"filename": "1.jpg", "filepath": "val2014", "split": "val", "cocoid": 1}
    path = tmp_path / "k.json"
    path.write_text(json.dumps({"images": [{**image, "sentences": [sentence]}]}))
    [item] = read_inputs([Source(None, str(path), str(tar))]).splits["val"]
    assert (item["key"], item["source"]) == ("1.jpg", f"{tar}/coco/val2014/1.jpg")
    assert read_item(item) == body("v")


def test_one_member_in_two_splits_is_a_shared_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x/a.jpg": body("a")})
    sources = []
    for split, name in (("train", "a.jpg"), ("val", "x/a.jpg")):
        (tmp_path / split).write_text(f"{name}#0\ta dog\n")
        sources.append(Source(split, str(tmp_path / split), str(tmp_path / "a.tar")))
    with pytest.raises(InvalidInput, match=r"^1 image in splits train and val, .*\(a\.jpg, x/a"):
        read_inputs(sources)


@pytest.mark.parametrize(
    ("first", "second", "names", "message"),
    [
        (
            {"a.jpg": b"1", "b.jpg": b"2"},
            {"a.jpg": b"1", "unused.jpg": b"3"},
            ["a.jpg", "b.jpg"],
            "several members for 1 of the names: a.jpg is {0}/a.jpg and {1}/a.jpg",
        ),
        (
            {"x/a.jpg": b"1", "y/a.jpg": b"2"},
            {},
            ["a.jpg"],
            "several members for 1 of the names: a.jpg is {0}/x/a.jpg and {0}/y/a.jpg",
        ),
        (
            {f"{name}.jpg": b"1" for name in "abcd"},
            {f"x/{name}.jpg": b"1" for name in "abcd"} | {f"{name}.jpg": b"" for name in "abcd"},
            [f"{name}.jpg" for name in "dcba"],
            "several members for 4 of the names: a.jpg is {0}/a.jpg and {1}/a.jpg; b.jpg is "
            "{0}/b.jpg and {1}/b.jpg; c.jpg is {0}/c.jpg and {1}/c.jpg",
        ),
    ],
)
def test_an_image_that_is_there_twice_is_refused(
    tmp_path: Path,
    first: dict[str, bytes],
    second: dict[str, bytes],
    names: list[str],
    message: str,
) -> None:
    tars = [write_tar(tmp_path / f"{n}.tar", tar) for n, tar in enumerate((first, second))]
    images = tmp_path / "?.tar"
    assert refusal(tmp_path, images, *names) == (
        f"images {images}: {message.format(*tars)}; leave one of the tars out, or name the images "
        "with their folder in the annotations"
    )


def test_two_names_of_one_member_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.jpg": b"1"})
    assert refusal(tmp_path, tar, "a/1.jpg", "b/1.jpg") == (
        f"images {tar}: a/1.jpg and b/1.jpg are both {tar}/1.jpg, expected a member each"
    )


MISSING = "no member of this name in the tar files, expected an image"


def test_what_is_in_no_tar_is_a_missing_file_beside_its_neighbours(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": body("a"), "folder.jpg/x": b"", "c.jpg": body("c")})
    images = tmp_path / "*.tar"
    made = items(tmp_path, images, "a.jpg", "none.jpg", "folder.jpg", "c.jpg")
    assert made[1]["source"] == f"{images}/none.jpg"
    assert [failure(item) for item in made[1:3]] == [(Reason.MISSING_FILE, MISSING)] * 2
    assert [read_item(made[0]), read_item(made[3])] == [body("a"), body("c")]


def test_a_tar_cut_short_fails_its_own_members_alone(tmp_path: Path) -> None:
    members = {f"{name}.jpg": body(name, 1000) for name in "abc"}
    whole = write_tar(tmp_path / "t-0.tar", members, tarfile.USTAR_FORMAT).read_bytes()
    tar = tmp_path / "t-0.tar"
    other = write_tar(tmp_path / "t-1.tar", {"d.jpg": body("d")})
    # A header and two blocks each: cut within b.
    tar.write_bytes(whole[: 4 * BLOCK + 100])
    made = items(tmp_path, tmp_path / "t-*.tar", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert read_item(made[0]) == members["a.jpg"]
    assert failure(made[1]) == (
        Reason.TRUNCATED,
        f"{tar} ends after 100 of its 1000 bytes; make it again",
    )
    assert failure(made[2]) == (
        Reason.MISSING_FILE,
        f"{MISSING}; {tar} is cut short or damaged at byte {6 * BLOCK}",
    )
    assert read_item(made[3]) == body("d")
    assert other.exists()


@pytest.mark.parametrize("end", [6 * BLOCK, 6 * BLOCK + 1, 7 * BLOCK - 1])
def test_a_tar_cut_between_members_says_so_too(tmp_path: Path, end: int) -> None:
    members = {f"{name}.jpg": body(name, 1000) for name in "abc"}
    tar = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    tar.write_bytes(tar.read_bytes()[:end])
    made = items(tmp_path, tar, "b.jpg", "c.jpg")
    assert read_item(made[0]) == members["b.jpg"]
    assert failure(made[1]) == (
        Reason.MISSING_FILE,
        f"{MISSING}; {tar} is cut short or damaged at byte {6 * BLOCK}",
    )


@pytest.mark.parametrize("behind", ["another tar", "a byte", "zeros"])
def test_what_stands_behind_a_tars_end_is_not_passed_over(tmp_path: Path, behind: str) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": body("a", 1000)}, tarfile.USTAR_FORMAT)
    other = write_tar(tmp_path / "b.tar", {"b.jpg": body("b")}).read_bytes()
    more = {"another tar": other, "a byte": b"\0x", "zeros": bytes(2**20)}[behind]
    tar.write_bytes(tar.read_bytes() + more)
    made = items(tmp_path, tar, "a.jpg", "b.jpg")
    assert read_item(made[0]) == body("a", 1000)
    assert failure(made[1]) == (
        Reason.MISSING_FILE,
        f"{MISSING}; {tar} is cut short or damaged at byte {3 * BLOCK}",
    )


def damage_size(header: bytearray, value: bytes) -> None:
    """Write a size into a header, with the checksum that belongs to it."""
    header[124:136] = value
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: header.__setitem__(slice(0, 20), b"\xff" * 20),
        # Base 256 below zero, which would lead back to a header before.
        lambda header: damage_size(header, b"\xff" * 10 + b"\xf0\x00"),
        lambda header: damage_size(header, b"notoctal\0\0\0\0"),
    ],
    ids=["checksum", "negative size", "no number"],
)
def test_a_damaged_header_ends_the_tar_and_not_the_job(
    tmp_path: Path, damage: Callable[[bytearray], None]
) -> None:
    members = {f"{name}.jpg": body(name, 1000) for name in "abc"}
    tar = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    header = data[3 * BLOCK : 4 * BLOCK]
    damage(header)
    data[3 * BLOCK : 4 * BLOCK] = header
    tar.write_bytes(data)
    made = items(tmp_path, tar, "a.jpg", "b.jpg", "c.jpg")
    assert read_item(made[0]) == members["a.jpg"]
    for item in made[1:]:
        reason, message = failure(item)
        assert reason is Reason.MISSING_FILE
        assert message.startswith(f"{MISSING}; {tar} is cut short or damaged at byte ")


def test_a_member_over_the_cap_is_not_read_to_its_end(tmp_path: Path) -> None:
    cap = Limits().max_bytes
    member = tarfile.TarInfo("huge.jpg")
    member.size = 20 * 2**30
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(BLOCK + member.size + 2 * BLOCK)
    [item] = items(tmp_path, path, "huge.jpg")
    assert len(read_item(item)) == cap + 1


def test_a_tar_that_vanished_is_a_missing_file(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": body("a")})
    [item] = items(tmp_path, tar, "a.jpg")
    tar.unlink()
    assert failure(item) == (Reason.MISSING_FILE, "no such file, expected an image")


def test_the_index_reads_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{number}.jpg": bytes(100_000) for number in range(50)}
    tar = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    monkeypatch.setattr(tar_files.storage, "open_read", lambda path: Counting(path))
    assert len(items(tmp_path, tar, *members)) == 50
    # A header a member, and a byte before each for tarfile to see that the body is there.
    # The zeros at the end as well.
    assert read <= 50 * (BLOCK + 1) + 4 * BLOCK + tarfile.RECORDSIZE


COMPRESSED = (
    ": a compressed tar, in which no image can be found without unpacking all before it, expected "
    "a plain .tar; unpack it once with gunzip or the like (photographs are compressed already)"
)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.BZ2", "a.tar.xz", "a.tar.zst"])
def test_a_compressed_tar_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, tmp_path / name, "a.jpg") == f"images {tmp_path / name}{COMPRESSED}"


def test_a_compressed_tar_is_refused_by_its_bytes(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": body("a")})
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    assert refusal(tmp_path, tar, "a.jpg") == f"images {tar}{COMPRESSED}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no tar (empty file), expected photographs in one"),
        (b"<html>404</html>" * 100, "no tar ("),
        (None, "cannot be read ("),
    ],
)
def test_a_file_that_is_no_tar_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    tar = tmp_path / "a.tar"
    if content is not None:
        tar.write_bytes(content)
    assert refusal(tmp_path, tar, "a.jpg").startswith(f"images {tar}: {message}")


def test_a_pattern_without_a_file_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "train-*.tar"
    assert refusal(tmp_path, images, "a.jpg") == (
        f"images {images}: no file matches, expected tar files of photographs"
    )


@pytest.mark.parametrize(
    ("images", "expected"),
    [("a.tar", True), ("gs://b/train-*.TAR", True), ("photos", False), ("tar", False)],
)
def test_what_is_a_tar(images: str, expected: bool) -> None:
    assert is_tar(images) is expected


class Bucket(io.RawIOBase):
    """A reader as those of buckets are: it notes how much is fetched at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.fetched = data, 0, [0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        del whence
        self.at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        data = self.data[self.at : self.at + min(len(buffer), 300)]
        buffer[: len(data)] = data
        self.at += len(data)
        self.fetched.append(len(data))
        return len(data)


def test_of_s3_only_the_member_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(bytes(range(256)) * 8)
    reader = io.BufferedReader(bucket, buffer_size=2**20)
    monkeypatch.setattr(tar_files.storage, "open_read", lambda _: reader)
    assert tar_files.read_member("s3://b/a.tar", 256, 1000, 5000) == bucket.data[256:1256]
    assert sum(bucket.fetched) == 1000


def test_of_gcs_only_the_member_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = pytest.importorskip("google.cloud.storage.fileio")
    data, ranges = bytes(range(256)) * 8, []

    class Blob:
        chunk_size = None
        size = len(data)

        def download_as_bytes(self, start: int, end: int, **_: Any) -> bytes:
            ranges.append((start, end))
            return data[start : end + 1]

    reader = storage.BlobReader(Blob(), chunk_size=16 * 2**20)
    monkeypatch.setattr(tar_files.storage, "open_read", lambda _: reader)
    assert tar_files.read_member("gs://b/a.tar", 256, 1000, 5000) == data[256:1256]
    [(start, end)] = ranges
    assert start == 256
    assert end <= 1256


def test_tars_in_a_bucket_are_indexed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # Buckets are reached as Beam's flags say; preprocessing begins with this.
    check_beam_args([])
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        for number, names in enumerate(("ab", "cd")):
            tar = write_tar(tmp_path / "t.tar", {f"x/{name}.jpg": body(name) for name in names})
            client.put_object(Bucket="photos", Key=f"t-{number}.tar", Body=tar.read_bytes())
        made = items(tmp_path, "s3://photos/t-*.tar", "d.jpg", "a.jpg", "none.jpg")
        assert [item["source"] for item in made] == [
            "s3://photos/t-1.tar/x/d.jpg",
            "s3://photos/t-0.tar/x/a.jpg",
            "s3://photos/t-*.tar/none.jpg",
        ]
        assert [read_item(item) for item in made[:2]] == [body("d"), body("a")]
        client.delete_object(Bucket="photos", Key="t-0.tar")
        assert failure(made[1]) == (Reason.MISSING_FILE, "no such file, expected an image")
        assert refusal(tmp_path, "s3://photos/t-0.tar", "a.jpg").startswith(
            "images s3://photos/t-0.tar: cannot be read ("
        )
