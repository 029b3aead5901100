import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines.annotation_formats import read_annotations
from pipelines.annotations import AnnotatedImage, Annotations, Columns, id_of_name

DOG, CAT = id_of_name("dog.jpg"), id_of_name("cat.jpg")
# What every format below says.
TWO = [
    ("dog.jpg", DOG, ["a dog", "the dog, again"]),
    ("cat.jpg", CAT, ["ein Kätzchen"]),
]
TOKENS = "dog.jpg#0\ta dog\ncat.jpg#0\tein Kätzchen\n\ndog.jpg#1\tthe dog, again\n"
CSV = 'image,caption\ndog.jpg,a dog\ncat.jpg,ein Kätzchen\n\ndog.jpg,"the dog, again"\n'
TSV = "image\tcaption\ndog.jpg\ta dog\ncat.jpg\tein Kätzchen\ndog.jpg\tthe dog, again\n"
BARS = (
    "image| number| caption\ndog.jpg| 0| a dog\ncat.jpg| 0| ein Kätzchen\n"
    "dog.jpg| 1| the dog, again\n"
)
JSONL = (
    '{"image": "dog.jpg", "caption": ["a dog", "the dog, again"], "url": "x"}\n\n'
    '{"image": "cat.jpg", "caption": "ein K\\u00e4tzchen"}\n'
)


def read(path: Path, content: str | bytes, columns: Columns | None = None) -> Annotations:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_annotations(str(path), columns or Columns())


def texts(annotations: Annotations) -> list[tuple[str, int, list[object]]]:
    return [
        (image.name, image.image_id, [caption for _, caption in image.captions])
        for image in annotations.images
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results_20130124.token", TOKENS),
        ("Flickr8k.token.txt", TOKENS),
        ("no_suffix", TOKENS),
        ("captions.csv", CSV),
        ("captions.CSV", CSV),
        ("captions.txt", CSV),
        ("captions.tsv", TSV),
        ("captions.txt", TSV),
        ("results.csv", BARS),
        ("captions.jsonl", JSONL),
        ("captions.ndjson", JSONL),
        ("captions.txt", JSONL),
        ("windows.token", TOKENS.replace("\n", "\r\n")),
        ("windows.csv", CSV.replace("\n", "\r\n")),
        ("windows.jsonl", JSONL.replace("\n", "\r\n")),
        ("marked.token", "\ufeff" + TOKENS),
        ("marked.csv", "\ufeff" + CSV),
        ("cut.csv", CSV.rstrip()),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    annotations = read(tmp_path / name, content)
    assert texts(annotations) == TWO
    assert annotations.orphans == []


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.token", TOKENS, [1, 4, 2]),
        ("a.csv", CSV, [2, 5, 3]),
        ("a.tsv", TSV, [2, 4, 3]),
        ("a.jsonl", JSONL, [1, 1, 3]),
        ("a.csv", 'image,caption\ndog.jpg,"a\ndog"\ncat.jpg,a cat\n', [3, 4]),
    ],
)
def test_the_id_of_a_caption_is_its_line(
    tmp_path: Path, name: str, content: str, lines: list[int]
) -> None:
    images = read(tmp_path / name, content).images
    assert [number for image in images for number, _ in image.captions] == lines


@pytest.mark.parametrize("name", ["captions_val2017.json", "captions.txt", "captions"])
def test_coco_json_is_known_by_suffix_or_content(tmp_path: Path, name: str) -> None:
    content = {
        "images": [{"id": 7, "file_name": "dog.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "caption": "a dog"}],
    }
    for indent in (None, 1):
        annotations = read(tmp_path / name, json.dumps(content, indent=indent))
        assert annotations.images == [AnnotatedImage("dog.jpg", 7, [(1, "a dog")])]


def test_an_id_of_a_name_is_that_of_every_run_and_order(tmp_path: Path) -> None:
    # printf dog.jpg | sha256sum, its first 8 bytes modulo 2**53 - 1, plus 1
    assert DOG == 0xDC8DB6B13C055808 % (2**53 - 1) + 1
    assert 0 < DOG < 2**53
    rows = TOKENS.splitlines(keepends=True)
    there = texts(read(tmp_path / "a.token", "".join(reversed(rows))))
    assert {name: number for name, number, _ in there} == {"dog.jpg": DOG, "cat.jpg": CAT}
    assert id_of_name("a/dog.jpg") != DOG


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image_id,image,caption\n 12 ,dog.jpg,a dog\n-3,cat.jpg,a cat\n12,dog.jpg,b\n"),
        ("a.tsv", "image_id\timage\tcaption\n12\tdog.jpg\ta dog\n-3\tcat.jpg\ta cat\n"),
        (
            "a.jsonl",
            '{"image_id": 12, "image": "dog.jpg", "caption": "a dog"}\n'
            '{"image_id": "-3", "image": "cat.jpg", "caption": "a cat"}\n',
        ),
    ],
)
def test_an_id_of_the_source_stays(tmp_path: Path, name: str, content: str) -> None:
    images = read(tmp_path / name, content).images
    assert [image.image_id for image in images] == [12, -3]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    # As Kaggle's Flickr30k has it, quotes that nobody closes and a row without its last bar.
    content = (
        "image_name| comment_number| comment\n"
        '10.jpg| 0| Two men , "a smile .\n'
        "10.jpg| 4   A dog runs .\n"
        "11.jpg| 0| One\n"
    )
    columns = Columns("image_name", "comment")
    images = read(tmp_path / "results.csv", content, columns).images
    assert [image.name for image in images] == ["10.jpg", "11.jpg"]
    # The row that ends early has no caption; that is a failure of its own when it is read.
    assert images[0].captions == [(2, 'Two men , "a smile .'), (3, None)]
    jsonl = '{"file": "1.jpg", "text": "a dog", "number": 4}\n'
    image = read(tmp_path / "a.jsonl", jsonl, Columns("file", "text", "number")).images[0]
    assert image == AnnotatedImage("1.jpg", 4, [(1, "a dog")])


def test_any_caption_of_jsonl_travels_to_its_shard(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "1.jpg", "caption": None},
        {"image": "1.jpg", "caption": {"deep": [[]]}},
        {"image": "1.jpg", "caption": [3, ["x"]]},
        {"image": "1.jpg"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    [image] = read(tmp_path / "a.jsonl", content).images
    assert image.captions == [(1, None), (2, {}), (3, 3), (3, []), (4, None)]


HEADER = "image,caption\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.token",
            TOKENS + "dog.jpg a dog\n",
            ", line 5: 'dog.jpg a dog', expected NAME#NUMBER<TAB>CAPTION",
        ),
        (
            "a.token",
            "dog.jpg#x\ta dog\n",
            ", line 1: 'dog.jpg#x\\ta dog', expected NAME#NUMBER<TAB>CAPTION",
        ),
        (
            "a.token",
            "\n",
            ": no caption in it, expected a token file with lines NAME#NUMBER<TAB>CAPTION",
        ),
        (
            "a.csv",
            "",
            ": no column 'image'; its header has none; name one with --image_column",
        ),
        (
            "a.csv",
            "file,caption\n1.jpg,a\n",
            ": no column 'image'; its header has file, caption; name one with --image_column",
        ),
        (
            "a.tsv",
            "image\ttext\n1.jpg\ta\n",
            ": no column 'caption'; its header has image, text; name one with --caption_column",
        ),
        ("a.csv", "image,caption,image\n1.jpg,a,b\n", ": column 'image' twice, expected each once"),
        (
            "a.csv",
            HEADER,
            ": no caption in it, expected a table with a header such as image,caption",
        ),
        (
            "a.csv",
            HEADER + "1.jpg,a dog, running\n",
            ", line 2: 3 cells, expected at most 2 as in the header; quote a caption that holds "
            "the delimiter",
        ),
        ("a.csv", HEADER + '1.jpg,a\n2.jpg,"a"b\n', ", line 3: ',' expected after '\"'"),
        ("a.csv", HEADER + '1.jpg,"a dog\n', ", line 2: unexpected end of data"),
        ("a.csv", HEADER + ",a dog\n", ", line 2: image is '', expected a file name"),
        ("a.csv", HEADER + " ,a dog\n", ", line 2: image is blank, expected a file name"),
        (
            "a.csv",
            "image_id,image,caption\nx1,1.jpg,a\n",
            ", line 2: image_id is 'x1', expected an integer",
        ),
        (
            "a.csv",
            f"image_id,image,caption\n{2**63},1.jpg,a\n",
            f", line 2: image_id is {2**63}, expected an integer",
        ),
        (
            "a.csv",
            "image_id,image,caption\n1,1.jpg,a\n2,1.jpg,a\n",
            ", line 3: image_id 2 of 1.jpg, expected 1 as in a line before",
        ),
        (
            "a.csv",
            "image_id,image,caption\n1,1.jpg,a\n1,2.jpg,a\n",
            ": image_id 1 twice, expected each once",
        ),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n{\n', ", line 2: no JSON (Expecting"),
        ("a.jsonl", "[" * 100_000, ", line 1: no JSON (maximum recursion depth exceeded"),
        (
            "a.jsonl",
            "[1]\n",
            ', line 1: list, expected a JSON object a line, such as {"image": "1.jpg", "caption": '
            '"a dog"}',
        ),
        ("a.jsonl", '{"caption": "a"}\n', ", line 1: image is None, expected a file name"),
        ("a.jsonl", '{"image": "\\ud800"}\n', ", line 1: image is '\\ud800', expected a file name"),
        (
            "a.jsonl",
            '{"image": "1.jpg", "image_id": true}\n',
            ", line 1: image_id is True, expected an integer",
        ),
        (
            "a.jsonl",
            '{"image": "1.jpg", "image_id": [[1]]}\n',
            ", line 1: image_id is [], expected an integer",
        ),
        (
            "a.token",
            b"1.jpg#0\ta\n2.jpg#0\tb\n3.jpg#0\t\xe9t\xe9\n",
            ", line 3: no UTF-8 text (invalid continuation byte); save it as UTF-8",
        ),
        ("a.csv", b"\xff\xfei\0m\0", ", line 1: no UTF-8 text (invalid start byte); save it as"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / name, content)
    assert str(caught.value).startswith(f"{tmp_path / name}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_column_that_was_named_must_be_there(tmp_path: Path, name: str) -> None:
    content = CSV if name == "a.csv" else JSONL
    message = {
        "a.csv": ": no column 'number'; its header has image, caption; name one with "
        "--image_id_column",
        "a.jsonl": ", line 1: number is None, expected an integer",
    }
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / name, content, Columns(image_id="number"))
    assert str(caught.value) == f"{tmp_path / name}{message[name]}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.token", "a token file with lines NAME#NUMBER<TAB>CAPTION"),
        ("a.csv", "a table with a header such as image,caption"),
        ("a.jsonl", 'a JSON object a line, such as {"image": "1.jpg", "caption": "a dog"}'),
        ("a.txt", "an annotation file"),
        ("a.json", "COCO captions JSON"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_annotations(str(tmp_path / name), Columns())
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read (")
    assert str(caught.value).endswith(f"), expected {expected}")
