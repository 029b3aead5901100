"""Addresses as --server names them: what is refused, and the gRPC target they make."""

import socket
from typing import Any

import pytest

from model.errors import InvalidInput
from serving import addresses
from serving.addresses import Address
from serving.target import Target


@pytest.mark.parametrize(
    ("server", "found"),
    [
        ("localhost:8500", [("localhost", 8500)]),
        ("a.example:1,b-2.example:65535", [("a.example", 1), ("b-2.example", 65535)]),
        ("127.0.0.1:8500, 127.0.0.1:8501", [("127.0.0.1", 8500), ("127.0.0.1", 8501)]),
        ("[::1]:8500,a:1", [("::1", 8500), ("a", 1)]),
    ],
)
def test_addresses_are_read_and_written_alike(server: str, found: list[tuple[str, int]]) -> None:
    parsed = addresses.parse(server)
    assert parsed == [Address(*place) for place in found]
    assert ",".join(map(str, parsed)) == server.replace(" ", "")


@pytest.mark.parametrize(
    ("server", "named"),
    [
        ("localhost", None),
        ("", None),
        (":8500", None),
        ("localhost:0", None),
        ("localhost:65536", None),
        ("localhost:grpc", None),
        ("::1:8500", None),
        ("[::1]", None),
        ("[localhost]:8500", None),
        ("[:::]:8500", None),
        ("dns:///localhost:8500", None),
        ("http://localhost:8500", None),
        ("a:1,", "''"),
        ("a:1,,b:2", "''"),
        ("a:1,b", "'b'"),
        ("a:1;b:2", None),
        ("a:1 b:2", None),
    ],
)
def test_a_bad_list_is_one_line_that_names_the_bad_part(server: str, named: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        Target(None, server)
    message = str(caught.value)
    assert message.startswith(f"--server {server}: ")
    assert "expected HOST:PORT[,HOST:PORT…], such as localhost:8500" in message
    assert "\n" not in message
    assert (f"{named} in it is no address" in message) == (named is not None)


def test_an_address_that_stands_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"--server a:1,b:1,a:1: a:1 stands there twice"):
        Target(None, "a:1,b:1,a:1")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names are resolved to; others are not known."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        if host in known:
            return [place for ip in known[host] for place in real(ip, port, type=options["type"])]
        if host.replace(".", "").isdigit() or ":" in host:
            return real(host, port, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.mark.parametrize(
    ("server", "target"),
    [
        # gRPC resolves it, to all its addresses and again when it reconnects.
        ("a.example:8500", "dns:///a.example:8500"),
        ("10.0.0.1:8500", "ipv4:10.0.0.1:8500"),
        ("[fd00::1]:8500", "ipv6:[fd00::1]:8500"),
        ("a.example:1,10.0.0.9:2", "ipv4:10.0.0.1:1,10.0.0.2:1,10.0.0.9:2"),
        ("six.example:1,[fd00::9]:2", "ipv6:[fd00::6]:1,[fd00::9]:2"),
        ("six.example:1,a.example:2", "ipv6:[fd00::6]:1,[::ffff:10.0.0.1]:2,[::ffff:10.0.0.2]:2"),
        # Two names of one machine are one replica.
        ("a.example:1,alias.example:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
    ],
)
def test_the_target_of_one_name_and_of_several(
    names: dict[str, list[str]], server: str, target: str
) -> None:
    names["a.example"] = ["10.0.0.1", "10.0.0.2"]
    names["alias.example"] = ["10.0.0.2"]
    names["six.example"] = ["fd00::6"]
    assert addresses.target(addresses.parse(server)) == target


def test_a_name_of_several_that_is_not_known_is_named(names: dict[str, list[str]]) -> None:
    names["a.example"] = ["10.0.0.1"]
    with pytest.raises(InvalidInput, match=r"^--server: b\.example cannot be resolved \(.*\); exp"):
        addresses.target(addresses.parse("a.example:1,b.example:1"))
