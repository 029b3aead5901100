"""Addresses of a server's replicas, as --server names them, and the gRPC target they make."""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from urllib.parse import quote

from model.errors import InvalidInput
from serving.contract import GRPC_PORT

_EXPECTED = (
    f"expected HOST:PORT[,HOST:PORT…], such as localhost:{GRPC_PORT} or [::1]:{GRPC_PORT}, "
    "with ports from 1 to 65535"
)
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """Where somebody listens.

    Attributes:
      host: name or IP address, without brackets.
      port: 1 to 65535; 0 for any free one.
    """

    host: str
    port: int

    def __str__(self) -> str:
        # An IPv6 address needs brackets before a port.
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(server: str) -> list[Address]:
    """Reads `HOST:PORT[,HOST:PORT…]`; raises InvalidInput for any other string."""
    found: list[Address] = []
    for part in server.split(","):
        address = _address(part.strip())
        if address is None:
            # The part is named only where it is not all that was given.
            what = f"{part!r} in it is no address, " if "," in server else ""
            raise InvalidInput(f"--server {server}: {what}{_EXPECTED}")
        if address in found:
            raise InvalidInput(f"--server {server}: {address} stands there twice; name it once")
        found.append(address)
    return found


def target(addresses: list[Address]) -> str:
    """The gRPC target of all replicas.

    One name stays a name, which gRPC resolves to all its addresses and again whenever it
    reconnects. gRPC takes no list of names: several are resolved here, once.

    Raises:
      InvalidInput: a name of several cannot be resolved.
    """
    if len(addresses) == 1 and not _is_ip(addresses[0].host):
        return f"dns:///{addresses[0]}"
    resolved = [place for address in addresses for place in _resolve(address)]
    # Two names may be one machine, which would get two shares of the work.
    places = list(dict.fromkeys(resolved))
    if any(isinstance(ip_address(place.host), IPv6Address) for place in places):
        # A target has one family; IPv4 has its place in IPv6's (RFC 4291, 2.5.5.2).
        places = [Address(_as_ipv6(place.host), place.port) for place in places]
        return "ipv6:" + ",".join(quote(str(place), safe="[]:,") for place in places)
    return "ipv4:" + ",".join(map(str, places))


def _address(text: str) -> Address | None:
    found = _ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        return None
    if found["ipv6"] is not None and not _is_ip(found["ipv6"]):
        return None
    return Address(found["ipv6"] or found["name"], int(found["port"]))


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _as_ipv6(host: str) -> str:
    return host if ":" in host else f"::ffff:{host}"


def _resolve(address: Address) -> list[Address]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            f"--server: {address.host} cannot be resolved ({error}); expected names that are known "
            "here, or their IP addresses"
        ) from error
    return [Address(str(place[0]), address.port) for *_, place in found]
