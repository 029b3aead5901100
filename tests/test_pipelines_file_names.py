"""Names of the small files that belong to keys."""

import hashlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.file_names import copy_of, file_of


def is_hashed(key: str, suffix: str = ".txt") -> bool:
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
    path = file_of(key, suffix)
    return path.startswith(f"_keys/{digest[:2]}/") and path.endswith(f"-{digest}{suffix}")


@pytest.mark.parametrize(
    "key",
    ["a", "a.jpg", "a/b c/d.jpg", "é/🐕.png", "a#2", "x" * 251, "/".join(["d" * 98] * 7), "a.txt"],
)
def test_a_plain_key_names_its_file(key: str) -> None:
    assert file_of(key, ".txt") == f"{key}.txt"


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", ".", "..", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "/etc/passwd"),
        *("~\0", "a\nb", "a\x7f", "a\\b", "C:/a", "a*", "a?b", "[1]", "<a>", '"a"', "a|b"),
        *("https://example.org/a.jpg", "gs://bucket/a.jpg", ".hidden", "a/.captionbeam/b"),
        *(" a", "a /b", "a./b", "x" * 252, "é" * 126, "/".join(["d" * 99] * 8), "\ud800"),
        *("_keys/a", "_keys", "a.txt/b"),
    ],
)
def test_any_other_is_told_by_its_hash(key: str) -> None:
    # "_keys" alone is "_keys.txt", which is no directory.
    assert is_hashed(key) or key == "_keys"


def test_the_hashed_name_says_what_it_can() -> None:
    url = "https://example.org/beach%20day.jpg?size=large"
    digest = hashlib.sha256(url.encode()).hexdigest()
    name = f"beach_20day.jpg_size_large-{digest[:32]}.png"
    assert file_of(url, ".png") == f"_keys/{digest[:2]}/{name}"


@pytest.mark.parametrize("key", ["a.jpg", "a.b/c d.JPEG", "é/🐕.png", "x" * 247 + ".gif"])
def test_a_plain_key_of_an_image_names_its_copy(key: str) -> None:
    assert copy_of(key, ".txt") == key


@pytest.mark.parametrize(
    ("key", "ending"),
    [
        *(("a", ""), ("a.txt", ""), ("7", ""), ("a.jpg/b.png", ".png"), ("a.txt/b.png", ".png")),
        *(
            ("https://example.org/a.JPG?size=2.gif", ".jpg"),
            ("a.jpg#2", ".jpg"),
            ("../a.png", ".png"),
        ),
        *(("_keys/a.png", ".png"), ("x" * 252 + ".jpg", ".jpg"), ("a.php?b=c.jpg", "")),
    ],
)
def test_any_other_copy_is_told_by_the_hash_and_keeps_its_suffix(key: str, ending: str) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = copy_of(key, ".txt")
    assert path.startswith(f"_keys/{digest[:2]}/")
    assert path.endswith(f"-{digest}{ending}")


PART = st.sampled_from(
    [
        "a",
        "A",
        "a.txt",
        "b.txt",
        "a.jpg",
        "a.jpg.txt",
        "..",
        ".",
        "",
        "_keys",
        "a#2",
        " ",
        "\0",
        "é",
    ]
)
KEY = st.lists(PART, max_size=4).map("/".join) | st.text()


@given(st.sets(KEY, max_size=12))
def test_no_two_keys_share_a_file_and_none_leaves_the_directory(keys: set[str]) -> None:
    paths = [PurePosixPath(file_of(key, ".txt")) for key in keys]
    assert len(set(paths)) == len(keys)
    directories = {directory for path in paths for directory in path.parents}
    assert directories.isdisjoint(paths)
    for path in paths:
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert all(len(part.encode()) <= 255 for part in path.parts)


@pytest.mark.parametrize("key", ["", "../../out", "/a", "a\0b", "x" * 5000, "é" * 300, "."])
def test_a_disk_takes_every_name(key: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / file_of(key, ".txt")
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert path.resolve().is_relative_to(tmp_path / "in")


@given(st.sets(KEY, max_size=12))
def test_copies_and_the_texts_beside_them_share_no_file(keys: set[str]) -> None:
    copies = [copy_of(key, ".txt") for key in keys]
    paths = [PurePosixPath(path) for copy in copies for path in (copy, f"{copy}.txt")]
    assert len(set(paths)) == 2 * len(keys)
    directories = {directory for path in paths for directory in path.parents}
    assert directories.isdisjoint(paths)
    for path in paths:
        assert not path.is_absolute()
        assert ".." not in path.parts
