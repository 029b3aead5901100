"""A model directory, its records and its settings belong together, or a line says why not."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints import load_trained
from model.errors import InvalidInput, RecordsMismatch
from model.preprocessing import KEEP, SQUASH, choices, fingerprint
from model.records import Manifest
from model.trainer import Trainer
from model.vocabulary import Vocabulary
from tests import tiny
from tests.trainer_fixtures import (
    make_run,
    silent,
)


def test_other_settings_on_the_same_model_dir_are_refused(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, "model", 2)).fit(silent)
    with pytest.raises(InvalidInput, match=r"begun with decoder.dropout 0.2, now 0.5"):
        Trainer(make_run(tmp_path, "model", 2, ("dropout", 0.5)))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_grids_of_another_encoder_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.records / "manifest.json", '"digest": "00000000', '"digest": "11110000')
    with pytest.raises(RecordsMismatch, match="encoder random:0 11110000, the model expects 0000"):
        Trainer(run)


def test_the_same_encoder_from_another_path_is_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.records / "manifest.json", '"weights": "random:0"', '"weights": "/mnt/w.h5"')
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    assert lines[0] == "resuming at step 2 of 2"


def test_grids_of_another_preprocessing_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    wanted = r"preprocessing version is 1 there, 3 in this version of captionbeam; preprocess again"
    rewrite(run.model_dir / "manifest.json", '"version": 3', '"version": 1')
    with pytest.raises(RecordsMismatch, match=wanted):
        load_trained(run.model_dir)
    rewrite(run.records / "manifest.json", '"version": 3', '"version": 1')
    with pytest.raises(RecordsMismatch, match=wanted):
        Trainer(make_run(tmp_path, "fresh", 2))


def test_choices_that_do_not_give_the_fingerprint_were_edited(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    rewrite(run.records / "manifest.json", '"aspect": "squash"', '"aspect": "keep"')
    with pytest.raises(
        RecordsMismatch, match=r"fingerprint \w{8}, its choices give \w{8}; the man"
    ):
        Trainer(run)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ((64, 2, KEEP), "aspect keep, the model expects squash"),
        ((96, 2, SQUASH), "image size 96, the model expects 64"),
        ((64, 1, SQUASH), "grid size 1, the model expects 2"),
    ],
)
def test_going_on_with_other_grids_names_the_difference(
    tmp_path: Path, settings: tuple[int, int, str], difference: str
) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    other = choices(*settings)
    manifest = replace(
        Manifest.load(run.records), preprocessing=other, fingerprint=fingerprint(other)
    )
    (run.records / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(RecordsMismatch) as caught:
        Trainer(run)
    assert str(caught.value) == (
        f"{run.records}: {difference}; preprocess with the model's settings"
    )


def test_going_on_without_the_flip_copies_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    manifest = replace(Manifest.load(run.records), flip_copies=3)
    (run.records / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(RecordsMismatch, match="records with flip copies, training began without"):
        Trainer(run)


def test_unfinished_records_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    (run.records / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match=r"no manifest.json, expected a finished records"):
        Trainer(run)


def test_resuming_on_other_records_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    tiny.make_records(run.records, seed=1)
    with pytest.raises(RecordsMismatch, match="split train has other records"):
        Trainer(run)


def test_a_validation_split_without_images_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    manifest = Manifest.load(run.records)
    hollow = replace(manifest, splits={**manifest.splits, "val": ()})
    (run.records / "manifest.json").write_text(hollow.to_json())
    with pytest.raises(InvalidInput, match="validation split 'val' has no images"):
        Trainer(run)


def test_settings_that_do_not_fit_the_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    rewrite(run.model_dir / "config.json", '"hidden_size": 16', '"hidden_size": 17')
    with pytest.raises(InvalidInput, match=r"does not fit config\.json or is damaged"):
        load_trained(run.model_dir)


def test_vocabulary_that_does_not_match_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 2)
    Trainer(run).fit(silent)
    # Two words change places: every shape still fits.
    *words, one, two = tiny.make_vocabulary().words
    other = Vocabulary((*words, two, one))
    other.save(run.model_dir / "vocabulary.json")
    with pytest.raises(RecordsMismatch, match=r"vocabulary.json: vocabulary \w{8}, expected"):
        load_trained(run.model_dir)
    with pytest.raises(RecordsMismatch, match="vocabulary"):
        Trainer(run)
    other.save(run.records / "vocabulary.json")
    with pytest.raises(RecordsMismatch, match=r"records/vocabulary.json"):
        Trainer(make_run(tmp_path, "new", 2))


def test_untrained_model_dir(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no manifest.json, expected a directory of `captionb"):
        load_trained(tmp_path)
    run = make_run(tmp_path, "model", 1)
    Trainer(run)
    with pytest.raises(InvalidInput, match=r"no checkpoint in best/, expected a trained model"):
        load_trained(run.model_dir)
