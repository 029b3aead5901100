"""Runs in img2dataset's environment: fetches and decodes a list of URLs, and prints images/s.

    IMG2DATASET_ENVIRONMENT/bin/python img2dataset_alone.py URLS.txt OUTPUT THREADS

Its writer is its dummy; neither resized nor encoded again, images are only decoded. What is timed
is its shard, by its own clock, without the start of its processes.
"""

import json
import sys
from pathlib import Path


def main(urls: str, output: str, threads: int) -> None:
    """Read all; raises RuntimeError where one fails."""
    from img2dataset import download  # type: ignore[import-not-found]

    count = len(Path(urls).read_text().split())
    download(
        url_list=urls,
        output_folder=output,
        output_format="dummy",
        processes_count=1,
        thread_count=threads,
        number_sample_per_shard=count,
        resize_mode="no",
        skip_reencode=True,
        retries=0,
        disallowed_header_directives=[],
        enable_wandb=False,
    )
    (shard,) = Path(output).glob("*_stats.json")
    stats = json.loads(shard.read_text())
    if stats["successes"] != count:
        raise RuntimeError(str(stats))
    print(count / (stats["end_time"] - stats["start_time"]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
