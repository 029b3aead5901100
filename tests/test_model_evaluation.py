"""Evaluation: what the report says of each caption and of all, against figures by hand."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captionbeam
from model import metrics
from model.caption_statistics import caption_rows, summarise
from model.checkpoints import load_trained
from model.dataset import Split, images
from model.decoding import Prediction, attention_entropy, search_captions
from model.errors import InvalidInput
from model.evaluation import evaluate
from model.records import Manifest
from model.training_captions import TrainingCaptions
from model.vocabulary import Vocabulary, tokenise
from tests import tiny
from tests.boxes_fixtures import write_instances
from tests.model_fixtures import edit_manifest, make_model, make_models, train_model

VOCABULARY = Vocabulary.build({"a": 9, "dog": 8, "runs": 7, "cat": 6}, 1)
JAVA_IS_MISSING = {"meteor": "no java", "spice": "no java"}


@pytest.fixture(autouse=True)
def fixture_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java's scores are the business of test_model_metrics, and slow."""
    monkeypatch.setattr(metrics, "missing_metrics", JAVA_IS_MISSING.copy)


@pytest.fixture(scope="module", name="root")
def fixture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `records` and the models `one`, `other` and, trained, `knowing`."""
    root = make_models(tmp_path_factory.mktemp("evaluation"))
    train_model(root / "records", root / "knowing")
    return root


def written(key: str, caption: str, *references: str, entropy: float | None = 1.0) -> Prediction:
    tokens = tuple(VOCABULARY.encode(caption))
    attention = np.zeros((len(tokens), 1), np.float32)
    return Prediction(key, caption, -1.5, references, tokens, entropy, attention)


def test_a_row_says_how_good_how_new_and_how_long_a_caption_is() -> None:
    predictions = [
        written("z", "a dog runs", "A cat.", "A dog runs!", entropy=0.25),
        written("b", "a dog", "a dog runs"),
    ]
    scores = {"b": {"cider": 2.0}, "z": {"cider": 1.0}}
    seen = {predictions[1].tokens}
    assert caption_rows(predictions, scores, seen.__contains__) == [
        {
            "key": "z",
            "caption": "a dog runs",
            "log_prob": -1.5,
            "exact": True,
            "seen": False,
            "words": 3,
            "cider": 1.0,
            "attention_entropy": 0.25,
            "references": ["A cat.", "A dog runs!"],
        },
        {
            "key": "b",
            "caption": "a dog",
            "log_prob": -1.5,
            "exact": False,
            "seen": True,
            "words": 2,
            "cider": 2.0,
            "attention_entropy": 1.0,
            "references": ["a dog runs"],
        },
    ]
    assert [row["seen"] for row in caption_rows(predictions, scores, None)] == [None, None]


def test_entropy_of_attention_by_hand() -> None:
    one_cell, all_alike, two_cells = [1.0, 0, 0, 0], [0.25] * 4, [0.5, 0, 0.5, 0]
    assert attention_entropy(np.array([one_cell])) == 0
    assert attention_entropy(np.array([all_alike])) == pytest.approx(math.log(4))
    mean = (0 + math.log(4) + math.log(2)) / 3
    assert attention_entropy(np.array([one_cell, all_alike, two_cells])) == pytest.approx(mean)
    assert attention_entropy(np.zeros((0, 4))) is None


def searched(root: Path, split: str) -> dict[str, tuple[list[str], np.ndarray]]:
    """Words of each caption of `knowing` by key, and the attention [T, P] that wrote them."""
    trained = load_trained(root / "knowing")
    found = {}
    for batch in images(Split(root / "records", trained.manifest, split), 1):
        search = trained.config.search
        best = search_captions(trained.captioner, trained.vocabulary, search, batch["grid"])
        length = int(best.length[0, 0])
        words = [trained.vocabulary.words[token] for token in best.tokens[0, 0, :length].numpy()]
        found[batch["key"][0].numpy().decode()] = words, best.attention[0, 0, :length].numpy()
    return found


def test_rows_of_a_report_are_those_of_the_search(root: Path) -> None:
    """On a split of two shards, whose order is not that of the keys that scores are sorted by."""
    report = evaluate(root / "records", [root / "knowing"], "train", None)
    rows = report["captions"]
    assert [row["key"] for row in rows] != sorted(row["key"] for row in rows)
    found = searched(root, "train")
    candidates = {row["key"]: row["caption"] for row in rows}
    references = {row["key"]: row["references"] for row in rows}
    ciders = metrics.per_image_cider(candidates, references)
    # Short and long captions: a mean over all T rows would differ.
    assert len({row["words"] for row in rows}) > 1
    for row in rows:
        key, (words, attention) = row["key"], found[row["key"]]
        weights = attention.astype(np.float64)
        expected = np.mean([-np.sum(word[word > 0] * np.log(word[word > 0])) for word in weights])
        assert row["attention_entropy"] == pytest.approx(expected, abs=1e-5)
        assert tokenise(row["caption"]) == words
        assert row["words"] == len(words)
        alone = metrics.score({key: candidates[key]}, {key: references[key]})
        assert row["cider"] == ciders[key]
        assert row["bleu_4"] == pytest.approx(alone["bleu_4"])
        assert row["rouge_l"] == pytest.approx(alone["rouge_l"])
    assert len({row["cider"] for row in rows}) > 2
    summary, mean = report["summary"], np.mean([row["attention_entropy"] for row in rows])
    assert summary["mean_attention_entropy"] == pytest.approx(mean)
    assert 0 < mean < summary["max_attention_entropy"] == math.log(tiny.GRID_SHAPE[0])
    assert report["scores"]["cider"] == pytest.approx(np.mean(list(ciders.values())))


def test_empty_captions_have_no_entropy(tmp_path: Path, root: Path) -> None:
    silent = make_model(root / "records", tmp_path / "silent", end_bias=100.0)
    report = evaluate(root / "records", [silent], "val", None)
    facts = {(row["caption"], row["words"], row["attention_entropy"]) for row in report["captions"]}
    assert facts == {("", 0, None)}
    assert report["summary"]["mean_attention_entropy"] is None
    assert report["summary"]["mean_words"] == report["summary"]["vocabulary_written"] == 0
    assert report["summary"]["unseen"] == 1


def test_seen_are_the_captions_of_the_training_split(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one batch.
    monkeypatch.setattr("model.training_captions._BATCH_SIZE", 2)
    before = evaluate(root / "records", [root / "knowing"], "val", None)
    captions = list(dict.fromkeys(row["caption"] for row in before["captions"]))
    copied, shouted, longer, shorter = captions[:4]
    train = [
        ("some other words", copied),
        (f"a {longer}", f"{longer} bird", shorter.rpartition(" ")[0]),
        ("a boat",),
        (f"{shouted.upper()} !", "a cat"),
    ]
    records = tiny.make_records(tmp_path / "records", train=train)
    report = evaluate(records, [root / "knowing"], "val", None)
    assert [row["caption"] for row in report["captions"]] == [
        row["caption"] for row in before["captions"]
    ]
    seen = [row["caption"] in (copied, shouted) for row in report["captions"]]
    assert [row["seen"] for row in report["captions"]] == seen
    assert report["summary"]["unseen"] == pytest.approx(1 - sum(seen) / len(tiny.CAPTIONS))
    assert report["missing"] == JAVA_IS_MISSING


def without_train(records: Path) -> str:
    splits = Manifest.load(records).splits
    edit_manifest(records, splits={"val": splits["val"]})
    return "no split 'train' in the records, expected one of ['val']"


def with_an_empty_train(records: Path) -> str:
    edit_manifest(records, splits={**Manifest.load(records).splits, "train": ()})
    return f"split 'train' of {records} has no images"


def with_another_vocabulary(records: Path) -> str:
    edit_manifest(records, vocabulary={"digest": "f" * 64, "size": 9, "min_word_count": 1})
    digest = tiny.make_vocabulary().digest[:8]
    return (
        f"{records}: vocabulary ffffffff, the model's is {digest}; "
        "evaluate on the records it was trained on"
    )


def with_a_lost_shard(records: Path) -> str:
    shard = records / "train-00001-of-00002.tfrecord"
    size = shard.stat().st_size
    shard.unlink()
    return (
        f"{shard}: no such file, expected the {size} bytes that the manifest names; "
        f"mend it with `captionbeam preprocess --check {records} --repair`"
    )


def with_a_damaged_shard(records: Path) -> str:
    shard = records / "train-00001-of-00002.tfrecord"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return (
        f"{records}: a shard of split 'train' is damaged; "
        f"mend it with `captionbeam preprocess --check {records} --repair`"
    )


@pytest.mark.parametrize(
    "damage",
    [
        without_train,
        with_an_empty_train,
        with_another_vocabulary,
        with_a_lost_shard,
        with_a_damaged_shard,
    ],
)
def test_why_there_are_no_training_captions(damage: Callable[[Path], str], tmp_path: Path) -> None:
    records = tiny.make_records(tmp_path / "records")
    reason = damage(records)
    with pytest.raises(InvalidInput) as caught:
        TrainingCaptions(records, Manifest.load(records), tiny.make_vocabulary())
    assert str(caught.value) == reason


def test_without_training_captions_the_rest_is_reported(tmp_path: Path, root: Path) -> None:
    records = tiny.make_records(tmp_path / "records")
    reason = with_a_lost_shard(records)
    report = evaluate(records, [root / "knowing"], "val", None)
    assert report["missing"] == JAVA_IS_MISSING | {"seen": reason}
    assert {row["seen"] for row in report["captions"]} == {None}
    assert report["summary"]["unseen"] is None
    assert report["scores"]["exact_match"] == 1


def summary_of(predictions: Sequence[Prediction], ciders: Sequence[float]) -> dict[str, Any]:
    """Of captions with these CIDEr scores; only "a dog" was in training."""
    scores = {
        prediction.key: {"cider": cider}
        for prediction, cider in zip(predictions, ciders, strict=True)
    }
    seen = {tuple(VOCABULARY.encode("a dog"))}
    rows = caption_rows(predictions, scores, seen.__contains__)
    return summarise(rows, predictions, VOCABULARY, cells=9)


def test_summary_by_hand() -> None:
    predictions = [
        # Of the references, 3 of 3 and 0 of 2 words are in the vocabulary, …
        written("b", "a dog", "a dog runs", "two dogs", entropy=0.5),
        # … 2 of 2, and of "the cat 's runs" 2 of 4.
        written("a", "", "a cat!", entropy=None),
        written("c", "a a dog runs", "The cat's runs.", entropy=1.5),
    ]
    summary = summary_of(predictions, [0.5, 0.25, 2.0])
    lists = {name: [row["key"] for row in summary.pop(name)] for name in ("best", "worst")}
    assert lists == {"best": ["c", "b", "a"], "worst": ["a", "b", "c"]}
    assert summary == pytest.approx(
        {
            "mean_words": 6 / 3,
            "mean_reference_words": 11 / 4,
            "unseen": 2 / 3,
            "vocabulary_written": 3 / 4,
            "references_known": 7 / 11,
            "mean_attention_entropy": (0.5 + 1.5) / 2,
            "max_attention_entropy": math.log(9),
        }
    )


def test_the_ten_best_and_worst_captions() -> None:
    # Two dozen: the scores fall from "a" on, but that of "m" is the highest of all.
    keys = "abcdefghijklmnopqrstuvwx"
    ciders = [9.0 if key == "m" else 5.0 - index / 10 for index, key in enumerate(keys)]
    # Equal scores stand in the order of their keys, whichever way the scores go.
    ciders[0] = ciders[1]
    ciders[22] = ciders[23]
    predictions = [written(key, f"a dog {key}", "a dog") for key in reversed(keys)]
    summary = summary_of(predictions, ciders[::-1])
    assert "".join(row["key"] for row in summary["best"]) == "mabcdefghi"
    assert "".join(row["key"] for row in summary["worst"]) == "wxvutsrqpo"
    assert summary["best"][0] == {"key": "m", "caption": "a dog m", "cider": 9.0}


NOUNS = ("dog", "bird", "tree", "people", "house", "hat", "cat", "boat", "lake", "flowers")
# Of a picture of 60 × 20 pixels, whose cells are 30 × 10.
UPPER_RIGHT = [30, 0, 30, 10]


def test_the_pointing_score_is_that_of_the_search(tmp_path: Path, root: Path) -> None:
    written_by = searched(root, "val")
    # Two pictures have no boxes, one only such as no caption names.
    *with_boxes, unnamed, _, _ = sorted(written_by)
    pictures = {key: [(noun, UPPER_RIGHT) for noun in NOUNS] for key in with_boxes}
    path = write_instances(
        tmp_path / "boxes.json", {**pictures, unnamed: [("unicorn", UPPER_RIGHT)]}, size=(60, 20)
    )
    report = evaluate(root / "records", [root / "knowing"], "val", None, path)
    expected = {
        key: [
            (word, place, int(weights[place].argmax()), int(weights[place].argmax()) == 1)
            for place, word in enumerate(words)
            if word in NOUNS
        ]
        for key, (words, weights) in written_by.items()
        if key in with_boxes
    }
    hits = [hit for named in expected.values() for *_, hit in named]
    # Attention that looks at one cell alone, or at none of the boxes, would prove nothing.
    assert 0 < sum(hits) < len(hits)
    for row in report["captions"]:
        pointing = row["pointing"]
        if row["key"] in with_boxes:
            found = [tuple(p[name] for name in ("name", "word", "cell", "hit")) for p in pointing]
            assert found == expected[row["key"]]
        else:
            assert pointing == ([] if row["key"] == unnamed else None)
    assert report["scores"]["pointing"] == sum(hits) / len(hits)
    assert report["summary"]["pointing"] == {
        "named": len(hits),
        "images": len(with_boxes) + 1,
        "chance": pytest.approx(1 / 4),
        "reachable": 1.0,
    }
    assert "pointing" not in report["missing"]


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        ({"image-0.jpg": [("unicorn", UPPER_RIGHT)]}, "no caption names an object that has a box"),
        ({"0.jpg": []}, "has none of the split's images by their file names, such as image-0.jpg"),
    ],
)
def test_a_pointing_score_that_cannot_be_is_missing(
    pictures: Any, reason: str, tmp_path: Path, root: Path
) -> None:
    path = write_instances(tmp_path / "boxes.json", pictures)
    report = evaluate(root / "records", [root / "one"], "val", None, path)
    assert "pointing" not in report["scores"]
    assert reason in report["missing"]["pointing"]
    assert report["scores"]["bleu_1"] >= 0


def test_without_boxes_nothing_is_said_of_pointing(root: Path) -> None:
    report = evaluate(root / "records", [root / "one"], "val", None)
    assert "pointing" not in {**report["scores"], **report["missing"], **report["summary"]}


def test_boxes_are_read_before_any_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"boxes\.json: cannot be read"):
        evaluate(tmp_path, [tmp_path], "val", None, tmp_path / "boxes.json")


REPORT = {
    "model_dir": "model",
    "step": 7,
    "split": "val",
    "images": 2,
    "beam_width": 3,
    "scores": {"bleu_1": 0.5},
    "missing": {"spice": "no Java"},
    "summary": {
        "mean_words": 9.5,
        "mean_reference_words": 10.25,
        "unseen": 0.75,
        "vocabulary_written": 0.125,
        "references_known": 0.96875,
        "mean_attention_entropy": 3.5,
        "max_attention_entropy": 3.89182,
        "best": [{"key": "x.jpg", "caption": "a dog", "cider": 2.5}],
        "worst": [{"key": "y.jpg", "caption": "", "cider": 0.0}],
    },
    "captions": [],
}

POINTING = {"named": 3, "images": 2, "chance": 0.125, "reachable": 0.75}


def test_what_a_person_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    report = json.loads(json.dumps(REPORT))

    def evaluate(*given: Any) -> Any:
        asked.append(given)
        return report

    monkeypatch.setattr("model.evaluation.evaluate", evaluate)
    output = tmp_path / "report.json"
    flags = ("--records", "r", "--model_dir", "m", "--output", str(output))
    assert captionbeam.main(["evaluate", *flags]) == 0
    head = ["2 images of val, beam width 3", "  bleu_1       0.5000"]
    missing = ["  spice        missing: no Java"]
    words = "  words        9.5000 a caption, 10.2500 a reference"
    unseen = "  unseen       0.7500 of the captions were not in training"
    coverage = "  vocabulary   0.1250 of it written, 0.9688 of the references' words in it"
    attention = "  attention    3.5000 nats of entropy a word, at most 3.8918"
    extremes = ["  best         2.5000 x.jpg: a dog", "  worst        0.0000 y.jpg: "]
    named = "  named        3 objects that have boxes, in 2 images; "
    named += "pointing by chance 0.1250, at most 0.7500"
    last = [f"report: {output}"]
    shown = capsys.readouterr().out.splitlines()
    assert shown == [*head, *missing, words, unseen, coverage, attention, *extremes, *last]
    assert json.loads(output.read_text()) == REPORT

    report["summary"] |= {"unseen": None, "mean_attention_entropy": None}
    report["summary"]["pointing"] = POINTING
    more = ("--model_dir", "n", "--beam_width", "2", "--split", "test", "--boxes", "b.json")
    assert captionbeam.main(["evaluate", *flags, *more]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *head, *missing, words, coverage, named, *extremes, *last
    ]  # fmt: skip
    assert asked == [
        (Path("r"), [Path("m")], "val", None, None),
        (Path("r"), [Path("m"), Path("n")], "test", 2, Path("b.json")),
    ]

    report["summary"]["pointing"] = {**POINTING, "named": 0, "chance": None, "reachable": None}
    assert captionbeam.main(["evaluate", *flags]) == 0
    nothing = "  named        0 objects that have boxes, in 2 images"
    assert nothing in capsys.readouterr().out.splitlines()
