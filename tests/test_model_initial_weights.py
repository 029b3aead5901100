"""A run that begins with another one's weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints import load_trained
from model.errors import CaptionbeamError, RecordsMismatch
from model.initial_weights import begin_with
from model.records import Manifest
from model.run import Run
from model.trainer import Trainer
from model.vocabulary import Vocabulary
from tests import tiny
from tests.trainer_fixtures import history, make_run, silent, validate_as, weights

FIRST = ("validation_steps", 2)


def second_phase(tmp_path: Path, steps: int, *changes: tuple[str, object]) -> tuple[Run, Run]:
    """A finished run, and one that begins with its weights."""
    first = make_run(tmp_path, "first", 2, FIRST)
    if not first.model_dir.exists():
        Trainer(first).fit(silent)
    second = make_run(tmp_path, "second", steps, FIRST, ("seed", 5), *changes)
    return first, replace(second, init_from=first.model_dir)


@pytest.mark.slow
def test_begins_with_the_best_weights_and_keeps_them_until_there_are_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 1.0, 3.0, 2.0, 4.0)
    first, run = second_phase(tmp_path, 4, ("dropout", 0.0), ("ema_decay", 0.9))
    best = load_trained(first.model_dir).captioner.weights
    second = Trainer(run)
    second._begin()
    for one, other in zip(second.captioner.weights, best, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    with second.averages.applied():
        for one, other in zip(second.captioner.weights, best, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    second.fit(silent)
    rows = history(run)
    assert [(row["step"], row["val_cider"], row.get("best")) for row in rows] == [
        (0, 3.0, True),
        (2, 2.0, None),
        (4, 4.0, True),
    ]
    assert load_trained(run.model_dir).step == 4


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_own_weights(tmp_path: Path) -> None:
    _, run = second_phase(tmp_path, 4)
    whole = Trainer(run)
    whole.fit(silent)
    stopped = replace(run, model_dir=tmp_path / "stopped", steps=3)
    Trainer(stopped).fit(silent)
    resumed = Trainer(replace(stopped, steps=4))
    resumed.fit(silent)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["step"] for row in history(stopped)] == [0, 2, 3, 4]


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    first, run = second_phase(tmp_path, 2, ("hidden_size", 20))
    expected = r"expected the same; add --set decoder\.hidden_size=16$"
    with pytest.raises(CaptionbeamError, match=expected):
        Trainer(run)
    # The next command may follow the advice: nothing was begun.
    assert not run.model_dir.exists()
    tied = replace(run, config=run.config.updated([("hidden_size", 16), ("tie_embeddings", True)]))
    with pytest.raises(CaptionbeamError, match=r"add --set decoder\.tie_embeddings=false$"):
        Trainer(tied)
    captioner, manifest = load_trained(first.model_dir).captioner, Manifest.load(run.records)
    zebras = Vocabulary.build({"zebras": 1}, 1)
    with pytest.raises(RecordsMismatch, match=f"--init_from {first.model_dir}: vocabulary"):
        begin_with(captioner, zebras, manifest, first.model_dir)
    larger = replace(manifest, preprocessing={**manifest.preprocessing, "image_size": 96})
    with pytest.raises(RecordsMismatch, match="--records: image size 96, the model expects 64"):
        begin_with(captioner, tiny.make_vocabulary(), larger, first.model_dir)
    nothing = replace(run, model_dir=tmp_path / "fourth", init_from=tmp_path)
    with pytest.raises(CaptionbeamError, match="expected a directory of `captionbeam train`"):
        Trainer(nothing)
