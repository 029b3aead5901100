"""Fetches and validates a list of URLs as bulk captioning does, as a process of its own.

    python -m benchmarks.fetch_alone URLS.txt THREADS

It prints images/s. Limits of a host and robots.txt are off, as the other side has none.
"""

import sys
import time
from functools import partial
from pathlib import Path

from model.errors import ItemFailure
from model.image_bytes import canonicalise
from pipelines.fetch import Fetcher
from pipelines.fetch_settings import FetchSettings
from pipelines.read_ahead import read_ahead
from pipelines.reading import load_image


def main(urls: str, threads: int) -> None:
    """Read all; raises RuntimeError where one fails."""
    items = [{"key": url, "source": url} for url in Path(urls).read_text().split()]
    settings = FetchSettings(
        ("127.0.0.0/8",), ignore_robots=True, ignore_noai=True, host_rate=0,
        host_connections=threads,
    )  # fmt: skip
    with Fetcher(settings) as fetcher:
        load = partial(load_image, fetcher, canonicalise)
        began_s = time.perf_counter()
        for _, read in read_ahead(items, load, threads=threads, ahead=threads):
            if isinstance(read, ItemFailure):
                raise RuntimeError(str(read))
        print(len(items) / (time.perf_counter() - began_s))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
