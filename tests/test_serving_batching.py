"""Calls that come together share a batch; the file that says how is TensorFlow Serving's."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model.errors import InvalidInput
from serving import batching_parameters, contract
from serving.batching_parameters import BatchingParameters
from serving.errors import CallFailed
from serving.loaded_model import LoadedModel, Ran
from tests.serving_fixtures import save_tiny_model, tiny_caption

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def ask(model: LoadedModel, images: list[bytes], deadline_s: float = math.inf) -> Ran:
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return model.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: array}, deadline_s)


def captions(ran: Ran) -> list[str]:
    return [value.decode() for value in ran.outputs[contract.CAPTION]]


def test_calls_that_come_together_share_a_batch_and_get_their_own_rows(model_dir: Path) -> None:
    # So long that the batch waits until it is full.
    together = BatchingParameters(
        max_batch_size=8, batch_timeout_micros=60_000_000, allowed_batch_sizes=(8,)
    )
    model = LoadedModel(model_dir, together)
    requests = [[b"a"], [b"bb", b"ccc"], [b"dddd"] * 4, [b""]]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda images: ask(model, images), requests))
    for images, ran in zip(requests, answers, strict=True):
        assert captions(ran) == [tiny_caption(image) for image in images]
        assert ran.account.batch_size.tolist() == [8] * len(images)
        assert all(ran.account.in_time)
    rows = np.concatenate([ran.account.batch_row for ran in answers])
    assert sorted(rows) == list(range(8))
    assert len({ran.account.started_s[0] for ran in answers}) == 1
    model.close()


def test_what_fills_a_batch_up_to_an_allowed_size_is_not_computed(model_dir: Path) -> None:
    sizes = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(4, 8))
    model = LoadedModel(model_dir, sizes)
    ran = ask(model, [b"a", b"bb", b"ccc"])
    assert captions(ran) == [tiny_caption(image) for image in (b"a", b"bb", b"ccc")]
    # Nor is what fills it up computed.
    assert ran.account.batch_size.tolist() == [3, 3, 3]
    model.close()


def test_without_batching_each_call_is_a_batch(model_dir: Path) -> None:
    model = LoadedModel(model_dir)
    ran = ask(model, [b"a"] * 33)
    assert ran.account.batch_size.tolist() == [33] * 33
    assert captions(ask(model, [])) == []
    model.close()


@pytest.mark.parametrize("batching", [None, BatchingParameters()])
def test_what_has_expired_is_not_computed(
    model_dir: Path, batching: BatchingParameters | None
) -> None:
    model = LoadedModel(model_dir, batching)
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED: Deadline Exceeded before the batch"):
        # The graph fails on these bytes, if it sees them.
        ask(model, [b"bad"], time.time() - 1)
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        ask(model, [b"bad"], time.time() + TIMEOUT_S)
    model.close()


def test_an_expired_neighbour_takes_nothing_from_a_row_in_time(model_dir: Path) -> None:
    together = BatchingParameters(
        max_batch_size=3, batch_timeout_micros=60_000_000, allowed_batch_sizes=()
    )
    model = LoadedModel(model_dir, together)
    outcomes: dict[str, object] = {}

    def expired() -> None:
        try:
            ask(model, [b"bad"], time.time() - 1)
        except CallFailed as error:
            outcomes["expired"] = error.code

    thread = threading.Thread(target=expired)
    thread.start()
    ran = ask(model, [b"a", b"bb"], time.time() + TIMEOUT_S)
    thread.join()
    assert outcomes == {"expired": "DEADLINE_EXCEEDED"}
    assert captions(ran) == [tiny_caption(b"a"), tiny_caption(b"bb")]
    assert ran.account.batch_size.tolist() == [2, 2]
    model.close()


def test_signatures_and_versions_have_queues_of_their_own(model_dir: Path) -> None:
    settings = BatchingParameters()
    first, second = (LoadedModel(model_dir, settings) for _ in range(2))
    inputs = {contract.IMAGE_BYTES: np.array([b"a"], dtype=object)}
    for model in (first, second):
        for signature, outputs in contract.OUTPUTS.items():
            assert set(model.run(signature, inputs).outputs) == set(outputs)
    first.close()
    assert captions(ask(second, [b"a"])) == [tiny_caption(b"a")]
    second.close()


def test_the_file_says_what_was_written(tmp_path: Path) -> None:
    written = BatchingParameters(48, 100, 3, 5, (1, 7, 48))
    file = tmp_path / "batching_parameters.txt"
    file.write_text(written.to_text())
    assert batching_parameters.load(file) == written
    assert written.capacity == 48 * (3 + 5)
    # As an operator writes it, on one line each, without the rest.
    file.write_text('max_batch_size { value: 5 }\nthread_pool_name { value: "batches" }\n')
    assert batching_parameters.load(file) == BatchingParameters(5, allowed_batch_sizes=())
    file.write_text("")
    assert batching_parameters.load(file) == BatchingParameters()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 5", "cannot be read"),
        ("num_threads { value: 2 }", "no field named"),
        ("max_batch_size { value: 0 }", "max_batch_size of 0: expected 1 or more"),
        ("max_enqueued_batches { value: -1 }", "max_enqueued_batches of -1: expected 1"),
        ("allowed_batch_sizes: 8", r"allowed_batch_sizes of \[8\]: .*max_batch_size \(32\)"),
        ("allowed_batch_sizes: 32 allowed_batch_sizes: 32", "expected rising sizes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "batching_parameters.txt"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=rf"batching_parameters.txt: .*{message}"):
        batching_parameters.load(file)
