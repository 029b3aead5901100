"""Which network addresses a URL may lead to.

Tables of our own, from IANA's special-purpose registries: what `ipaddress` calls global
differs between releases of Python, and it calls 192.0.0.192 and fec0::1 global.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from model.errors import InvalidInput

# https://www.iana.org/assignments/iana-ipv4-special-registry, /iana-ipv6-special-registry
_NOT_PUBLIC = {
    "unspecified": ("0.0.0.0/8", "::/128"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
    "carrier-grade NAT": ("100.64.0.0/10",),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    # Azure answers its virtual machines' metadata and agents at this public-looking address.
    "cloud metadata": ("168.63.129.16/32",),
    "protocol assignment": ("192.0.0.0/24", "2001::/23"),
    "documentation": (
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
        *("2001:db8::/32", "3fff::/20"),
    ),
    "benchmarking": ("198.18.0.0/15",),
    # A tunnel can carry a packet to any of the above.
    "6to4": ("192.88.99.0/24", "2002::/16"),
    "IPv4-compatible": ("::/96",),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "reserved": ("240.0.0.0/4",),
}
_KINDS = [(ip_network(text), kind) for kind, texts in _NOT_PUBLIC.items() for text in texts]
_GLOBAL_UNICAST = ip_network("2000::/3")
# DNS64 gives every IPv4-only site such an address, so the form alone says nothing.
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRules:
    """Tells public addresses from those behind somebody's firewall."""

    def __init__(self, allow_private: Sequence[str] = ()) -> None:
        """Args:
          allow_private: networks that may be reached although they are not public, such as
            "127.0.0.0/8".

        Raises:
          InvalidInput: one of them is no network.
        """
        try:
            self._allowed = tuple(ip_network(text) for text in allow_private)
        except ValueError as error:
            raise InvalidInput(
                f"--allow_private: {error}; expected a network such as 127.0.0.0/8"
            ) from error

    def refusal(self, text: str) -> str | None:
        """Why an address may not be reached ("loopback"), or None if it may.

        Args:
          text: IPv4 or IPv6 address, with or without a zone.
        """
        address = ip_address(text)
        # A mapped address is the IPv4 address itself to this machine's network stack.
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed):
            return None
        if isinstance(address, IPv6Address) and address in _NAT64:
            inner = _kind(IPv4Address(int(address) & 0xFFFFFFFF))
            return inner and f"NAT64 form of {inner}"
        return _kind(address)


def _kind(address: IPv4Address | IPv6Address) -> str | None:
    for network, kind in _KINDS:
        if address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "reserved"
    return None
