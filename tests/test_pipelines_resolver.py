"""Names: looked up and checked once, kept for a while and in bounds."""

import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model.errors import ItemFailure, Reason
from pipelines import resolver
from pipelines.addresses import AddressRules
from pipelines.http_answers import TransientFailure
from pipelines.resolver import Resolver
from tests.fetch_fixtures import FakeClock

PATIENCE_S = 20
FOUND = (socket.AF_INET, ("8.8.8.8", 80))


class Names:
    """Stands for the system's resolver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: str | Exception = "8.8.8.8"
        self.go = threading.Event()
        self.go.set()
        monkeypatch.setattr(resolver.socket, "getaddrinfo", self.look_up)

    def look_up(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        assert self.go.wait(PATIENCE_S)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.answer, port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def made(clock: FakeClock | None = None) -> Resolver:
    return Resolver(AddressRules(), (clock or FakeClock()).clock.now_s)


def failure(found: Resolver, host: str = "a.test", timeout_s: float = PATIENCE_S) -> Reason:
    with pytest.raises(ItemFailure) as caught:
        found.find(host, 80, timeout_s)
    return caught.value.reason


def test_a_name_is_looked_up_again_when_its_time_is_over(names: Names) -> None:
    clock = FakeClock()
    found = made(clock)
    for _ in range(3):
        assert found.find("a.test", 80, PATIENCE_S) == [FOUND]
    assert names.asked == ["a.test"]
    clock.time_s += 60
    names.answer = "127.0.0.1"
    assert failure(found) == Reason.REFUSED_ADDRESS
    assert names.asked == ["a.test", "a.test"]


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA])
def test_a_name_without_address_is_not_asked_for_each_of_its_images(
    code: int, names: Names
) -> None:
    names.answer = socket.gaierror(code, "Name or service not known")
    found = made()
    assert [failure(found) for _ in range(3)] == [Reason.DNS] * 3
    assert names.asked == ["a.test"]
    with pytest.raises(ItemFailure) as caught:
        found.find("a.test", 80, PATIENCE_S)
    assert not isinstance(caught.value, TransientFailure)


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_SYSTEM, "System error"),
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_a_resolver_out_of_order_says_nothing_about_the_next_image(
    error: Exception, names: Names
) -> None:
    names.answer = error
    found = made()
    with pytest.raises(TransientFailure) as caught:
        found.find("a.test", 80, PATIENCE_S)
    assert caught.value.reason == Reason.DNS
    assert found.known_failure("a.test", 80) is None
    names.answer = "8.8.8.8"
    assert found.find("a.test", 80, PATIENCE_S) == [FOUND]


def test_a_name_that_no_resolver_takes_is_a_dns_failure(names: Names) -> None:
    names.answer = UnicodeError("label empty or too long")
    assert failure(made(), "a" * 64 + ".test") == Reason.DNS


def test_many_threads_look_a_name_up_once(names: Names) -> None:
    names.go.clear()
    found = made()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(found.find, "a.test", 80, PATIENCE_S) for _ in range(8)]
        names.go.set()
        assert all(future.result(PATIENCE_S) == [FOUND] for future in waiting)
    assert names.asked == ["a.test"]


def test_a_resolver_that_hangs_costs_one_thread_and_holds_up_no_other_name(names: Names) -> None:
    names.go.clear()
    found = made()
    assert [failure(found, timeout_s=0.01) for _ in range(3)] == [Reason.TIMEOUT] * 3
    assert failure(found, "b.test", timeout_s=0) == Reason.TIMEOUT
    names.go.set()
    assert found.find("a.test", 80, PATIENCE_S) == [FOUND]
    assert names.asked.count("a.test") == 1


def test_names_are_kept_in_bounds(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MAX_NAMES", 10)
    found = made()
    for number in range(30):
        found.find(f"{number}.test", 80, PATIENCE_S)
        found.find("again.test", 80, PATIENCE_S)
    assert len(found._found._entries) == 10
    assert names.asked.count("again.test") == 1


def test_only_a_failure_that_is_there_and_fresh_is_known(names: Names) -> None:
    clock = FakeClock()
    found = made(clock)
    assert found.known_failure("a.test", 80) is None
    assert names.asked == []
    names.answer = "10.0.0.1"
    with pytest.raises(ItemFailure) as caught:
        found.find("a.test", 80, PATIENCE_S)
    known = found.known_failure("a.test", 80)
    assert known is not None
    assert (known.reason, known.message) == (caught.value.reason, caught.value.message)
    assert found.known_failure("a.test", 81) is None
    clock.time_s += 60
    assert found.known_failure("a.test", 80) is None
    names.answer = "8.8.8.8"
    found.find("b.test", 80, PATIENCE_S)
    assert found.known_failure("b.test", 80) is None


def test_an_answer_that_is_to_come_is_not_known(names: Names) -> None:
    names.go.clear()
    found = made()
    assert failure(found, timeout_s=0) == Reason.TIMEOUT
    assert found.known_failure("a.test", 80) is None
    names.go.set()
