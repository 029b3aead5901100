"""model/metrics: pycocoevalcap's figures, pairing by key, and reasons instead of crashes."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from pycocoevalcap import eval as coco_eval

from model import metrics
from model.errors import InvalidInput
from model.metrics import per_image_cider, score, score_all

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no `java` on the PATH")

Captions = dict[str, str]
References = dict[str, list[str]]

CANDIDATES = {
    "cat": "a cat sits on a mat",
    "dog": "A dog runs on the beach.",
    "bus": "a bus",
}
REFERENCES = {
    "bus": ["A red bus drives down a road.", "a bus on the road"],
    "cat": ["a cat sits on the mat", "There's a cat on a mat"],
    "dog": ["a dog runs along the beach"],
}


def perturbed(references: Mapping[str, Sequence[str]]) -> Captions:
    """A candidate an image: right, shortened, reversed, another image's, bracketed or empty."""
    keys = list(references)
    candidates = {}
    for index, key in enumerate(keys):
        words = references[key][0].split()
        others = references[keys[index - 1]][0]
        candidates[key] = [
            references[key][0],
            " ".join(words[: len(words) // 2]),
            " ".join(reversed(words)),
            others,
            f"({words[0]}) " + " ".join(words[2:]),
            "",
        ][index % 6]
    return candidates


def captions_of(*files: str) -> References:
    references: References = {}
    for file in files:
        path = DATA / file
        if not path.exists():
            pytest.skip(f"no {path}")
        for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            references.setdefault(f"{file}-{annotation['image_id']}", []).append(
                annotation["caption"]
            )
    return references


class _NoSpice:
    """In place of pycocoevalcap's Spice, whose constructor downloads."""

    def method(self) -> str:
        return "SPICE"

    def compute_score(self, gts: dict[str, list[str]], _: object) -> tuple[float, list[float]]:
        return 0.0, [0.0] * len(gts)


class _NoMeteor(_NoSpice):
    def method(self) -> str:
        return "METEOR"


def reference_evaluation(
    candidates: Captions, references: References, monkeypatch: pytest.MonkeyPatch, meteor: bool
) -> coco_eval.COCOEvalCap:
    """coco-caption's own `evaluate`, Java tokeniser included."""
    monkeypatch.setattr(coco_eval, "Spice", _NoSpice)
    if not meteor:
        monkeypatch.setattr(coco_eval, "Meteor", _NoMeteor)
    truth = SimpleNamespace(
        getImgIds=lambda: list(references),
        imgToAnns={key: [{"caption": text} for text in texts] for key, texts in references.items()},
    )
    result = SimpleNamespace(
        imgToAnns={key: [{"caption": text}] for key, text in candidates.items()}
    )
    evaluation = coco_eval.COCOEvalCap(truth, result)
    evaluation.evaluate()
    return evaluation


NAMES = {
    "bleu_1": "Bleu_1",
    "bleu_2": "Bleu_2",
    "bleu_3": "Bleu_3",
    "bleu_4": "Bleu_4",
    "rouge_l": "ROUGE_L",
    "cider": "CIDEr",
}


@needs_java
def test_scores_are_those_of_coco_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    references = captions_of(
        "coco80/annotations/captions_train2017.json",
        *(f"flickr850/annotations/captions_{split}.json" for split in ("train", "val", "test")),
    )
    # The shared captions have no brackets, which coco-caption counts as words.
    references = {key: [*texts, f"({texts[0]})"] for key, texts in references.items()}
    candidates = perturbed(references)
    expected = reference_evaluation(candidates, references, monkeypatch, meteor=False)
    ours = score(dict(reversed(candidates.items())), references)
    assert len(references) == 930
    assert ours == pytest.approx({name: expected.eval[NAMES[name]] for name in ours}, abs=1e-6)
    each = per_image_cider(candidates, references)
    of_coco = {key: scores["CIDEr"] for key, scores in expected.imgToEval.items()}
    assert each == pytest.approx(of_coco, abs=1e-6)
    for key, scores in score_all(candidates, references, timeout_s=0.01).per_image.items():
        in_coco = {name: expected.imgToEval[key][NAMES[name]] for name in scores}
        assert scores == pytest.approx(in_coco, abs=1e-6)


@needs_java
@pytest.mark.slow
# pycocoevalcap leaves METEOR's pipes open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_meteor_is_that_of_coco_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    references = captions_of("flickr850/annotations/captions_val.json")
    candidates = perturbed(references)
    expected = reference_evaluation(candidates, references, monkeypatch, meteor=True)
    ours = score_all(candidates, references)
    assert ours.values["meteor"] == pytest.approx(expected.eval["METEOR"], abs=1e-6)
    assert 0.1 < ours.values["meteor"] < 0.9


def test_bleu_and_rouge_by_hand() -> None:
    """Captions of 6, 6 and 2 words, their closest references of 6, 6 and 5.

    Of "a cat sits on a mat" all words and pairs are in a reference, "a dog runs on the beach"
    has 5 of 6 words and 3 of 5 pairs, "a bus" has all. The longest common subsequences are
    5 of 6, 5 of 6, and 2 of 2 words in 5.
    """
    scores = score(CANDIDATES, REFERENCES)
    brevity = math.exp(1 - 17 / 14)
    assert scores["bleu_1"] == pytest.approx(brevity * 13 / 14, abs=1e-6)
    assert scores["bleu_2"] == pytest.approx(brevity * math.sqrt(13 / 14 * 9 / 11), abs=1e-6)
    f_bus = (1 + 1.2**2) * 1 * 0.4 / (0.4 + 1.2**2 * 1)
    assert scores["rouge_l"] == pytest.approx((5 / 6 + 5 / 6 + f_bus) / 3)


def test_scores_of_an_image_are_those_of_its_caption_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for CIDEr-D, whose weights come from all images."""
    monkeypatch.setenv("PATH", str(tmp_path))
    # Keys in another order than the one they are scored in; captions of every quality.
    references = {**REFERENCES, "ant": ["an ant on a leaf in the sun"]}
    candidates = {**CANDIDATES, "ant": "an ant on a leaf"}
    each = score_all(candidates, references).per_image
    assert each.keys() == references.keys()
    ciders = per_image_cider(candidates, references)
    assert len({round(value, 6) for value in ciders.values()}) == 4
    for key, scores in each.items():
        alone = score({key: candidates[key]}, {key: references[key]})
        assert scores.pop("cider") == ciders[key]
        assert scores == pytest.approx({name: alone[name] for name in ("bleu_4", "rouge_l")})
    # All its words stand in the reference, five of eight.
    assert each["ant"]["bleu_4"] == pytest.approx(math.exp(1 - 8 / 5), abs=1e-6)


def test_cider_of_one_shared_word_by_hand() -> None:
    """Two images, each one word of its own: idf log 2, the unigram cosine 1, three orders 0.

    CIDEr-D is 10 times the mean over the four orders.
    """
    references = {"a": ["dog"], "b": ["cat"]}
    assert score({"a": "dog", "b": "cat"}, references)["cider"] == pytest.approx(2.5)
    assert per_image_cider({"a": "dog", "b": "dog"}, references) == pytest.approx(
        {"a": 2.5, "b": 0.0}
    )


def test_a_perfect_candidate_has_every_best_score() -> None:
    references = {
        "one": ["a brown dog runs over the green grass"],
        "two": ["two people ride their bicycles past some shops"],
    }
    scores = score({key: texts[0] for key, texts in references.items()}, references)
    assert scores == pytest.approx(
        {"bleu_1": 1, "bleu_2": 1, "bleu_3": 1, "bleu_4": 1, "rouge_l": 1, "cider": 10}, abs=1e-6
    )


def test_punctuation_and_case_do_not_count() -> None:
    shouted = {key: f" {text.upper()} !" for key, text in CANDIDATES.items()}
    assert score(shouted, REFERENCES) == score(CANDIDATES, REFERENCES)
    truths = {key: [f" {text.upper()} !" for text in texts] for key, texts in REFERENCES.items()}
    assert score(CANDIDATES, truths) == score(CANDIDATES, REFERENCES)


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    empty = score(dict.fromkeys(REFERENCES, ""), REFERENCES)
    assert empty == pytest.approx(dict.fromkeys(empty, 0.0), abs=1e-6)
    one_empty = per_image_cider(CANDIDATES | {"dog": "..."}, REFERENCES)
    assert one_empty["dog"] == 0
    assert one_empty["cat"] == per_image_cider(CANDIDATES, REFERENCES)["cat"]


def test_captions_are_paired_by_key_whatever_their_order() -> None:
    backwards = dict(reversed(CANDIDATES.items()))
    truths_backwards = dict(reversed(REFERENCES.items()))
    assert score(backwards, REFERENCES) == score(CANDIDATES, REFERENCES)
    assert score(backwards, truths_backwards) == score(CANDIDATES, REFERENCES)
    assert list(per_image_cider(CANDIDATES, truths_backwards)) == ["bus", "cat", "dog"]
    assert per_image_cider(backwards, REFERENCES) == per_image_cider(CANDIDATES, REFERENCES)
    assert per_image_cider(CANDIDATES, REFERENCES)["cat"] > 1
    swapped = CANDIDATES | {"cat": CANDIDATES["dog"], "dog": CANDIDATES["cat"]}
    assert score(swapped, REFERENCES)["cider"] < score(CANDIDATES, REFERENCES)["cider"] / 2


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no images to score"),
        ({"a": "dog"}, {"a": ["dog"], "b": ["cat"]}, "image 'b' has no caption"),
        ({"a": "dog", "c": "cat"}, {"a": ["dog"]}, "image 'c' has no references"),
        ({"a": "dog"}, {"a": []}, "image 'a' has references \\[\\]"),
        ({"a": "dog"}, {"a": "dog"}, "image 'a' has references 'dog', expected a list"),
        ({"a": "dog"}, {"a": ["..."]}, "no reference has a word"),
    ],
)
@pytest.mark.parametrize("function", [score, per_image_cider, score_all])
def test_captions_that_cannot_be_paired(
    function: Callable[..., object],
    candidates: Captions,
    references: References,
    message: str,
) -> None:
    with pytest.raises(InvalidInput, match=message):
        function(candidates, references)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score(CANDIDATES, REFERENCES)
    per_image_cider(CANDIDATES, REFERENCES)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a Python script in place of `java`, and SPICE's models in place."""
    models = tmp_path / "models.jar"
    models.touch()
    monkeypatch.setattr(metrics, "_CORENLP", [models])
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(script: str) -> None:
        java = tmp_path / "java"
        java.write_text(f"#!{sys.executable}\nimport json, sys, time\n{script}\n")
        java.chmod(0o755)

    return install


def test_without_java_the_rest_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = score_all(CANDIDATES, REFERENCES)
    assert scores.values == score(CANDIDATES, REFERENCES)
    assert scores.missing.keys() == {"meteor", "spice"}
    assert all("no `java` on the PATH; install" in line for line in scores.missing.values())


def test_missing_jars_are_named_and_not_downloaded(
    fake_java: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java("sys.exit(9)")
    monkeypatch.setattr(metrics, "_CORENLP", [tmp_path / "corenlp.jar"])
    monkeypatch.setattr(metrics, "_METEOR_DIR", tmp_path)
    missing = metrics.missing_metrics()
    assert "no corenlp.jar" in missing["spice"]
    assert "get_stanford_models" in missing["spice"]
    assert "install pycocoevalcap again" in missing["meteor"]


@pytest.mark.parametrize(
    ("script", "timeout_s", "message"),
    [
        ("sys.exit('Out of memory\\nat line 2')", 60, "Java ended with 1: Out of memory"),
        ("sys.exit(3)", 60, "Java ended with 3: no message"),
        ("time.sleep(600)", 0.2, "did not end within 0.2 s"),
        ("print('what?')", 60, "not understood"),
    ],
)
def test_java_that_fails_is_a_reason(
    fake_java: Callable[[str], None], script: str, timeout_s: float, message: str
) -> None:
    fake_java(script)
    scores = score_all(CANDIDATES, REFERENCES, timeout_s=timeout_s)
    assert scores.values == score(CANDIDATES, REFERENCES)
    assert scores.missing.keys() == {"meteor", "spice"}
    for line in scores.missing.values():
        assert message in line
        assert "\n" not in line


# Stands for both jars: METEOR counts words of the hypothesis, SPICE scores by its reference.
_JARS = """
if "-stdio" in sys.argv:
    for line in sys.stdin:
        kind, *fields = line.rstrip("\\n").split(" ||| ")
        if kind == "SCORE":
            print(len(fields[-1].split()), len(fields) - 1)
        else:
            for field in fields:
                print(0.5)
            print(sum(int(field.split()[0]) for field in fields) / 100)
else:
    captions = json.load(open(sys.argv[sys.argv.index("-jar") + 2]))
    scores = [{"image_id": c["image_id"], "scores": {"All": {"f": len(c["refs"]) / 4}}}
              for c in captions]
    json.dump(scores, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


def test_answers_of_the_java_programs_are_read(fake_java: Callable[[str], None]) -> None:
    fake_java(_JARS)
    scores = score_all(CANDIDATES, REFERENCES)
    assert scores.missing == {}
    assert scores.values["meteor"] == pytest.approx(0.14)
    assert scores.values["spice"] == pytest.approx((2 + 2 + 1) / 4 / 3)
