"""The training stream: complete, shuffled, resumable, framed right."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config, TrainingConfig
from model.dataset import (
    Split,
    Stream,
    batch_keys,
    grid_statistics,
    images,
    training_batches,
)
from model.errors import InvalidInput
from model.records import Manifest
from model.run import Run
from model.trainer import Trainer
from model.vocabulary import tokenise
from tests import tiny

VOCABULARY = tiny.make_vocabulary()
NUM_IMAGES = len(tiny.CAPTIONS)


@pytest.fixture(name="split")
def fixture_split(tmp_path: Path) -> Split:
    records = tiny.make_records(tmp_path / "records", shards=3)
    return Split(records, Manifest.load(records), "train")


def first_captions(split: Split, stream: Stream, steps: int) -> list[str]:
    """The first caption of every image in the order of the stream: it names the image."""
    order = []
    for batch in training_batches(split, VOCABULARY, stream).take(steps):
        _, first_rows = np.unique(batch["image_index"], return_index=True)
        order += [VOCABULARY.decode(batch["labels"].numpy()[row]) for row in first_rows]
    return order


def test_rows_are_framed_for_teacher_forcing(split: Split) -> None:
    batch = next(iter(training_batches(split, VOCABULARY, Stream(0, 4, NUM_IMAGES))))
    inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
    written: Counter[str] = Counter()
    for row in range(len(inputs)):
        count = int((labels[row] != VOCABULARY.pad_id).sum())
        assert inputs[row, 0] == VOCABULARY.start_id
        assert labels[row, count - 1] == VOCABULARY.end_id
        # The word read at t + 1 is the one predicted at t.
        np.testing.assert_array_equal(inputs[row, 1:count], labels[row, : count - 1])
        assert (inputs[row, count:] == VOCABULARY.pad_id).all()
        written[VOCABULARY.decode(labels[row])] += 1
    expected = Counter(
        " ".join(tokenise(caption)).replace(" 's", "'s")
        for captions in tiny.CAPTIONS
        for caption in captions
    )
    assert written == expected


def test_captions_stand_beside_their_own_image(split: Split) -> None:
    stored = {
        batch["captions"].to_list()[0][0].decode(): batch["grid"].numpy()[0]
        for batch in images(split, 1)
    }
    batch = next(iter(training_batches(split, VOCABULARY, Stream(3, 4, NUM_IMAGES))))
    for row, image in enumerate(batch["image_index"].numpy()):
        text = VOCABULARY.decode(batch["labels"].numpy()[row])
        owner = next(captions[0] for captions in tiny.CAPTIONS if text in captions)
        np.testing.assert_array_equal(batch["grid"].numpy()[image], stored[owner])


def test_every_epoch_is_another_permutation(split: Split) -> None:
    order = first_captions(split, Stream(0, NUM_IMAGES, 1), steps=4 * NUM_IMAGES)
    epochs = [order[start : start + NUM_IMAGES] for start in range(0, len(order), NUM_IMAGES)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(captions[0] for captions in tiny.CAPTIONS)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_cross_epochs_without_loss_or_repeat(split: Split) -> None:
    # 7 images, batches of 3: three epochs are seven batches.
    order = first_captions(split, Stream(0, 4, 3), steps=7)
    assert set(Counter(order).values()) == {3}


@pytest.mark.parametrize("first_step", [1, 2, 3, 6])
def test_resumed_stream_is_the_rest_of_the_undisturbed_one(split: Split, first_step: int) -> None:
    whole = first_captions(split, Stream(5, 4, 3), steps=9)
    rest = first_captions(split, Stream(5, 4, 3, first_step), steps=9 - first_step)
    assert rest == whole[3 * first_step :]


def test_seed_decides_the_order(split: Split) -> None:
    orders = {tuple(first_captions(split, Stream(seed, 8, 7), steps=1)) for seed in range(4)}
    assert len(orders) > 1


@pytest.mark.parametrize("pipelines", [1, 2])
def test_replicas_share_the_batch_of_one(split: Split, pipelines: int) -> None:
    replicas, batch_size, steps = 2, 4, 5
    whole = first_captions(split, Stream(0, 4, batch_size), steps)
    parts: list[list[list[str]]] = []
    for pipeline in range(pipelines):
        context = tf.distribute.InputContext(pipelines, pipeline, replicas)
        dataset = training_batches(split, VOCABULARY, Stream(0, 4, batch_size), context)
        local = []
        for batch in dataset.take(steps * replicas // pipelines):
            _, rows = np.unique(batch["image_index"], return_index=True)
            local.append([VOCABULARY.decode(batch["labels"].numpy()[row]) for row in rows])
        parts.append(local)
    joined = []
    here = replicas // pipelines
    for step in range(steps):
        for local in parts:
            for replica_batch in local[step * here : (step + 1) * here]:
                assert len(replica_batch) == batch_size // replicas
                joined += replica_batch
    assert joined == whole


def test_images_are_read_once_in_shard_order(split: Split) -> None:
    keys = [key.decode() for batch in images(split, 2) for key in batch["key"].numpy()]
    assert keys == [f"image-{index}.jpg" for index in (0, 3, 6, 1, 4, 2, 5)]
    limited = [key.decode() for batch in images(split, 2, limit=3) for key in batch["key"].numpy()]
    assert limited == keys[:3]


def test_grid_statistics_are_those_of_all_cells(split: Split) -> None:
    grids = np.concatenate([batch["grid"].numpy() for batch in images(split, 4)])
    cells = grids.reshape(-1, tiny.GRID_SHAPE[1]).astype(np.float64)
    mean, variance = grid_statistics(split, batch_size=3, limit=100)
    np.testing.assert_allclose(mean, cells.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, cells.var(axis=0), rtol=1e-5)


def test_empty_and_unknown_split(split: Split, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no split 'test'.*\['train', 'val'\]"):
        _ = Split(split.directory, split.manifest, "test").files
    empty = Manifest.load(split.directory)
    hollow = Split(tmp_path, type(empty)(**{**vars(empty), "splits": {"train": ()}}), "train")
    with pytest.raises(InvalidInput, match="split 'train' has no images"):
        training_batches(hollow, VOCABULARY, Stream(0, 4, 3))


def test_a_shard_that_is_not_as_the_manifest_says_is_met_before_training(split: Split) -> None:
    lost, short = (Path(file) for file in split.files[:2])
    size, data = lost.stat().st_size, short.read_bytes()
    remedy = f"mend it with `captionbeam preprocess --check {split.directory} --repair`"
    lost.unlink()
    with pytest.raises(InvalidInput) as caught:
        Split(split.directory, split.manifest, "train")
    assert str(caught.value) == (
        f"{lost}: no such file, expected the {size} bytes that the manifest names; {remedy}"
    )
    # The shards of another split are not looked at.
    assert Split(split.directory, split.manifest, "val").num_images == NUM_IMAGES
    lost.write_bytes(bytes(size))
    short.write_bytes(data[:-1])
    with pytest.raises(InvalidInput) as caught:
        Split(split.directory, split.manifest, "train")
    assert str(caught.value) == (
        f"{short}: {len(data) - 1} bytes, expected the {len(data)} bytes that the manifest names; "
        f"{remedy}"
    )


@pytest.mark.parametrize(
    "read",
    [
        lambda split: list(images(split, 2)),
        lambda split: grid_statistics(split, batch_size=3, limit=100),
        lambda split: list(split.iterate(training_batches(split, VOCABULARY, Stream(0, 4, 3)))),
    ],
    ids=["images", "statistics", "training"],
)
def test_a_flipped_byte_names_the_repair(split: Split, read: Callable[[Split], object]) -> None:
    damaged = Path(split.files[1])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 8
    damaged.write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        read(split)
    assert str(caught.value) == (
        f"{split.directory}: a shard of split 'train' is damaged; mend it with "
        f"`captionbeam preprocess --check {split.directory} --repair`"
    )


def test_a_trainer_meets_a_flipped_byte(split: Split, tmp_path: Path) -> None:
    training = TrainingConfig(batch_size=3, epochs=3)
    run = Run(
        split.directory, tmp_path / "model", Config(training=training), tf.distribute.get_strategy()
    )
    trainer = Trainer(run)
    damaged = Path(split.files[0])
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    # As on a resume, which reads no statistics.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.trainer.grid_statistics", lambda *_: (np.zeros(8), np.ones(8)))
        with pytest.raises(InvalidInput, match="a shard of split 'train' is damaged; mend it with"):
            trainer.fit()


def test_keys_are_those_of_the_batch_that_a_step_sees(split: Split) -> None:
    keys = {
        batch["captions"].to_list()[0][0].decode(): batch["key"].numpy()[0].decode()
        for batch in images(split, 1)
    }
    order = first_captions(split, Stream(2, 4, 3), steps=5)
    for step in range(5):
        expected = [keys[caption] for caption in order[3 * step : 3 * step + 3]]
        assert batch_keys(split, Stream(2, 4, 3, first_step=step)) == expected
