"""Shards of URLs: settings that reach the worker, pages that are no images, hosts that wait."""

import json
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import ItemFailure
from pipelines.begun import Earlier
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients, Target
from pipelines.fetch_order import spread_hosts
from pipelines.fetch_settings import FetchSettings
from pipelines.jobs import Item, Job, ShardSpec
from tests.bulk_fixtures import NAME, VERSION, World, connect_fake, photo
from tests.fetch_fixtures import SETTINGS, Handler, LoopbackServer, answered, serving

PATIENCE_S = 20
# As SETTINGS, for whole photographs.
URLS = replace(SETTINGS, max_bytes=None, url_timeout_s=PATIENCE_S)
FORBIDDEN = b"User-agent: *\nDisallow: /"
CAPTIONED = "captioned"


class Outcomes(dict[str, str]):
    """A sink: CAPTIONED or the reason, by key."""

    job: Job
    spec, earlier = ShardSpec("shard", "", 0, ""), Earlier()

    def frame(self, payload: bytes) -> None:
        assert payload == b""

    def write(self, payload: bytes) -> None:
        self[json.loads(payload)["key"]] = CAPTIONED

    def fail(self, item: Item, failure: ItemFailure) -> None:
        self[item["key"]] = str(failure.reason)


@pytest.fixture(autouse=True)
def _world(tmp_path: Path) -> Iterator[None]:
    World.reset()
    Outcomes.job = Job("bulk", str(tmp_path / "_out"), "", "")
    yield
    World.reset()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        running.answers["/photo"] = answered(200, photo(1))
        yield running


def outcomes(items: list[dict[str, str]], fetch: FetchSettings) -> Outcomes:
    clients = Clients(Target(model="models/fake", server=None, model_name=NAME), connect_fake)
    work = CaptionShard(clients, CaptionSettings(NAME, VERSION, fetch=fetch))
    # As on its way to a worker.
    work = pickle.loads(pickle.dumps(work))
    work.setup()
    found = Outcomes()
    work.process(items, found)
    return found


def test_the_settings_reach_the_worker(server: LoopbackServer) -> None:
    server.answers["/robots.txt"] = answered(200, FORBIDDEN)
    server.answers["/photo"] = answered(200, photo(1), X_Robots_Tag="noai")
    items = [{"key": "a", "source": server.url("/photo")}]
    assert outcomes(items, FetchSettings()) == {"a": "refused_address"}
    assert outcomes(items, URLS) == {"a": "robots"}
    assert outcomes(items, replace(URLS, ignore_robots=True)) == {"a": "noai"}
    both = replace(URLS, ignore_robots=True, ignore_noai=True)
    assert outcomes(items, both) == {"a": CAPTIONED}


def test_shards_share_what_is_known_of_a_host(server: LoopbackServer) -> None:
    settings = replace(URLS, url_retries=1)
    for shard in range(3):
        items = [{"key": f"{shard}", "source": server.url("/photo")}]
        assert outcomes(items, settings) == {f"{shard}": CAPTIONED}
    assert len(server.asked_rules) == 1


@pytest.mark.parametrize(
    "page",
    [
        b"<!doctype html><title>Not found</title>",
        b"\xef\xbb\xbf\r\n  <HTML><body>",
        b'{"error": "not found"}',
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"BMW, a maker of cars and motorcycles, is not found here.",
        b"GIF89a is how a GIF begins, and this is a page about it.",
        b"II*\nis how a TIFF begins, and this is a page about it.",
        b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
        b"PK\x03\x04\x14\x00\x06\x00",
    ],
    ids=lambda page: page[:12].decode("latin-1"),
)
def test_a_page_is_no_image_whatever_it_is_called(page: bytes, server: LoopbackServer) -> None:
    server.answers["/page"] = answered(200, page, Content_Type="image/jpeg")
    items = [{"key": "page", "source": server.url("/page")}]
    assert outcomes(items, URLS) == {"page": "not_an_image"}


def test_an_image_is_one_whatever_it_is_called(server: LoopbackServer) -> None:
    server.answers["/page"] = answered(200, photo(1), Content_Type="text/html")
    items = [{"key": "page", "source": server.url("/page")}]
    assert outcomes(items, URLS) == {"page": CAPTIONED}


def test_images_that_wait_for_a_host_hold_up_no_other_hosts(server: LoopbackServer) -> None:
    """The last in the order of reading is of another host, and must come before the first."""
    last_was_read, given_up = threading.Event(), threading.Event()

    def wait(handler: Handler) -> None:
        if given_up.is_set() or not last_was_read.wait(PATIENCE_S / 4):
            given_up.set()
        handler.reply(404 if given_up.is_set() else 200, photo(1))

    def last(handler: Handler) -> None:
        last_was_read.set()
        handler.reply(200, photo(2))

    with serving("127.0.0.2") as other:
        server.answers["/wait"], other.answers["/last"] = wait, last
        items = [{"key": f"{number}", "source": server.url("/wait")} for number in range(40)]
        last_key = spread_hosts(items)[-1]["key"]
        items[int(last_key)]["source"] = other.url("/last")
        found = outcomes(items, replace(URLS, host_connections=2))
    assert found == {f"{number}": CAPTIONED for number in range(40)}
    assert list(found) == [item["key"] for item in spread_hosts(items)]
