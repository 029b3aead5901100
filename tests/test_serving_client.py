"""The client: pairing, splitting, retries, deadlines, and refusing models that are not ours."""

import io
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import MIN_SIDE
from serving import contract
from serving.answers import Answer
from serving.batches import RequestLimits
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.client import FILLER, Client, Target, connect
from serving.contract import Status
from serving.errors import (
    CallFailed,
    InvalidRequest,
    ModelMismatch,
    ServerError,
    ServerUnavailable,
)
from serving.metadata import ModelMetadata
from serving.retry import Clock, Retries
from serving.transport import MAX_MESSAGE_BYTES, GrpcTransport, SavedModelTransport, Transport
from tests.serving_fixtures import (
    CELLS,
    HYPOTHESES,
    PLACES,
    FakeTime,
    ScriptedTransport,
    running_server,
    save_foreign_model,
    save_tiny_model,
    tiny_caption,
)

IMAGES = [b"one", b"two two\0", b"", b"four four four", b"one"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "captioner", version=3)


@pytest.fixture(scope="module")
def in_process(model_dir: Path) -> SavedModelTransport:
    return SavedModelTransport(model_dir)


@pytest.fixture(scope="module")
def address(model_dir: Path) -> Iterator[str]:
    with running_server(model_dir) as server:
        yield server.address


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def clock(fake_time: FakeTime) -> Clock:
    return Clock(now_s=lambda: fake_time.now_s, sleep=fake_time.sleep, uniform=lambda: 0.5)


@pytest.fixture(params=["model", "server"])
def client(request: pytest.FixtureRequest, model_dir: Path, address: str) -> Iterator[Client]:
    """The same client through either transport."""
    wanted: dict[str, Any] = {"model": None, "server": None}
    wanted[request.param] = {"model": str(model_dir), "server": address}[request.param]
    with connect(**wanted) as client:
        yield client


def test_captions_come_in_the_order_sent(client: Client) -> None:
    results = client.caption(IMAGES)
    assert [result.caption for result in results] == [tiny_caption(image) for image in IMAGES]
    assert [result.log_prob for result in results] == [-len(image) / 4 for image in IMAGES]
    assert [result.token_ids for result in results] == [(len(i), len(i) + 1) for i in IMAGES]
    assert client.caption([]) == []


def test_explain_gives_one_row_of_attention_for_each_word(client: Client) -> None:
    explained = client.explain([b"abc", b"defgh"])
    assert [result.words for result in explained] == [["size", "3"], ["size", "5"]]
    assert [result.caption for result in explained] == [
        tiny_caption(b"abc"),
        tiny_caption(b"defgh"),
    ]
    for result in explained:
        assert_array_equal(result.attention, np.eye(2, CELLS, dtype=np.float32), strict=True)
        assert_array_equal(result.places, np.array(PLACES, np.float32), strict=True)


def test_nbest_gives_every_hypothesis_best_first(client: Client) -> None:
    (_, second) = client.nbest([b"a", b"bc"])
    caption = tiny_caption(b"bc")
    assert [h.caption for h in second] == [f"{caption} rank {k}" for k in range(HYPOTHESES)]
    assert [h.log_prob for h in second] == [-0.5 - k for k in range(HYPOTHESES)]


def test_model_is_name_and_version(client: Client) -> None:
    assert client.model == ("captioner", 3)


def test_an_image_that_the_model_refuses_is_an_invalid_request(client: Client) -> None:
    refused = r"^image 2: assertion failed: \[cannot decode\]"
    with pytest.raises(InvalidRequest, match=refused):
        client.caption([b"good", b"bad"])
    with pytest.raises(InvalidRequest, match=refused):
        client.nbest([b"good", b"bad"])
    assert client.caption([b"good"])[0].caption == tiny_caption(b"good")


def test_a_refused_request_is_halved_down_to_the_poison(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    images = [str(number).encode() for number in range(16)]
    images[11] = b"bad"
    found = Client(transport).caption_each(images)
    failure = found.pop(11)
    assert isinstance(failure, ItemFailure)
    assert (failure.reason, "cannot decode" in failure.message) == (Reason.MODEL_ERROR, True)
    del images[11]
    assert [getattr(one, "caption", None) for one in found] == list(map(tiny_caption, images))
    assert [len(call[1]) for call in transport.calls] == [16, 8, 8, 4, 2, 2, 1, 1, 4]


def test_a_list_that_must_succeed_ends_with_its_first_refusal(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    client = Client(transport, limits=RequestLimits(images=2))
    with pytest.raises(InvalidRequest, match=r"^image 3: "):
        client.caption([b"a", b"b", b"bad", *[b"c"] * 100])
    assert [len(images) for _, images, _ in transport.calls] == [2, 2, 1]


def test_the_halves_of_a_refused_request_share_its_deadline(
    in_process: Transport, fake_time: FakeTime
) -> None:
    transport = ScriptedTransport(in_process, takes_s=lambda: fake_time.sleep(1.0))
    clock = Clock(lambda: fake_time.now_s, fake_time.sleep, lambda: 0.0)
    Client(transport, timeout_s=10.0, clock=clock).caption_each([b"bad", b"a", b"b", b"c"])
    # The first attempt at each request may take half of what is left.
    assert [timeout for *_, timeout in transport.calls] == [5.0, 4.5, 4.0, 3.5, 3.0]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.NOT_AN_IMAGE, Reason.NOT_AN_IMAGE),
        (Status.DECODE, Reason.DECODE),
        (Status.TOO_MANY_PIXELS, Reason.TOO_MANY_PIXELS),
        (Status.TOO_SMALL, Reason.TOO_SMALL),
        (Status.TOO_MANY_BYTES, Reason.TOO_MANY_BYTES),
        (99, Reason.MODEL_ERROR),
    ],
)
def test_a_row_with_a_status_is_a_failure_and_its_caption_is_not_used(
    in_process: Transport, status: int, reason: Reason
) -> None:
    def spoil(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**outputs, contract.STATUS: np.array([0, status, 0], np.int32)}

    client = Client(ScriptedTransport(in_process, edit=spoil))
    for ask in (client.caption_each, client.explain_each):
        one, failure, other = ask([b"a", b"bc", b"d"])
        assert isinstance(failure, ItemFailure)
        assert failure.reason is reason
        assert "expected" in failure.message
        assert not isinstance(one, ItemFailure)
        assert not isinstance(other, ItemFailure)
        assert (one.caption, other.caption) == (tiny_caption(b"a"), tiny_caption(b"d"))
    with pytest.raises(InvalidRequest, match="image 2: "):
        client.nbest([b"a", b"bc", b"d"])


def test_both_transports_give_the_same_tensors(in_process: Transport, address: str) -> None:
    remote = GrpcTransport(Target(None, address))
    try:
        for signature in contract.OUTPUTS:
            here = in_process.predict(signature, IMAGES, 10).outputs
            there = remote.predict(signature, IMAGES, 10).outputs
            assert here.keys() == there.keys() == contract.OUTPUTS[signature].keys()
            for name, tensor in here.items():
                assert_array_equal(tensor, there[name], strict=True)
        assert in_process.metadata(10) == remote.metadata(10)
    finally:
        remote.close()


def test_many_images_are_split_by_count_and_bytes(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    client = Client(transport, limits=RequestLimits(images=3, image_bytes=10))
    images = [b"a", b"b", b"c", b"d", b"55555", b"666666", b"a larger one alone", b"8"]
    results = client.caption(images)
    assert [images for _, images, _ in transport.calls] == [
        [b"a", b"b", b"c"],
        [b"d", b"55555"],
        [b"666666"],
        [b"a larger one alone"],
        [b"8"],
    ]
    assert [result.caption for result in results] == [tiny_caption(image) for image in images]


def test_a_batch_within_the_limits_is_one_request(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    Client(transport).caption([b"x"] * 32)
    assert [len(images) for _, images, _ in transport.calls] == [32]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
def test_transient_failures_are_retried_with_full_jitter(
    in_process: Transport, clock: Clock, fake_time: FakeTime, code: str
) -> None:
    transport = ScriptedTransport(in_process, [CallFailed(code, "later")] * 4)
    retries = Retries(attempts=5, base_s=1.0, cap_s=3.0)
    client = Client(transport, retries=retries, clock=clock)
    assert client.caption([b"a"])[0].caption == tiny_caption(b"a")
    # Half (the clock's chance) of 1, 2 and 4 seconds, the last two capped at 3.
    assert fake_time.slept == [0.5, 1.0, 1.5, 1.5]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("FAILED_PRECONDITION", ServerError),
        ("NOT_FOUND", ModelMismatch),
        ("INTERNAL", ServerError),
        ("UNIMPLEMENTED", ServerError),
        ("UNKNOWN", ServerError),
        ("CANCELLED", ServerError),
    ],
)
def test_other_failures_are_not_retried(
    in_process: Transport, clock: Clock, fake_time: FakeTime, code: str, error: type[Exception]
) -> None:
    transport = ScriptedTransport(in_process, [CallFailed(code, "no")])
    with pytest.raises(error, match="no"):
        Client(transport, clock=clock).caption([b"a"])
    assert len(transport.calls) == 1
    assert fake_time.slept == []


def test_attempts_end(in_process: Transport, clock: Clock) -> None:
    transport = ScriptedTransport(in_process, [CallFailed("UNAVAILABLE", "down")] * 9)
    client = Client(transport, retries=Retries(attempts=3), clock=clock)
    with pytest.raises(ServerUnavailable, match="UNAVAILABLE: down"):
        client.caption([b"a"])
    assert len(transport.calls) == 3


def test_all_attempts_share_one_deadline(
    in_process: Transport, clock: Clock, fake_time: FakeTime
) -> None:
    def take_four_seconds() -> None:
        fake_time.now_s += 4

    transport = ScriptedTransport(
        in_process, [CallFailed("UNAVAILABLE", "down")] * 9, takes_s=take_four_seconds
    )
    retries = Retries(attempts=9, base_s=2.0)
    with pytest.raises(ServerUnavailable):
        Client(transport, timeout_s=10, retries=retries, clock=clock).caption([b"a"])
    # 4 s, pause 1 s, 4 s; a pause of 2 s would end behind the deadline.
    assert [timeout_s for _, _, timeout_s in transport.calls] == [5, 2.5]
    assert fake_time.now_s == 9


def test_each_request_of_a_long_list_has_its_own_deadline(
    in_process: Transport, clock: Clock, fake_time: FakeTime
) -> None:
    def take_four_seconds() -> None:
        fake_time.now_s += 4

    transport = ScriptedTransport(in_process, takes_s=take_four_seconds)
    limits = RequestLimits(images=1)
    Client(transport, timeout_s=5, limits=limits, clock=clock).caption([b"a", b"b", b"c"])
    assert [timeout_s for _, _, timeout_s in transport.calls] == [2.5, 2.5, 2.5]


def short(tensor: np.ndarray) -> np.ndarray:
    return tensor[:-1]


def long(tensor: np.ndarray) -> np.ndarray:
    return np.concatenate([tensor, tensor[:1]])


@pytest.mark.parametrize("change", [short, long])
@pytest.mark.parametrize("name", contract.OUTPUTS[contract.SERVING_DEFAULT])
def test_an_answer_with_other_rows_is_refused(
    in_process: Transport, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """A short answer paired by position would give images the captions of others."""
    transport = ScriptedTransport(
        in_process, edit=lambda outputs: outputs | {name: change(outputs[name])}
    )
    with pytest.raises(ServerError, match=rf"answered {name} of shape .* to 3 images"):
        Client(transport).caption([b"a", b"b", b"c"])


def test_an_answer_without_an_output_or_of_another_rank_is_refused(in_process: Transport) -> None:
    transport = ScriptedTransport(
        in_process, edit=lambda outputs: {contract.CAPTION: outputs[contract.CAPTION]}
    )
    with pytest.raises(ServerError, match="no status"):
        Client(transport).caption([b"a"])
    transport = ScriptedTransport(
        in_process,
        edit=lambda outputs: outputs | {contract.CAPTION: outputs[contract.CAPTION][:, None]},
    )
    with pytest.raises(ServerError, match=r"caption of shape \[1, 1\] to 1 images; expected \[1\]"):
        Client(transport).caption([b"a"])


def test_a_caption_that_is_no_text_is_the_servers_failure(in_process: Transport) -> None:
    transport = ScriptedTransport(
        in_process,
        edit=lambda outputs: outputs | {contract.CAPTION: np.array([b"caf\xe9"], object)},
    )
    with pytest.raises(ServerError, match=r"a caption b'caf\\xe9' .*; expected UTF-8"):
        Client(transport).caption([b"a"])


def test_metadata_is_asked_for_once_by_many_threads(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    client = Client(transport)
    start = threading.Barrier(8)

    def ask(number: int) -> str:
        start.wait(10)
        return client.caption([str(number).encode() * 3])[0].caption

    with ThreadPoolExecutor(8) as pool:
        captions = list(pool.map(ask, range(8)))
    assert captions == [tiny_caption(str(number).encode() * 3) for number in range(8)]
    assert transport.metadata_calls == 1


def test_a_model_that_is_not_ours_gets_no_image(in_process: Transport) -> None:
    class OtherModel(ScriptedTransport):
        def metadata(self, timeout_s: float) -> ModelMetadata:
            ours = super().metadata(timeout_s)
            signatures = dict(ours.signatures)
            del signatures[contract.NBEST]
            return ModelMetadata(ours.name, ours.version, signatures)

    transport = OtherModel(in_process)
    with pytest.raises(ModelMismatch, match=r"captioner version 3 .* signature nbest is missing"):
        Client(transport).caption([b"a"])
    assert transport.calls == []


def test_a_client_closes_its_transport(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    with Client(transport) as client:
        client.caption([b"a"])
        assert not transport.closed
    assert transport.closed


def test_a_request_beyond_the_message_limit_is_not_retried(address: str) -> None:
    remote = GrpcTransport(Target(None, address))
    try:
        with pytest.raises(CallFailed) as caught:
            remote.predict(contract.SERVING_DEFAULT, [bytes(MAX_MESSAGE_BYTES)], 10)
        assert caught.value.code == "INVALID_ARGUMENT"
    finally:
        remote.close()


def test_answers_beyond_grpcs_default_of_4_mib_arrive(tmp_path: Path) -> None:
    wide = BatchingParameters(max_batch_size=50_000, allowed_batch_sizes=())
    (tmp_path / BATCHING_FILE).write_text(wide.to_text())
    model_dir = save_tiny_model(tmp_path / "captioner")
    limits = RequestLimits(images=50_000)
    with (
        running_server(model_dir) as server,
        Client(GrpcTransport(Target(None, server.address)), limits=limits) as client,
    ):
        explained = client.explain([b"a"] * 50_000)
    assert len(explained) == 50_000
    assert explained[-1].caption == tiny_caption(b"a")


def test_connect_wants_exactly_one_place(model_dir: Path) -> None:
    with pytest.raises(InvalidInput, match="neither of --model and --server given"):
        connect(model=None, server=None)
    with pytest.raises(InvalidInput, match="both of --model and --server given"):
        connect(model=str(model_dir), server="localhost:8500")
    with pytest.raises(InvalidInput, match="--server localhost: expected HOST:PORT"):
        connect(model=None, server="localhost")


def test_connect_refuses_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such directory"):
        connect(model=str(tmp_path / "nowhere"), server=None)
    with pytest.raises(InvalidInput, match="no version in it"):
        connect(model=str(tmp_path), server=None)
    with pytest.raises(ModelMismatch, match="not a captionbeam model"):
        connect(model=str(save_foreign_model(tmp_path / "foreign")), server=None)


def test_a_model_in_this_process_is_freed_with_its_client(model_dir: Path) -> None:
    with connect(model=str(model_dir), server=None) as client:
        assert client.caption([b"a"])[0].caption == tiny_caption(b"a")
    with pytest.raises(RuntimeError, match="closed Session"):
        client.caption([b"a"])


def test_a_model_in_this_process_without_memory_ends(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no deadline, and the graph's RESOURCE_EXHAUSTED may last for ever."""
    asked: list[str] = []

    def exhausted(_: SavedModelTransport, signature: str, *__: object) -> Answer:
        asked.append(signature)
        raise CallFailed("RESOURCE_EXHAUSTED", "OOM")

    monkeypatch.setattr(SavedModelTransport, "predict", exhausted)
    with (
        connect(model=str(model_dir), server=None) as client,
        pytest.raises(ServerUnavailable, match="RESOURCE_EXHAUSTED: OOM"),
    ):
        client.caption([b"a"])
    assert len(asked) == 5


def test_connect_says_when_nobody_is_there() -> None:
    # Bound and not listening: nobody else can take the port meanwhile.
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(ServerUnavailable) as caught:
            connect(model=None, server=place, wait_s=0.3)
    message = str(caught.value)
    # A machine that stands still for a moment exceeds the deadline first.
    assert re.match(rf"no server at {place} \((UNAVAILABLE|DEADLINE_EXCEEDED): ", message)
    assert "`captionbeam serve --model MODELS/captioner`" in message
    assert "\n" not in message


def test_connect_asks_a_dead_address_no_longer_than_it_is_told_to(fake_time: FakeTime) -> None:
    class Dead(ScriptedTransport):
        def metadata(self, timeout_s: float) -> ModelMetadata:
            asked.append((fake_time.now_s, timeout_s))
            raise CallFailed("UNAVAILABLE", "nobody")

    asked: list[tuple[float, float]] = []
    clock = Clock(lambda: fake_time.now_s, fake_time.sleep, lambda: 0.9)
    with pytest.raises(ServerUnavailable, match="nobody"):
        Client(Dead(None), clock=clock).check(wait_s=5)
    assert 4 <= asked[-1][0] <= fake_time.now_s < 5
    assert all(began + timeout <= 5 for began, timeout in asked)


def test_connect_does_not_wait_for_ever() -> None:
    """A listener that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match=f"no server at {place}"):
            connect(model=None, server=place, wait_s=0.3)


def test_connect_names_an_unknown_model(address: str) -> None:
    with pytest.raises(ModelMismatch, match=r"Latest\(other\); .*--model_name"):
        connect(model=None, server=address, model_name="other")


def test_settings_out_of_range_are_refused(in_process: Transport) -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        Client(in_process, timeout_s=0)
    with pytest.raises(InvalidInput, match="attempts ≥ 1"):
        Retries(attempts=0)
    with pytest.raises(InvalidInput, match="1 or more"):
        RequestLimits(images=0)


def test_fillers_make_a_request_whole_and_have_no_row(in_process: Transport) -> None:
    transport = ScriptedTransport(in_process)
    client = Client(transport)
    images = [b"abc", b"defgh", b"ij"]
    assert client.caption_each(images, fill_to=5) == client.caption_each(images)
    assert [list(sent) for _, sent, _ in transport.calls] == [[*images, FILLER, FILLER], images]
    assert len(client.explain_each(images, fill_to=2)) == len(client.nbest_each(images, 4)) == 3
    assert [len(sent) for _, sent, _ in transport.calls[2:]] == [3, 4]
    assert client.caption_each([], fill_to=5) == []
    # The halves of a request that is refused, perhaps for its size, are smaller.
    refused = client.caption_each([b"bad", b"a"], fill_to=3)
    assert isinstance(refused[0], ItemFailure)
    assert getattr(refused[1], "caption", None) == tiny_caption(b"a")
    assert [len(sent) for _, sent, _ in transport.calls[4:]] == [3, 1, 1]
    # What takes several requests is not filled up, and none is larger than the limit.
    limited = ScriptedTransport(in_process)
    few = Client(limited, limits=RequestLimits(images=3, image_bytes=12))
    assert len(few.caption_each([b"12345678", b"12345678", b"1"], fill_to=8)) == 3
    assert len(few.caption_each([b"1"], fill_to=8)) == 1
    assert [len(sent) for _, sent, _ in limited.calls] == [1, 2, 3]
    with Image.open(io.BytesIO(FILLER)) as image:
        assert (image.format, image.mode, min(image.size)) == ("PNG", "RGB", MIN_SIDE)
