"""Which addresses a URL may lead to, without a network."""

import pytest

from model.errors import InvalidInput
from pipelines.addresses import AddressRules


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.100.100.200", "carrier-grade NAT"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%1", "link-local"),
        ("168.63.129.16", "cloud metadata"),
        ("198.18.0.1", "benchmarking"),
        ("203.0.113.9", "documentation"),
        ("2001:db8::1", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("4000::1", "reserved"),
        ("64:ff9b:1::1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:10.0.0.1", "private"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::8.8.8.8", "IPv4-compatible"),
        ("2002:7f00:0001::", "6to4"),
        ("2002:a9fe:a9fe::1", "6to4"),
        ("64:ff9b::127.0.0.1", "NAT64 form of loopback"),
        ("64:ff9b::a9fe:a9fe", "NAT64 form of link-local"),
        # Teredo, to 127.0.0.1 and to 169.254.169.254 (the last four bytes, inverted).
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "protocol assignment"),
        ("2001:0:4136:e378:8000:63bf:5601:5601", "protocol assignment"),
        # Other clouds' metadata: ECS, Alibaba, Oracle, Google and Amazon over IPv6.
        ("169.254.170.2", "link-local"),
        ("192.0.0.192", "protocol assignment"),
        ("fd20:ce::254", "private"),
        ("::ffff:168.63.129.16", "cloud metadata"),
        ("::ffff:100.64.0.1", "carrier-grade NAT"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("::ffff:224.0.0.1", "multicast"),
        ("::ffff:255.255.255.255", "reserved"),
        ("::10.0.0.1", "IPv4-compatible"),
        ("::169.254.169.254", "IPv4-compatible"),
        ("2002:a00:1::", "6to4"),
        ("192.88.99.1", "6to4"),
        ("64:ff9b::10.0.0.1", "NAT64 form of private"),
        ("64:ff9b::100.64.0.1", "NAT64 form of carrier-grade NAT"),
        ("64:ff9b::0.0.0.0", "NAT64 form of unspecified"),
        ("64:ff9b::224.0.0.1", "NAT64 form of multicast"),
        ("64:ff9b::240.0.0.1", "NAT64 form of reserved"),
        ("64:ff9b:1::10.0.0.1", "reserved"),
        ("::ffff:0:127.0.0.1", "reserved"),
    ],
)
def test_an_address_behind_a_firewall_is_refused(address: str, kind: str) -> None:
    assert AddressRules().refusal(address) == kind


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
        *("169.253.0.1", "192.0.1.1", "223.255.255.255", "2606:4700::1111", "2a00::1"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    ],
)
def test_a_public_address_is_not(address: str) -> None:
    assert AddressRules().refusal(address) is None


def test_a_named_network_is_let_through_and_no_other() -> None:
    rules = AddressRules(["10.1.0.0/16", "fd00:1::/32"])
    assert rules.refusal("10.1.2.3") is None
    assert rules.refusal("::ffff:10.1.2.3") is None
    assert rules.refusal("fd00:1::5") is None
    assert rules.refusal("10.2.0.1") == "private"
    assert rules.refusal("fd00:2::5") == "private"
    # A tunnel leads elsewhere than this machine's own route to that network.
    assert rules.refusal("64:ff9b::10.1.2.3") == "NAT64 form of private"
    assert rules.refusal("2002:0a01:0203::") == "6to4"


@pytest.mark.parametrize("network", ["localhost", "127.0.0.1/40", "127.0.0.1/8", ""])
def test_what_is_no_network_is_refused_at_once(network: str) -> None:
    with pytest.raises(InvalidInput, match="--allow_private"):
        AddressRules([network])
