"""What a site asks of robots: its robots.txt (RFC 9309), and `X-Robots-Tag` of an answer."""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from protego import Protego

from model.errors import ItemFailure, Reason
from pipelines.lookups import Lookups

PRODUCT = "captionbeam"
# RFC 9309 asks for 500 KiB at least; what is behind them is not read.
MAX_ROBOTS_BYTES = 500 * 2**10
# RFC 9309 allows a day.
_LIFETIME_S = 3600.0
# A site that is down is not asked for its rules again by each of its images.
_UNREACHABLE_S = 300.0
# Of all texts together; parsed they take some twenty times as much.
_MAX_BYTES = 4 * 2**20
# What an entry weighs besides its text.
_ENTRY_BYTES = 512
# A site without rules, as RFC 9309 reads it: "unavailable", or too many redirects.
_NO_RULES = frozenset({Reason.HTTP_4XX, Reason.TOO_MANY_REDIRECTS, Reason.EMPTY})
_AGENT = re.compile(r"\s*user[-\s]*agent\b[\s:]*([^#]*)", re.IGNORECASE)
_PRODUCT_TOKEN = re.compile(rf"{PRODUCT}(?![\w-])", re.IGNORECASE)
_NOAI = frozenset({"noai", "noimageai"})
# A name before a colon in X-Robots-Tag is a robot's, but for the directives that have a value. What
# has a blank is no name: the commas and colons of dates divide them into parts such as
# "25 Jun 2010 15:00:00 GMT".
_ROBOT = re.compile(
    r"(?!(unavailable_after|max-(snippet|image-preview|video-preview))\s*:)[\w.*-]+\s*:", re.I
)

_Rules: TypeAlias = Protego | ItemFailure


class Robots:
    """Asks each site once for its robots.txt; safe to use from many threads."""

    def __init__(
        self, read: Callable[[str], bytes], now_s: Callable[[], float], wait_s: float
    ) -> None:
        """Args:
        read: URL → the first MAX_ROBOTS_BYTES of the body, or ItemFailure.
        now_s: monotonic seconds.
        wait_s: longest wait for another thread that reads the same file.
        """
        self._read, self._wait_s = read, wait_s
        self._sites: Lookups[_Rules] = Lookups(_MAX_BYTES, now_s)

    def check(self, url: str) -> None:
        """Raises ItemFailure where a URL may not be read.

        That is ROBOTS where the rules say so. Rules that cannot be read forbid the whole site
        (RFC 9309, 2.3.1.4); the reason is then why they cannot.
        """
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc}"
        rules = self._rules(site)
        if isinstance(rules, ItemFailure):
            raise ItemFailure(
                rules.reason,
                f"{site}/robots.txt cannot be read, so nothing of the site is: {rules.message}",
            )
        if not rules.can_fetch(url, PRODUCT):
            raise ItemFailure(
                Reason.ROBOTS,
                f"{site}/robots.txt forbids it; --ignore_robots reads it all the same",
            )

    def _rules(self, site: str) -> _Rules:
        future, mine = self._sites.claim(site, self._wait_s)
        if not mine:
            try:
                return future.result(self._wait_s)
            except TimeoutError:
                return ItemFailure(Reason.TIMEOUT, f"not read within {self._wait_s:g} s")
        try:
            rules, size = self._ask(site)
        except BaseException as error:
            # Whoever waits gets the error, too; who comes later asks again.
            self._sites.keep(site, future, 0)
            future.set_exception(error)
            raise
        unreachable = isinstance(rules, ItemFailure)
        lifetime_s = _UNREACHABLE_S if unreachable else _LIFETIME_S
        self._sites.keep(site, future, lifetime_s, _ENTRY_BYTES + size)
        future.set_result(rules)
        return rules

    def _ask(self, site: str) -> tuple[_Rules, int]:
        """The rules of a site, and the size of their text."""
        try:
            text = self._read(f"{site}/robots.txt").decode("utf-8-sig", "replace")
        except ItemFailure as failure:
            return (Protego() if failure.reason in _NO_RULES else failure), 0
        return Protego.parse(_for_us(text)), len(text)


def check_noai(tags: Sequence[str]) -> None:
    """Raises ItemFailure NOAI where an answer keeps machines from learning from its image.

    Args:
      tags: the values of its `X-Robots-Tag` headers, such as "noai, noimageai" or
        "otherbot: noindex"; a robot's name holds to the end of its header.
    """
    for tag in tags:
        robot = ""
        for part in tag.split(","):
            directive = part.strip()
            if _ROBOT.match(directive):
                robot, _, directive = (word.strip() for word in directive.partition(":"))
            addressed = robot in ("", "*") or _PRODUCT_TOKEN.fullmatch(robot)
            if addressed and directive.lower() in _NOAI:
                raise ItemFailure(
                    Reason.NOAI, f"X-Robots-Tag: {tag}; --ignore_noai takes it all the same"
                )


def _for_us(text: str) -> str:
    """The same rules for us, and all other robots under one name.

    The parser gives each robot of a group each rule: a hostile file of 500 KiB would become
    gigabytes.
    """
    return "\n".join(map(_rename, text.splitlines()))


def _rename(line: str) -> str:
    named = _AGENT.match(line)
    if named is None:
        return line
    robot = named[1].strip()
    if robot != "*":
        robot = PRODUCT if _PRODUCT_TOKEN.match(robot) else "other"
    return f"User-agent: {robot}"
