"""Settings of fetching: ranges, flags, and what of them decides rows."""

import argparse
from dataclasses import fields

import pytest

from model.errors import InvalidInput
from pipelines import fetch_settings
from pipelines.fetch_order import spread_hosts
from pipelines.fetch_settings import FetchSettings

NO_FLAGS = {"max_bytes", "max_redirects"}


def parse(*flags: str) -> FetchSettings:
    parser = argparse.ArgumentParser()
    fetch_settings.add_arguments(parser)
    return fetch_settings.from_arguments(parser.parse_args(flags))


def test_without_flags_the_settings_are_the_defaults() -> None:
    assert parse() == FetchSettings()


def test_every_flag_reaches_its_setting() -> None:
    given = parse(
        *("--allow_private", "10.0.0.0/8", "--allow_private", "127.0.0.0/8", "--allow_proxy"),
        *("--ignore_robots", "--ignore_noai", "--url_timeout_s", "7", "--url_retries", "5"),
        *("--host_connections", "3", "--host_rate", "0.5"),
    )
    assert given == FetchSettings(("10.0.0.0/8", "127.0.0.0/8"), True, True, True, 7.0, 5, 3, 0.5)
    default = FetchSettings()
    same = {f.name for f in fields(default) if getattr(given, f.name) == getattr(default, f.name)}
    assert same == NO_FLAGS


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("url_timeout_s", value) for value in ("0", "-1", "nan", "inf", "86401")),
        *(("url_retries", "-1"), ("host_connections", "0")),
        *(("host_rate", value) for value in ("-1", "nan")),
        ("allow_private", "nonsense"),
    ],
)
def test_a_value_out_of_range_is_one_line(flag: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"--{flag}.*: .*expected") as caught:
        parse(f"--{flag}={value}")
    assert "\n" not in str(caught.value)


def test_hosts_are_spread_over_a_shard() -> None:
    urls = [f"http://{host}.test/{image}" for host in "abcde" for image in range(100, 200)]
    items = [{"key": url, "source": url} for url in urls]
    spread = [str(item["source"]) for item in spread_hosts(items)]
    assert sorted(spread) == urls
    # Of the 64 that are read at once, each host has its share.
    counts = [sum(url.startswith(f"http://{host}") for url in spread[:64]) for host in "abcde"]
    assert min(counts) >= 5
    # Without some of them the others keep their order.
    half = [str(item["source"]) for item in spread_hosts(items[::2])]
    assert half == [url for url in spread if url in set(half)]


def test_files_are_read_in_their_order() -> None:
    items = [{"key": name, "source": name} for name in ("a", "b", "c")]
    assert spread_hosts(items) == items
