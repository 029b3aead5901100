import json
from pathlib import Path

import pytest

from model.errors import InvalidInput
from pipelines.annotations import id_of_name
from pipelines.coco import Inputs, Selection, read_inputs
from pipelines.source_flags import Source, SplitList


def coco(path: Path, split: str, names: dict[int, str], images: str = "/images") -> Source:
    """COCO captions with one caption an image; an image called None has no caption."""
    content = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "annotations": [
            {"id": number, "image_id": number, "caption": "a dog"}
            for number, name in names.items()
            if name != "uncaptioned.jpg"
        ],
    }
    path.write_text(json.dumps(content))
    return Source(split, str(path), images)


def token(path: Path, split: str, *names: str, images: str = "/images") -> Source:
    path.write_text("".join(f"{name}#0\ta dog\n" for name in names))
    return Source(split, str(path), images)


def keys(inputs: Inputs) -> dict[str, list[str]]:
    return {split: [item["key"] for item in items] for split, items in inputs.splits.items()}


def numbered(count: int) -> dict[int, str]:
    return {number: f"{number}.jpg" for number in range(1, count + 1)}


def refusal(sources: list[Source], selection: Selection | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_inputs(sources, selection)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sources_of_one_split_join(tmp_path: Path) -> None:
    first = coco(tmp_path / "a.json", "train", {1: "a.jpg", 2: "uncaptioned.jpg"}, "/coco")
    second = token(tmp_path / "b.token", "train", "b.jpg", "c.jpg", images="/flickr")
    third = token(tmp_path / "c.token", "val", "d.jpg")
    inputs = read_inputs([first, second, third])
    assert keys(inputs) == {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg"]}
    assert [item["source"] for item in inputs.splits["train"]] == [
        "/coco/a.jpg",
        "/flickr/b.jpg",
        "/flickr/c.jpg",
    ]
    assert [item["image_id"] for item in inputs.splits["train"]][:2] == [1, id_of_name("b.jpg")]
    assert (inputs.images, inputs.skipped) == (5, 1)
    assert (inputs.captions, inputs.skipped_captions) == (4, 0)


def test_equal_ids_in_two_sources_of_a_split_stay_those_of_the_sources(tmp_path: Path) -> None:
    first = coco(tmp_path / "a.json", "train", {1: "a.jpg"})
    second = coco(tmp_path / "b.json", "train", {1: "b.jpg"})
    items = read_inputs([first, second]).splits["train"]
    assert [item["image_id"] for item in items] == [1, 1]


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "1 image in both {}, expected each name once: 1.jpg;"),
        (5, "5 images in both {}, expected each name once: 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg;"),
        (
            7,
            "7 images in both {}, expected each name once: 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and "
            "2 more;",
        ),
    ],
)
def test_a_name_in_two_sources_of_a_split_is_refused(
    tmp_path: Path, count: int, named: str
) -> None:
    first = coco(tmp_path / "a.json", "train", numbered(count), "/a")
    second = coco(tmp_path / "b.json", "train", numbered(9), "/b")
    files = f"{first.annotations} and {second.annotations}"
    assert refusal([first, second]) == (
        f"split train: {named.format(files)} leave one of the sources out, or restrict the split "
        "with --split_list"
    )
    assert refusal([second, second]).startswith("split train: 9 images in both ")


def test_shared_images_are_named_with_both_splits_and_their_number(tmp_path: Path) -> None:
    train = coco(tmp_path / "a.json", "train", numbered(9))
    val = coco(tmp_path / "b.json", "val", numbered(7))
    assert refusal([train, val]) == (
        "7 images in splits train and val, expected each in one: 1 (1.jpg), 2 (2.jpg), 3 (3.jpg), "
        "4 (4.jpg), 5 (5.jpg) and 2 more; a captioner must not be scored on what it learned from, "
        "so leave them out of one split, with --split_list"
    )


OLD, NEW = "COCO_val2014_000000000042.jpg", "000000000042.jpg"
FLICKR30K, FLICKR8K = "1000268201.jpg", "1000268201_693b08cb0e.jpg"
OTHER_SECRET = "1000268201_0123456789.jpg"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The same file under other ids.
        (("a.jpg", 1, "/images"), ("a.jpg", 2, "/images")),
        (("x/a.jpg", 1, "/images"), ("a.jpg", 2, "/images/x")),
        (("a.jpg", 1, "/images"), ("./a.jpg", 2, "/images")),
        # A copy of the folder, however deep.
        (("a.jpg", 1, "/images"), ("a.jpg", 1, "/copy")),
        (("x/a.jpg", 1, "/images"), ("y/z/a.jpg", 1, "/copy")),
        # COCO's names of one photograph.
        ((OLD, 42, "/val2014"), (NEW, 42, "/train2017")),
        ((OLD, 42, "/val2014"), ("COCO_train2014_000000000042.jpg", 42, "/train2014")),
        ((f"val2014/{OLD}", 42, "/coco"), (NEW, 42, "/train2017")),
        # The prefix says what it is, whatever the id.
        ((OLD, 7, "/val2014"), (NEW, 42, "/train2017")),
        # Without an id of the source there is nothing against the digits.
        ((NEW, None, "/a"), (OLD, 42, "/b")),
        ((NEW, None, "/a"), (OLD, None, "/b")),
        ((f"x/{NEW}", None, "/a"), (NEW, None, "/b")),
        # A given id counts, though the other source's name is the same.
        ((FLICKR30K, 5, "/a"), (FLICKR30K, 5, "/b")),
        # Flickr's names of one photograph; Karpathy's files give ids of their own.
        ((FLICKR30K, None, "/flickr30k"), (FLICKR8K, None, "/flickr8k")),
        ((FLICKR30K, 5, "/flickr30k"), (f"x/{FLICKR8K}", 7, "/flickr8k")),
        ((FLICKR8K, None, "/a"), (FLICKR8K, None, "/b")),
        ((FLICKR8K, 5, "/a"), (OTHER_SECRET, None, "/b")),
    ],
)
def test_an_image_is_found_in_two_splits_under_whatever_name(
    tmp_path: Path, one: tuple[str, int | None, str], other: tuple[str, int | None, str]
) -> None:
    sources = []
    for split, (name, number, images) in (("train", one), ("val", other)):
        path = tmp_path / split
        if number is None:
            sources.append(token(path, split, name, images=images))
        else:
            sources.append(coco(path, split, {number: name}, images))
    number = id_of_name(other[0]) if other[1] is None else other[1]
    names = ", ".join(dict.fromkeys((one[0], other[0])))
    for ordered in (sources, sources[::-1]):
        assert "1 image in splits " in refusal(ordered)
    assert refusal(sources) == (
        f"1 image in splits train and val, expected each in one: {number} ({names}); a captioner "
        "must not be scored on what it learned from, so leave them out of one split, with "
        "--split_list"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a.jpg", 1), ("a.jpg", 2)),
        (("a.jpg", 1), ("b.jpg", 1)),
        # Digits that are not the id are no name of COCO's.
        (("000000000042.jpg", 7), (OLD, 42)),
        (("0000000042.jpg", 42), (OLD, 42)),
        (("cat/1.jpg", None), ("dog/1.jpg", None)),
        # Without ids a name may be any data set's.
        (("0.jpg", None), ("0.jpg", None)),
        (("0.jpg", None), ("0.jpg", 5)),
        ((FLICKR30K, None), (FLICKR30K, None)),
        ((FLICKR30K, 5), (FLICKR30K, 7)),
        ((FLICKR8K, None), ("1000268202.jpg", None)),
        ((FLICKR8K, None), ("1000268202_693b08cb0e.jpg", None)),
        (("1000268201_693b08cb0.jpg", None), (FLICKR30K, None)),
        (("1000268201_crop.jpg", None), (FLICKR30K, None)),
    ],
)
def test_other_images_are_not_taken_for_one(
    tmp_path: Path, one: tuple[str, int | None], other: tuple[str, int | None]
) -> None:
    sources = []
    for split, (name, number) in (("train", one), ("val", other)):
        path, images = tmp_path / split, f"/{split}"
        if number is None:
            sources.append(token(path, split, name, images=images))
        else:
            sources.append(coco(path, split, {number: name}, images))
    assert keys(read_inputs(sources)) == {"train": [one[0]], "val": [other[0]]}


@pytest.mark.parametrize("with_secret", ["train", "val", "test"])
def test_a_secret_is_found_in_whichever_split_it_is(tmp_path: Path, with_secret: str) -> None:
    sources = [
        token(tmp_path / split, split, FLICKR30K, images=f"/{split}") for split in ("train", "val")
    ]
    assert keys(read_inputs(sources)) == {"train": [FLICKR30K], "val": [FLICKR30K]}
    sources.append(token(tmp_path / "more", with_secret, FLICKR8K, images="/flickr8k"))
    assert "; a captioner must not be scored on what it learned from" in refusal(sources)


def test_tables_without_ids_may_number_their_images_alike(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption\n0.jpg,a dog\n1.jpg,a cat\n")
    (tmp_path / "b.csv").write_text("image,caption\n0.jpg,a hat\n1.jpg,a bat\n")
    train = Source("train", str(tmp_path / "a.csv"), "/a")
    val = Source("val", str(tmp_path / "b.csv"), "/b")
    both = ["0.jpg", "1.jpg"]
    assert keys(read_inputs([train, val])) == {"train": both, "val": both}
    # Of one folder they are the same files.
    assert refusal([train, Source("val", val.annotations, "/a")]).startswith("2 images in splits ")


def test_an_image_twice_in_one_split_is_no_leak(tmp_path: Path) -> None:
    first = coco(tmp_path / "a.json", "train", {42: OLD})
    second = coco(tmp_path / "b.json", "train", {42: NEW})
    assert keys(read_inputs([first, second])) == {"train": [OLD, NEW]}


def lists(tmp_path: Path, **names: str) -> Selection:
    for split, text in names.items():
        (tmp_path / f"{split}.txt").write_text(text)
    return Selection(lists=tuple(SplitList(s, str(tmp_path / f"{s}.txt")) for s in names))


def test_lists_divide_one_file_into_splits(tmp_path: Path) -> None:
    names = ("1.jpg", "x/2.jpg", "3.jpg", "4.jpg", "5.jpg")
    sources = [token(tmp_path / "all.token", split, *names) for split in ("train", "val")]
    # With folder or without, with suffix or without, as Flickr30k's lists are.
    selection = lists(tmp_path, train="1.jpg\r\n\n2.jpg\n", val="3\n4.jpg")
    inputs = read_inputs(sources, selection)
    assert keys(inputs) == {"train": ["1.jpg", "x/2.jpg"], "val": ["3.jpg", "4.jpg"]}
    # Each source counts its five.
    assert (inputs.images, inputs.skipped) == (10, 6)
    assert (inputs.captions, inputs.skipped_captions) == (10, 6)


def test_a_split_without_a_list_keeps_all(tmp_path: Path) -> None:
    sources = [token(tmp_path / "a", "train", "1.jpg", "2.jpg"), token(tmp_path / "b", "val", "3")]
    assert keys(read_inputs(sources, lists(tmp_path, train="1.jpg"))) == {
        "train": ["1.jpg"],
        "val": ["3"],
    }


def test_lists_of_one_split_and_sources_of_one_split_join(tmp_path: Path) -> None:
    sources = [
        token(tmp_path / "a", "train", "1.jpg", "2.jpg"),
        token(tmp_path / "b", "train", "3.jpg", "4.jpg"),
    ]
    both = lists(tmp_path, train="1.jpg"), lists(tmp_path, more="4.jpg")
    more = SplitList("train", both[1].lists[0].path)
    selection = Selection(lists=(both[0].lists[0], more))
    assert keys(read_inputs(sources, selection)) == {"train": ["1.jpg", "4.jpg"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1.jpg\nnone.jpg\n",
            "1 image in no source of split train, expected images with captions: none.jpg; take "
            "those lines out, or name the source that has them",
        ),
        (
            "a\nb\nc\nd\ne\nf\ng\n2.jpg\n1.jpg",
            "7 images in no source of split train, expected images with captions: a, b, c, d, e "
            "and 2 more; take those lines out, or name the source that has them",
        ),
        (
            "1.jpg\nuncaptioned.jpg\n",
            "1 image in no source of split train, expected images with captions: uncaptioned.jpg; "
            "take those lines out, or name the source that has them",
        ),
        ("\n", "empty, expected image names, one a line"),
    ],
)
def test_a_list_that_cannot_be_met_is_refused(tmp_path: Path, text: str, message: str) -> None:
    names = {1: "1.jpg", 2: "2.jpg", 3: "uncaptioned.jpg"}
    source = coco(tmp_path / "a.json", "train", names)
    selection = lists(tmp_path, train=text)
    assert refusal([source], selection) == f"split_list {tmp_path / 'train.txt'}: {message}"


def test_a_list_of_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = token(tmp_path / "a", "train", "1.jpg")
    assert refusal([source], lists(tmp_path, trian="1.jpg")) == (
        f"split_list {tmp_path / 'trian.txt'}: 1 image in no source of split trian, expected "
        "images with captions: 1.jpg; take those lines out, or name the source that has them"
    )


def test_a_source_of_which_the_list_names_no_image_is_refused(tmp_path: Path) -> None:
    sources = [token(tmp_path / "a", "train", "1.jpg"), token(tmp_path / "b", "train", "2.jpg")]
    assert refusal(sources, lists(tmp_path, train="1.jpg")) == (
        f"{tmp_path / 'b'}: no image has captions and a line in its split's list, expected at "
        "least one; leave this source out, or add its images to --split_list"
    )


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    source = token(tmp_path / "a", "train", "1.jpg")
    message = refusal([source], Selection(lists=(SplitList("train", "/none.txt"),)))
    assert message.startswith("/none.txt: cannot be read (")
    assert message.endswith("), expected image names, one a line")
