"""What decides how URLs are read, and the flags that say it."""

import argparse
from dataclasses import dataclass

from model.errors import InvalidInput
from pipelines.addresses import AddressRules

_DAY_S = 86_400


@dataclass(frozen=True)
class FetchSettings:
    """How URLs are read.

    Attributes:
      allow_private: networks that URLs may lead to although they are not public.
      allow_proxy: whether the environment's proxy is used; addresses are not checked behind it.
      ignore_robots: whether robots.txt is neither read nor honoured.
      ignore_noai: whether `X-Robots-Tag: noai, noimageai` is not honoured.
      url_timeout_s: seconds for one URL, with its redirects and retries; waiting for its turn at
        a host is not counted.
      url_retries: how often a URL is asked for again.
      host_connections: requests to one host at once, in one process.
      host_rate: requests to one host in a second, in one process; 0 for no limit.
      max_bytes: largest body; that of `model.image_bytes.Limits` when None.
      max_redirects: how many are followed.
    """

    allow_private: tuple[str, ...] = ()
    allow_proxy: bool = False
    ignore_robots: bool = False
    ignore_noai: bool = False
    url_timeout_s: float = 30.0
    url_retries: int = 2
    # A browser opens six; ten images a second leave a small web server most of its strength.
    host_connections: int = 4
    host_rate: float = 10.0
    max_bytes: int | None = None
    max_redirects: int = 5

    def __post_init__(self) -> None:
        """Checks the ranges; raises InvalidInput."""
        AddressRules(self.allow_private)
        # Written so that what is no number fails, too.
        for name, fits, expected in (
            ("url_timeout_s", 0 < self.url_timeout_s <= _DAY_S, "seconds, of a day at most"),
            ("url_retries", self.url_retries >= 0, "0 or more"),
            ("host_connections", self.host_connections >= 1, "1 or more"),
            ("host_rate", self.host_rate >= 0, "requests a second, or 0 for no limit"),
        ):
            if not fits:
                raise InvalidInput(f"--{name} {getattr(self, name)}: expected {expected}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    default = FetchSettings()
    group = parser.add_argument_group("URLs")
    group.add_argument(
        "--allow_private",
        metavar="NETWORK",
        nargs="+",
        action="extend",
        default=[],
        help="private networks that URLs may lead to, such as 127.0.0.0/8",
    )
    group.add_argument(
        "--allow_proxy",
        action="store_true",
        help="go through the environment's proxy, behind which addresses are not checked",
    )
    group.add_argument(
        "--ignore_robots", action="store_true", help="do not ask for a site's robots.txt"
    )
    group.add_argument(
        "--ignore_noai",
        action="store_true",
        help="take images whose answer says X-Robots-Tag: noai or noimageai",
    )
    for name, kind, metavar, meaning in (
        ("url_timeout_s", float, "SECONDS", "for one URL, with redirects and retries"),
        ("url_retries", int, "N", "how often to ask again"),
        ("host_connections", int, "N", "requests to one host at once, in each process"),
        ("host_rate", float, "N", "requests to one host in a second, in each process; 0: no limit"),
    ):
        group.add_argument(
            f"--{name}",
            type=kind,
            metavar=metavar,
            default=getattr(default, name),
            help=f"{meaning} (default: %(default)g)",
        )


def from_arguments(args: argparse.Namespace) -> FetchSettings:
    """The settings of a command's flags; raises InvalidInput."""
    return FetchSettings(
        allow_private=tuple(args.allow_private),
        allow_proxy=args.allow_proxy,
        ignore_robots=args.ignore_robots,
        ignore_noai=args.ignore_noai,
        url_timeout_s=args.url_timeout_s,
        url_retries=args.url_retries,
        host_connections=args.host_connections,
        host_rate=args.host_rate,
    )
