"""Several models that caption together, against one model and against NumPy."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import captionbeam
from model import metrics
from model.captioner import Captioner
from model.checkpoints import load_trained
from model.config import SearchConfig
from model.dataset import Split, images
from model.decoding import WordModel, search_captions
from model.ensemble import Ensemble
from model.evaluation import evaluate
from model.preprocessing import KEEP, choices, fingerprint
from model.records import Manifest
from model.search import Hypotheses
from model.vocabulary import Vocabulary
from tests import tiny
from tests.model_fixtures import edit_manifest, make_model, make_models
from tests.search_fixtures import log_softmax
from tests.test_model_commands import one_line

MAX_LENGTH = 6
VOCABULARY = tiny.make_vocabulary()


@pytest.fixture(autouse=True)
def fixture_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java's scores are slow, and the same whoever wrote the captions."""
    monkeypatch.setattr(metrics, "missing_metrics", lambda: {"meteor": "", "spice": ""})


@pytest.fixture(scope="module", name="root")
def fixture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module", name="members")
def fixture_members(root: Path) -> list[Captioner]:
    return [load_trained(root / name).captioner for name in ("one", "other")]


@pytest.fixture(scope="module", name="grid")
def fixture_grid(root: Path) -> tf.Tensor:
    split = Split(root / "records", Manifest.load(root / "records"), "val")
    return next(iter(images(split, len(tiny.CAPTIONS))))["grid"]


def search(model: WordModel, grid: tf.Tensor, width: int) -> Hypotheses:
    return search_captions(model, VOCABULARY, SearchConfig(width, MAX_LENGTH), grid)


class Reference:
    """Asks captioners one by one, one image at a time, and takes the mean in NumPy."""

    def __init__(self, members: Sequence[Captioner], grid: tf.Tensor) -> None:
        self._members = members
        self._memories = [member.look(grid[tf.newaxis]) for member in members]
        self._states = [member.initial_state(1) for member in members]

    def step(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [V], attention [P]."""
        answers = []
        for index, member in enumerate(self._members):
            state, memory = self._states[index], self._memories[index]
            logits, self._states[index], weights = member.step(tf.constant([token]), state, memory)
            answers.append((log_softmax(logits[0].numpy()), weights[0].numpy()))
        # The mean of log-probabilities is that of a distribution only up to a factor.
        mean = log_softmax(np.mean([log_probs for log_probs, _ in answers], axis=0))
        return mean, np.mean([weights for _, weights in answers], axis=0)

    def greedy(self) -> tuple[list[int], float, list[np.ndarray]]:
        """Words, log-probability with the end, attention of each word."""
        words: list[int] = []
        attention: list[np.ndarray] = []
        total, last = 0.0, VOCABULARY.start_id
        while True:
            log_probs, weights = self.step(last)
            allowed = log_probs.copy()
            allowed[[VOCABULARY.pad_id, VOCABULARY.start_id, VOCABULARY.unk_id]] = -np.inf
            full = len(words) == MAX_LENGTH
            last = VOCABULARY.end_id if full else int(allowed.argmax())
            total += log_probs[last]
            if last == VOCABULARY.end_id:
                return words, total, attention
            words.append(last)
            attention.append(weights)


def words_of(found: Hypotheses, row: int) -> list[int]:
    return found.tokens[row, 0, : int(found.length[row, 0])].numpy().tolist()


@pytest.mark.parametrize("width", [1, 3])
def test_a_model_twice_is_that_model(width: int, members: list[Captioner], grid: tf.Tensor) -> None:
    alone = search(members[0], grid, width)
    twice = search(Ensemble([members[0], members[0]]), grid, width)
    np.testing.assert_array_equal(twice.tokens[:, 0], alone.tokens[:, 0])
    np.testing.assert_allclose(twice.log_prob[:, 0], alone.log_prob[:, 0], atol=1e-5)
    np.testing.assert_allclose(twice.attention[:, 0], alone.attention[:, 0], atol=1e-6)
    assert len({tuple(words_of(alone, row)) for row in range(len(grid))}) > 1


def test_greedy_captions_are_those_of_the_mean_in_numpy(
    members: list[Captioner], grid: tf.Tensor
) -> None:
    found = search(Ensemble(members), grid, width=1)
    single = [search(member, grid, width=1) for member in members]
    own = 0
    for row, cells in enumerate(grid):
        words, log_prob, attention = Reference(members, cells).greedy()
        assert words_of(found, row) == words
        assert float(found.log_prob[row, 0]) == pytest.approx(log_prob, abs=1e-4)
        for time, weights in enumerate(attention):
            np.testing.assert_allclose(found.attention[row, 0, time], weights, atol=1e-5)
        own += all(words != words_of(each, row) for each in single)
    # An ensemble that asked only one of its members would never differ from both.
    assert own > 0


def test_beams_carry_the_state_of_every_member(members: list[Captioner], grid: tf.Tensor) -> None:
    found = search(Ensemble(members), grid, width=3)
    greedy = search(Ensemble(members), grid, width=1)
    assert any(words_of(found, row) != words_of(greedy, row) for row in range(len(grid)))
    for row, cells in enumerate(grid):
        reference, total, last = Reference(members, cells), 0.0, VOCABULARY.start_id
        for word in [*words_of(found, row), VOCABULARY.end_id]:
            total += reference.step(last)[0][word]
            last = word
        assert float(found.log_prob[row, 0]) == pytest.approx(total, abs=1e-4)


def test_evaluate_with_a_model_twice_and_with_two(root: Path, tmp_path: Path) -> None:
    def report(*names: str) -> Any:
        models = [part for name in names for part in ("--model_dir", str(root / name))]
        output = tmp_path / f"{'-'.join(names)}.json"
        flags = ("--records", str(root / "records"), "--output", str(output))
        assert captionbeam.main(["evaluate", *flags, *models]) == 0
        return json.loads(output.read_text())

    one, twice, both = report("one"), report("one", "one"), report("one", "other")
    assert (one["model_dir"], one["step"]) == (str(root / "one"), 3)
    assert twice["model_dir"] == [str(root / "one")] * 2
    for name in ("best", "worst"):
        assert twice["summary"].pop(name) == one["summary"].pop(name)
    assert twice["summary"] == pytest.approx(one["summary"], abs=1e-5)
    for got, expected in zip(twice["captions"], one["captions"], strict=True):
        assert got["caption"] == expected["caption"]
        assert got["log_prob"] == pytest.approx(expected["log_prob"], abs=1e-5)
    assert both["model_dir"] == [str(root / "one"), str(root / "other")]
    assert (both["step"], both["beam_width"]) == ([3, 5], 3)
    pair = [load_trained(root / name).captioner for name in ("one", "other")]
    split = Split(root / "records", Manifest.load(root / "records"), "val")
    found = search(Ensemble(pair), next(iter(images(split, 7)))["grid"], width=3)
    captions = [VOCABULARY.decode(words_of(found, row)) for row in range(7)]
    assert [row["caption"] for row in both["captions"]] == captions
    assert captions != [row["caption"] for row in one["captions"]]


def test_the_first_models_settings_search(root: Path, tmp_path: Path) -> None:
    narrow = make_model(root / "records", tmp_path / "narrow", ("beam_width", 1), ("max_length", 2))
    first = evaluate(root / "records", [narrow, root / "one"], "val", None)
    last = evaluate(root / "records", [root / "one", narrow], "val", 2)
    assert (first["beam_width"], last["beam_width"]) == (1, 2)
    assert max(row["words"] for row in first["captions"]) == 2
    assert max(row["words"] for row in last["captions"]) > 2


def of_another_vocabulary(records: Path) -> str:
    vocabulary = Vocabulary.build({"other": 1}, 1)
    vocabulary.save(records / "vocabulary.json")
    edit_manifest(records, vocabulary={"digest": vocabulary.digest, "size": 5})
    return f"vocabulary {vocabulary.digest[:8]}, ONE has {VOCABULARY.digest[:8]}"


def of_another_encoder(records: Path) -> str:
    edit_manifest(records, encoder={"name": "resnet50", "weights": "w.h5", "digest": "e" * 64})
    return "encoder w.h5 eeeeeeee, ONE has 00000000"


def of_another_shape(records: Path) -> str:
    other = choices(64, 2, KEEP)
    edit_manifest(records, preprocessing=other, fingerprint=fingerprint(other))
    return "aspect keep, ONE has squash"


@pytest.mark.parametrize("change", [of_another_vocabulary, of_another_encoder, of_another_shape])
def test_models_that_do_not_fit_each_other(
    change: Callable[[Path], str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tiny.make_records(tmp_path / "records")
    difference = change(records).replace("ONE", str(root / "one"))
    odd = make_model(records, tmp_path / "odd")
    flags = ("--records", str(root / "records"), "--output", str(tmp_path / "report.json"))
    models = [f"--model_dir={path}" for path in (root / "one", root / "other", odd)]
    line = one_line(capsys, "evaluate", *flags, *models)
    assert line == (
        f"captionbeam evaluate: {odd}: {difference}; models that caption together need one "
        "vocabulary and the same grids, train them on the same records\n"
    )
    assert not (tmp_path / "report.json").exists()
