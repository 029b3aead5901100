"""The client against several servers, unhealthy ones, late ones, and over TLS."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from serving import channel
from serving.channel import CHANNEL_OPTIONS
from serving.client import Client, connect, connect_to
from serving.errors import (
    AnswerTooLarge,
    ModelMismatch,
    NotReady,
    ServerError,
    ServerUnavailable,
)
from serving.retry import Clock
from serving.target import Target
from serving.transport import GrpcTransport
from tests.replica_fixtures import (
    NOT_SERVING,
    SERVING,
    Certificate,
    Proxy,
    Replica,
    State,
    caption_of,
    make_certificate,
    running,
)
from tests.serving_fixtures import FakeTime

# Far above what anything here takes; only a failure waits for it.
LONG_S = 60.0


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")


def tags(client: Client, calls: int) -> list[str]:
    """Which replica answered each of some calls."""
    found = [client.caption([str(number).encode()])[0].caption for number in range(calls)]
    assert [text.partition(": ")[2] for text in found] == [str(number) for number in range(calls)]
    return [text.partition(": ")[0] for text in found]


def until(client: Client, wanted: Callable[[set[str]], bool]) -> set[str]:
    """Asks, four times in a row, until those who answered are as wanted.

    A channel connects to its replicas, and hears of their health, one after the other.
    """
    for _ in range(1_000):
        found = set(tags(client, 4))
        if wanted(found):
            return found
        time.sleep(0.01)
    raise AssertionError(f"still {found}")


@pytest.mark.parametrize("healthy", [True, None], ids=["health service", "none"])
def test_requests_are_spread_over_all_replicas(healthy: bool | None) -> None:
    a, b = Replica("a", healthy=healthy), Replica("b", healthy=healthy)
    with running(a, b) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        until(client, lambda found: found == {"a", "b"})
        before = a.images, b.images
        tags(client, 20)
        assert (a.images - before[0], b.images - before[1]) == (10, 10)


def test_one_name_with_several_addresses_is_spread_too() -> None:
    v4 = Replica("four")
    try:
        v6 = Replica("six", host="[::1]", port=v4.port)
    except RuntimeError:
        pytest.skip("no IPv6 on loopback, or the port is taken there")
    # gRPC knows both addresses of localhost without asking anybody (RFC 6761).
    with (
        running(v4, v6),
        connect(model=None, server=f"localhost:{v4.port}", wait_s=LONG_S) as client,
    ):
        until(client, lambda found: found == {"four", "six"})


def test_ipv6_in_brackets_beside_ipv4() -> None:
    try:
        v6 = Replica("six", host="[::1]")
    except RuntimeError:
        pytest.skip("no IPv6 on loopback")
    with (
        running(Replica("four"), v6) as server,
        connect(model=None, server=server, wait_s=LONG_S) as client,
    ):
        until(client, lambda found: found == {"four", "six"})


def test_a_replica_that_dies_fails_no_request() -> None:
    a, b = Replica("a"), Replica("b")
    proxy = Proxy(a.port)
    failing = threading.Event()

    def die(_: list[bytes]) -> None:
        # Its client is waiting for the answer to this very call.
        failing.set()
        proxy.kill()

    with (
        running(a, b),
        connect(model=None, server=f"{proxy.address},{b.address}", wait_s=LONG_S) as client,
    ):
        until(client, lambda found: found == {"a", "b"})
        a.before = die
        images = [str(number).encode() for number in range(200)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda image: client.caption([image])[0].caption, images))
        assert failing.is_set()
        for image, caption in zip(images, found, strict=True):
            assert caption in (caption_of("a", image), caption_of("b", image))
        assert set(tags(client, 4)) == {"b"}


def test_a_replica_that_is_not_serving_gets_nothing_until_it_is() -> None:
    a, b = Replica("a"), Replica("b", healthy=False)
    with running(a, b) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        assert tags(client, 20) == ["a"] * 20
        b.be(SERVING)
        until(client, lambda found: found == {"a", "b"})
        a.be(NOT_SERVING)
        until(client, lambda found: found == {"b"})
        before = a.images
        assert tags(client, 20) == ["b"] * 20
        assert a.images == before
        assert a.asked + b.asked == 1


def test_a_result_says_which_version_gave_it() -> None:
    old, new = Replica("old", version=1), Replica("new", version=2)
    with running(old, new) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        until(client, lambda found: found == {"old", "new"})
        for result in [client.caption([b"x"])[0] for _ in range(6)]:
            assert result.caption == caption_of({1: "old", 2: "new"}[result.model_version], b"x")
        for explained in [client.explain([b"x"])[0] for _ in range(4)]:
            tag = {1: "old", 2: "new"}[explained.model_version]
            assert explained.caption == caption_of(tag, b"x")


def test_an_answer_without_a_version_has_that_of_the_metadata() -> None:
    replica = Replica("a", version=None)
    with running(replica) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        assert client.caption([b"x"])[0].model_version == client.model[1] == 1


def test_many_threads_on_one_client_get_their_own_captions() -> None:
    with (
        running(Replica("a"), Replica("b")) as server,
        connect(model=None, server=server, wait_s=LONG_S) as client,
    ):

        def ask(thread: int) -> list[tuple[bytes, str]]:
            images = [f"{thread}/{number}".encode() for number in range(30)]
            sizes = itertools.cycle((1, 2, 3))
            found: list[tuple[bytes, str]] = []
            while len(found) < len(images):
                batch = images[len(found) : len(found) + next(sizes)]
                found += [
                    (image, result.caption)
                    for image, result in zip(batch, client.caption(batch), strict=True)
                ]
            return found

        with ThreadPoolExecutor(32) as pool:
            answers = [pair for part in pool.map(ask, range(32)) for pair in part]
    assert len(answers) == 32 * 30
    for image, caption in answers:
        assert caption.partition(": ")[2] == image.decode()


def waiting(fake: FakeTime, events: Sequence[Callable[[], object]], to: Target) -> Client:
    """A client of a fake clock; at each of its pauses the next event happens."""
    coming = iter(events)

    def sleep(seconds: float) -> None:
        fake.sleep(seconds)
        next(coming, lambda: None)()

    return Client(GrpcTransport(to), clock=Clock(lambda: fake.now_s, sleep, lambda: 0.9))


class LateProxy(Proxy):
    """Has its address from the beginning, and listens there from `open` on.

    Meanwhile its port is bound, so that nobody else can take it.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def open(self) -> None:
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()


def test_a_server_that_starts_later_is_waited_for() -> None:
    late = Replica("late")
    proxy = LateProxy(late.port)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 10_000
        if len(slept) == 4:
            proxy.open()
        # gRPC itself tries again only after some 0.1 s.
        time.sleep(0.01)

    clock = Clock(lambda: 0.0, sleep, lambda: 0.9)
    with (
        running(late),
        Client(GrpcTransport(Target(None, proxy.address)), clock=clock) as client,
    ):
        assert client.check(wait_s=LONG_S).version == 1
    proxy.kill()
    # With jitter, and never more than a second apart.
    assert slept[:4] == pytest.approx([0.09, 0.18, 0.36, 0.72])
    assert max(slept) <= 1.0


def test_a_model_that_is_loading_is_waited_for() -> None:
    replica = Replica("a")
    replica.states = {1: State.START}
    fake = FakeTime()
    events: list[Callable[[], object]] = [
        become(replica, State.LOADING),
        int,
        become(replica, State.AVAILABLE),
    ]
    with running(replica) as server, waiting(fake, events, Target(None, server)) as client:
        assert client.check(wait_s=LONG_S).version == 1
    assert len(fake.slept) == 3


def test_a_model_that_is_loaded_again_while_it_works_is_waited_for() -> None:
    replica = Replica("a")
    fake = FakeTime()
    events: list[Callable[[], object]] = [become(replica, State.AVAILABLE)]
    with running(replica) as server, waiting(fake, events, Target(None, server)) as client:
        client.check()
        replica.states = {1: State.LOADING}
        assert client.caption([b"x"])[0].caption == caption_of("a", b"x")
    assert len(fake.slept) == 1


def test_a_model_that_comes_between_two_questions_is_asked_again() -> None:
    """It was not found, and its state is AVAILABLE."""
    replica = Replica("a")
    replica.hidden = True
    fake = FakeTime()
    events: list[Callable[[], object]] = [lambda: setattr(replica, "hidden", False)]
    with running(replica) as server, waiting(fake, events, Target(None, server)) as client:
        assert client.check(wait_s=LONG_S).version == 1


def become(replica: Replica, state: Any) -> Callable[[], object]:
    return lambda: replica.states.update({1: state})


@pytest.mark.parametrize(
    ("states", "label"),
    [({1: State.END}, None), ({1: State.UNLOADING}, None), ({1: State.AVAILABLE}, "canary")],
)
def test_a_model_that_is_not_there_fails_at_once(states: dict[int, Any], label: str | None) -> None:
    replica = Replica("a")
    replica.states = states
    fake = FakeTime()
    with (
        running(replica) as server,
        waiting(fake, [], Target(None, server, version_label=label)) as client,
        pytest.raises(ModelMismatch, match=r"--model_name.*--version_label"),
    ):
        client.check(wait_s=LONG_S)
    assert fake.slept == []
    assert replica.asked == 1


def test_a_model_that_stays_loading_is_said_to() -> None:
    replica = Replica("a")
    replica.states = {3: State.LOADING, 2: State.END}
    with running(replica) as server:
        target = Target(None, server, wait_s=0.3)
        with waiting(FakeTime(), [], target) as client, pytest.raises(NotReady) as caught:
            client.check()
    assert str(target.absence(caught.value)) == (
        f"no model yet at {server} (model captioner is not ready: version 2 END, version 3 "
        "LOADING) after 0.3 s; wait longer with --wait_s"
    )


def test_a_label_is_asked_for_in_every_request() -> None:
    replica = Replica("a")
    with running(replica) as server:
        target = Target(None, server, version_label="stable", wait_s=LONG_S)
        with connect_to(target) as client:
            assert client.caption([b"x"])[0].caption == caption_of("a", b"x")
            assert replica.labels == ["stable", "stable"]
            # The operator takes the label away: no image is at fault.
            replica.label = "other"
            with pytest.raises(ModelMismatch, match=r"version label: stable; .*--version_label"):
                client.caption_each([b"x", b"y"])


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> int:
    """The client takes answers of 100,000 bytes."""
    options = dict(CHANNEL_OPTIONS) | {"grpc.max_receive_message_length": 100_000}
    monkeypatch.setattr(channel, "CHANNEL_OPTIONS", tuple(options.items()))
    return 100_000


def sizes_asked(replica: Replica) -> list[int]:
    sizes: list[int] = []
    replica.before = lambda images: sizes.append(len(images))
    return sizes


def test_an_answer_that_the_client_refuses_for_its_size_is_asked_for_in_halves(
    small_messages: int,
) -> None:
    replica = Replica("a")
    replica.padding = small_messages // 3
    sizes = sizes_asked(replica)
    with running(replica) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        found = client.caption([b"1", b"2", b"3", b"4"])
        assert [result.caption[:4] for result in found] == ["a: 1", "a: 2", "a: 3", "a: 4"]
        assert sizes == [4, 2, 2]


def test_an_answer_to_one_image_beyond_the_limit_is_the_servers_failure(
    small_messages: int,
) -> None:
    replica = Replica("a")
    replica.padding = small_messages
    sizes = sizes_asked(replica)
    with running(replica) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        for ask in (client.caption, client.caption_each):
            with pytest.raises(
                AnswerTooLarge, match=rf"larger than max \(\d+ vs\. {small_messages}"
            ):
                ask([b"1", b"2"])
    assert issubclass(AnswerTooLarge, ServerError)
    # Never twice the same.
    assert sizes == [2, 1] * 2


def test_an_answer_that_the_server_may_not_send_is_asked_for_in_halves() -> None:
    replica = Replica("a", options=(("grpc.max_send_message_length", 10_000),))
    replica.padding = 6_000
    sizes = sizes_asked(replica)
    with running(replica) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        assert [result.caption[:4] for result in client.caption([b"1", b"2"])] == ["a: 1", "a: 2"]
    assert sizes == [2, 1, 1]


def test_a_request_that_the_server_refuses_for_its_size_is_sent_in_halves() -> None:
    replica = Replica("a", options=(("grpc.max_receive_message_length", 10_000),))
    sizes = sizes_asked(replica)
    small, large = b"s" * 4_000, b"l" * 20_000
    with running(replica) as server, connect(model=None, server=server, wait_s=LONG_S) as client:
        one, failure, two, three = client.caption_each([small, large, small, small])
    assert isinstance(failure, ItemFailure)
    assert failure.reason is Reason.MODEL_ERROR
    assert "larger than max" in failure.message
    assert not any(isinstance(result, ItemFailure) for result in (one, two, three))
    assert sizes == [1, 2]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    return make_certificate(file, ["localhost", "captions.example"], ["127.0.0.1"])


def test_tls_by_address_and_by_name(certificate: Certificate) -> None:
    replica = Replica("a", tls=certificate)
    ca = str(certificate.file)
    with running(replica) as server:
        for target in (
            Target(None, server, wait_s=LONG_S, tls_ca=ca),
            Target(None, f"localhost:{replica.port}", wait_s=LONG_S, tls_ca=ca),
            Target(None, server, wait_s=LONG_S, tls_ca=ca, tls_name="captions.example"),
        ):
            with connect_to(target) as client:
                assert tags(client, 2) == ["a", "a"]


def test_tls_to_several_replicas(certificate: Certificate) -> None:
    a, b = Replica("a", tls=certificate), Replica("b", tls=certificate)
    ca = str(certificate.file)
    with running(a, b) as server:
        with connect_to(Target(None, server, wait_s=LONG_S, tls_ca=ca)) as client:
            until(client, lambda found: found == {"a", "b"})
        names = f"localhost:{a.port},127.0.0.1:{b.port}"
        with pytest.raises(InvalidInput, match="2 hosts with --tls_ca; name with --tls_name"):
            Target(None, names, tls_ca=ca)
        target = Target(None, names, wait_s=LONG_S, tls_ca=ca, tls_name="captions.example")
        with connect_to(target) as client:
            until(client, lambda found: found == {"a", "b"})


def test_a_certificate_of_another_name_or_authority_is_refused(
    certificate: Certificate, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path / "other.pem", ["localhost"], ["127.0.0.1"])
    replica = Replica("a", tls=certificate)
    with running(replica) as server:
        for target, why in (
            (Target(None, server, tls_ca=str(other.file)), "CERTIFICATE_VERIFY_FAILED"),
            (
                Target(None, server, tls_ca=str(certificate.file), tls_name="b.example"),
                "Hostname Verification Check failed",
            ),
            (Target(None, server), "UNAVAILABLE"),
        ):
            with (
                waiting(FakeTime(), [], target) as client,
                pytest.raises(ServerUnavailable, match=why),
            ):
                client.check()
    assert replica.asked == 0


def test_a_file_of_certificates_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing, junk = tmp_path / "missing.pem", tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for file, why in (
        (missing, "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (junk, "has no certificate"),
    ):
        with pytest.raises(InvalidInput) as caught:
            connect_to(Target(None, "localhost:8500", tls_ca=str(file)))
        assert str(caught.value) == (
            f"--tls_ca {file}: {why}; expected a PEM file with the certificates to trust"
        )


def test_pings_are_rarer_than_a_server_of_grpcs_defaults_takes() -> None:
    """It hangs up on pings in less than five minutes without data (min_ping_interval).

    A watch over health counts as a call, so that an idle client sends them too; measured, its
    connection is ended after three minutes with a ping a minute.
    """
    options: dict[str, Any] = dict(CHANNEL_OPTIONS)
    assert options["grpc.keepalive_time_ms"] > 300_000
    assert options["grpc.keepalive_permit_without_calls"] == 0


def test_a_target_out_of_range_is_refused() -> None:
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidInput, match=r"--wait_s .*: expected seconds, more than 0"):
            Target(None, "localhost:8500", wait_s=seconds)
    with pytest.raises(InvalidInput, match="--version_label a: without --server, which alone has"):
        Target("models/captioner", None, version_label="a")
    with pytest.raises(InvalidInput, match="--tls_ca a: without --server, which alone is reached"):
        Target("models/captioner", None, tls_ca="a")
    with pytest.raises(InvalidInput, match="--tls_name a: without --tls_ca"):
        Target(None, "localhost:8500", tls_name="a")
