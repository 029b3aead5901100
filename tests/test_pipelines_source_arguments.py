"""The flags that name sources and a vocabulary, up to the records."""

import argparse
import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import captionbeam
from model import records
from model.encoder import EncoderSettings
from model.errors import InvalidInput
from model.image_bytes import canonicalise
from model.preprocessing import prepare
from model.vocabulary import Vocabulary
from pipelines import source_arguments
from pipelines.annotations import Columns, id_of_name
from pipelines.coco import Selection
from pipelines.records_job import PreprocessSettings, preprocess
from pipelines.source_flags import Source, SplitList, parse_karpathy, parse_source
from tests.preprocess_fixtures import IMAGE_SIZE, FakeEncoder, jpeg, published, write_split

FLICKR850 = Path(__file__).parents[1].parent / "shared" / "data" / "flickr850"


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    source_arguments.add(parser)
    parser.add_argument("--min_word_count", type=int)
    args = parser.parse_args(flags)
    args.beam_args = []
    return args


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("train=/a/Flickr8k.token.txt:/c", Source("train", "/a/Flickr8k.token.txt", "/c")),
        (
            "val=/a/results.token:gs://b/t-*.tar",
            Source("val", "/a/results.token", "gs://b/t-*.tar"),
        ),
        ("val=gs://b/a.csv:s3://c/d", Source("val", "gs://b/a.csv", "s3://c/d")),
        ("val=/a.jsonl:/b.json:x", Source("val", "/a.jsonl", "/b.json:x")),
        ("val=/a.tsv:/b", Source("val", "/a.tsv", "/b")),
    ],
)
def test_a_source_of_any_format_is_cut_at_the_right_colon(text: str, source: Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/dataset_coco.json", "/a/dataset_coco.json"),
        ("gs://b/dataset_coco.json", "gs://b/dataset_coco.json"),
        ("/a/k.json:/images", Source(None, "/a/k.json", "/images")),
        ("gs://b/k.json:gs://c/images/", Source(None, "gs://b/k.json", "gs://c/images")),
        ("/a/k.json:/t-*.tar", Source(None, "/a/k.json", "/t-*.tar")),
        ("/a/k", "/a/k"),
        ("gs://b/k", "gs://b/k"),
        ("gs://b/k:/images", Source(None, "gs://b/k", "/images")),
    ],
)
def test_karpathys_file_with_images_is_a_source(text: str, expected: Source | str) -> None:
    assert parse_karpathy(text) == expected


def test_the_flags_make_sources_and_a_selection() -> None:
    sources, selection = source_arguments.read_sources(
        parse(
            *("--split=train=/a.json:/images", "--split=train=/b.token:/t.tar"),
            *("--karpathy=/k.json:/coco", "--karpathy=/only.json", "--join_restval"),
            *("--split_list=train=/names.txt", "--image_column=file", "--image_id_column=number"),
        )
    )
    assert sources == (
        Source("train", "/a.json", "/images"),
        Source("train", "/b.token", "/t.tar"),
        Source(None, "/k.json", "/coco"),
    )
    assert selection == Selection(
        "/only.json",
        True,
        (SplitList("train", "/names.txt"),),
        Columns("file", "caption", "number"),
    )
    assert source_arguments.read_sources(parse("--karpathy=/k.json:/coco")) == (
        (Source(None, "/k.json", "/coco"),),
        Selection(),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            "no source; expected --split NAME=FILE:IMAGES or --karpathy FILE:IMAGES, at least one",
        ),
        (
            ["--karpathy=/k.json"],
            "--karpathy /k.json assigns the images of --split, of which there is none; expected "
            "FILE:IMAGES, or a --split",
        ),
        (
            ["--split=train=/a.json:/b", "--karpathy=/k.json", "--karpathy=/l.json"],
            "--karpathy /k.json and /l.json both assign the images of --split, expected one such "
            "file; pass FILE:IMAGES for a source of its own",
        ),
        (["--karpathy="], "--karpathy '', expected FILE or FILE:IMAGES"),
        (
            ["--split=train=/a.json:/b", "--split_list=/names.txt"],
            "--split_list /names.txt, expected NAME=FILE, for example "
            "train=Flickr_8k.trainImages.txt",
        ),
        (
            ["--split=train=/a.json:/b", "--join_restval"],
            "--join_restval joins splits of Karpathy's; expected --karpathy with it",
        ),
        (
            ["--split=train=/a.json"],
            "--split train=/a.json, expected NAME=ANNOTATIONS.json:IMAGES with a NAME of letters, "
            "digits and _, for example train=captions_train2017.json:train2017",
        ),
    ],
)
def test_flags_that_name_no_usable_sources(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        source_arguments.read_sources(parse(*flags))
    assert str(caught.value) == message


def test_the_help_names_the_default_columns() -> None:
    defaults = Columns()
    assert source_arguments._COLUMNS.keys() == {f"{name}_column" for name in vars(defaults)}
    for name in ("image", "caption"):
        text = source_arguments._COLUMNS[f"{name}_column"]
        assert text.endswith(f"({getattr(defaults, name)})")


def write_world(root: Path) -> list[str]:
    """A token file over two tars and a CSV over a folder for train, JSONL for val."""
    for tar_name, numbers in (("a", (1, 2, 3)), ("b", (4, 5))):
        with tarfile.open(root / f"photos-{tar_name}.tar", "w") as tar:
            for number in numbers:
                member, data = tarfile.TarInfo(f"set/{number}.jpg"), jpeg(number)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rows = [f"{number}.jpg#{n}\ta red dog {n}\n" for number in (5, 3, 1, 2, 4) for n in (0, 1)]
    (root / "flickr.token").write_text("".join(rows))
    (root / "more").mkdir()
    for number in (11, 12, 21):
        (root / "more" / f"{number}.png").write_bytes(jpeg(number))
    (root / "more.csv").write_text('image_id,image,caption\n70,11.png,"one, ball"\n71,12.png,red\n')
    (root / "val.jsonl").write_text('{"image": "21.png", "caption": ["a red ball", "one"]}\n')
    return [
        f"--split=train={root}/flickr.token:{root}/photos-*.tar",
        f"--split=train={root}/more.csv:{root}/more",
        f"--split=val={root}/val.jsonl:{root}/more",
    ]


@pytest.fixture
def fake_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """The command's encoder, in place of ResNet50."""
    encoder = FakeEncoder(tmp_path / "command.log")
    monkeypatch.setattr("pipelines.records_job.Encoder", lambda _: encoder)
    return encoder


def run(root: Path, *flags: str, output: str = "out") -> int:
    always = ["--encoder_weights=random:0", f"--image_size={IMAGE_SIZE}", "--grid_size=1"]
    return captionbeam.main(["preprocess", *flags, f"--output={root / output}", *always])


def read(output: Path, split: str) -> dict[str, dict[str, Any]]:
    """Records by key."""
    manifest = records.Manifest.load(output)
    rows = {}
    for shard in manifest.shards(split):
        for payload in tf.data.TFRecordDataset(str(output / shard.file)):
            parsed = records.parse(payload[tf.newaxis], manifest.grid_shape)
            row = {name: value[0] for name, value in parsed.items()}
            rows[row["key"].numpy().decode()] = {
                "image_id": int(row["image_id"]),
                "captions": [caption.decode() for caption in row["captions"].numpy()],
                "tokens": row["tokens"].to_list(),
                "grid": row["grid"].numpy(),
            }
    return rows


def test_token_file_tars_csv_and_jsonl_become_records_in_one_run(
    tmp_path: Path, fake_encoder: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_world(tmp_path)
    assert run(tmp_path, *flags, "--min_word_count=1") == 0
    assert "images:   8 inputs = 8 written + 0 failed + 0 skipped" in capsys.readouterr().out
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    token_rows = {f"{n}.jpg": (n, id_of_name(f"{n}.jpg")) for n in range(1, 6)}
    assert {key: row["image_id"] for key, row in (train | val).items()} == {
        **{key: image_id for key, (_, image_id) in token_rows.items()},
        "11.png": 70,
        "12.png": 71,
        "21.png": id_of_name("21.png"),
    }
    for key in token_rows:
        assert train[key]["captions"] == ["a red dog 0", "a red dog 1"]
    assert train["11.png"]["captions"] == ["one, ball"]
    assert train["12.png"]["captions"] == ["red"]
    assert val["21.png"]["captions"] == ["a red ball", "one"]
    seeds = {key: int(key.partition(".")[0]) for key in (*train, *val)}
    for key, row in (train | val).items():
        image = prepare(tf.constant(canonicalise(jpeg(seeds[key])).data), IMAGE_SIZE).image
        grid = fake_encoder(image[tf.newaxis].numpy())[0].numpy().astype(np.float16)
        np.testing.assert_array_equal(row["grid"], grid, err_msg=key)


@pytest.mark.usefixtures("fake_encoder")
def test_what_is_left_out_is_counted_and_what_fails_is_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_world(tmp_path)
    with (tmp_path / "flickr.token").open("a") as file:
        file.write(
            "nowhere.jpg#0\ta dog\nleft_out.jpg#0\ta dog\nleft_out.jpg#1\ta dog\n1.jpg#2\t-\n"
        )
    (tmp_path / "more.csv").write_text("image,caption\n11.png,one ball\n12.png\n")
    names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "nowhere.jpg", "11.png", "12.png"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    more = ["--min_word_count=1", "--max_failure_rate=0.5"]
    assert run(tmp_path, *flags, f"--split_list=train={tmp_path}/names.txt", *more) == 0
    out = capsys.readouterr().out
    assert (
        "images:   10 inputs = 7 written + 2 failed (missing_file 1, no_valid_caption 1) "
        "+ 1 skipped"
    ) in out
    assert (
        "captions: 18 inputs = 13 written + 3 failed (invalid_caption 2, missing_file 1) "
        "+ 2 skipped"
    ) in out
    lines = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    rows = {(row["key"], row["reason"]): row for row in map(json.loads, lines)}
    assert {key: row["message"] for key, row in rows.items()} == {
        (
            "1.jpg",
            "invalid_caption",
        ): "annotation 14: caption '-' without words, expected a sentence",
        ("12.png", "invalid_caption"): (
            "annotation 3: a caption of type NoneType, expected a sentence"
        ),
        ("12.png", "no_valid_caption"): "none of its 1 captions is valid, expected at least one",
        ("nowhere.jpg", "missing_file"): (
            "no member of this name in the tar files, expected an image"
        ),
    }
    assert rows["1.jpg", "invalid_caption"]["source"] == f"{tmp_path}/photos-a.tar/set/1.jpg"


def as_json(vocabulary: Vocabulary, kind: str) -> str:
    return vocabulary.to_json() if kind == "ours" else vocabulary.to_keras_tokenizer()


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("kind", ["ours", "keras"])
def test_a_vocabulary_is_used_as_it_is(tmp_path: Path, kind: str) -> None:
    flags = write_world(tmp_path)
    wanted = Vocabulary(("<pad>", "<unk>", "dog", "<start>", "<end>", "zebra", "red"))
    path = tmp_path / "given.json"
    path.write_text(as_json(wanted, kind))
    assert run(tmp_path, *flags, f"--vocabulary={path}") == 0
    assert Vocabulary.load(tmp_path / "out" / "vocabulary.json") == wanted
    assert records.Manifest.load(tmp_path / "out").vocabulary == {
        "digest": wanted.digest,
        "size": 7,
        "min_word_count": None,
    }
    # "a red dog 0"
    assert read(tmp_path / "out", "train")["1.jpg"]["tokens"][0] == [1, 6, 2, 1]


@pytest.mark.usefixtures("fake_encoder")
def test_another_vocabulary_is_another_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_world(tmp_path)
    one, other = (Vocabulary.build({word: 1}, 1) for word in ("dog", "red"))
    one.save(tmp_path / "one.json")
    other.save(tmp_path / "other.json")
    (tmp_path / "keras.json").write_text(one.to_keras_tokenizer())
    assert run(tmp_path, *flags, f"--vocabulary={tmp_path}/one.json") == 0
    before = published(tmp_path / "out")
    # The same words in another file are the same vocabulary.
    assert run(tmp_path, *flags, f"--vocabulary={tmp_path}/keras.json") == 0
    assert published(tmp_path / "out") == before
    capsys.readouterr()
    for more, now in (
        ([f"--vocabulary={tmp_path}/other.json"], f'"{other.digest}"'),
        ([], "null"),
    ):
        assert run(tmp_path, *flags, *more) == 2
        assert capsys.readouterr().err == (
            f"captionbeam preprocess: {tmp_path}/out holds another job: vocabulary is "
            f'"{one.digest}" there, {now} now; take another --output, or the flags of the first '
            "run to resume it\n"
        )


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (
            "{}",
            ["--min_word_count=5"],
            "--min_word_count 5 with --vocabulary {path}, whose words are not counted; leave one "
            "of them out",
        ),
        (None, [], "{path}: cannot be read ("),
        ("\xff", [], "{path}: cannot be read ("),
        ("{", [], "{path}: not JSON ("),
        ("{}", [], "{path}: schema version None, expected 1; use a vocabulary.json that"),
        ('{"config": {"word_index": "{}"}}', [], "{path}: no word_index, expected the text of a"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(
    tmp_path: Path, content: str | None, more: list[str], message: str
) -> None:
    path = tmp_path / "given.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInput) as caught:
        source_arguments.read_vocabulary(parse(f"--vocabulary={path}", *more))
    assert str(caught.value).startswith(message.format(path=path))


def make(output: Path, *sources: Source, selection: Selection | None = None) -> Path:
    settings = PreprocessSettings(
        sources,
        str(output),
        selection or Selection(),
        encoder=EncoderSettings("random:0", IMAGE_SIZE, 1),
        min_word_count=1,
    )
    preprocess(settings, (), partial(FakeEncoder, output.with_suffix(".log")))
    return output


def test_a_tar_gives_the_records_of_its_folder(tmp_path: Path) -> None:
    annotations, images = write_split(tmp_path, "train", 10)
    tar = tmp_path / "train.tar"
    with tarfile.open(tar, "w") as file:
        file.add(images, "train")
    (images / "none.txt").write_text("")
    one = make(tmp_path / "one", Source("train", str(annotations), str(images)))
    two = make(tmp_path / "two", Source("train", str(annotations), str(tar)))
    shard = "train-00000-of-00001.tfrecord"
    assert (one / shard).read_bytes() == (two / shard).read_bytes()
    assert records.Manifest.load(two).num_images("train") == 10


@pytest.mark.skipif(not FLICKR850.is_dir(), reason=f"no photographs in {FLICKR850}")
def test_real_captions_as_a_token_file_give_the_records_of_their_coco_json(tmp_path: Path) -> None:
    annotations = FLICKR850 / "annotations" / "captions_val.json"
    content = json.loads(annotations.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    lines = [
        f"{names[annotation['image_id']]}#{number}\t{annotation['caption']}\n"
        for number, annotation in enumerate(content["annotations"])
    ]
    (tmp_path / "flickr.token").write_text("".join(lines))
    images = str(FLICKR850 / "images")
    coco = make(tmp_path / "coco", Source("train", str(annotations), images))
    token = make(tmp_path / "token", Source("train", str(tmp_path / "flickr.token"), images))
    expected, found = read(coco, "train"), read(token, "train")
    assert len(expected) == 50
    assert found.keys() == expected.keys()
    assert (coco / "vocabulary.json").read_bytes() == (token / "vocabulary.json").read_bytes()
    for key, row in expected.items():
        assert found[key]["image_id"] == id_of_name(key)
        assert found[key]["captions"] == row["captions"]
        assert len(row["captions"]) == 5
        assert found[key]["tokens"] == row["tokens"]
        np.testing.assert_array_equal(found[key]["grid"], row["grid"])
