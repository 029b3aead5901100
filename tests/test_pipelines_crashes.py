"""Images that end the process that decodes them fail alone."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from model.errors import ItemFailure, Reason
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients, Target
from pipelines.crashes import CarefulDecoder, begun
from pipelines.job_plan import assign, plan_job
from pipelines.jobs import Job
from pipelines.ledger import WriteSummary, read_ledger
from pipelines.shards import hold_output, run_job
from tests import crash_fixtures
from tests.bulk_fixtures import NAME, VERSION, World, connect_fake, photo, write_photos
from tests.crash_fixtures import CRASHING

MODEL = {"name": NAME, "version": VERSION}


def outcome(decode: CarefulDecoder, data: bytes) -> str:
    try:
        return f"{decode(data).width} wide"
    except ItemFailure as failure:
        return str(failure)


def test_only_the_image_that_ends_the_process_fails() -> None:
    images = [photo(1), CRASHING, photo(2), b"no image", CRASHING, photo(3)]
    with CarefulDecoder(crash_fixtures.decode) as decode, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(partial(outcome, decode), images))
    crashed = "decode: decoding it ended the process, expected a whole image"
    assert found[:3] == ["16 wide", crashed, "16 wide"]
    assert found[3].startswith(f"{Reason.NOT_AN_IMAGE}: ")
    assert found[4:] == [crashed, "16 wide"]


def test_a_process_that_is_gone_is_told_from_one_that_ended_its_shard(tmp_path: Path) -> None:
    job = Job("bulk", str(tmp_path), "", "")
    with begun(job, "a") as before:
        assert not before
    # An error is no crash.
    with pytest.raises(OSError, match="disk"), begun(job, "a"):
        raise OSError("disk")
    with begun(job, "a") as before:
        assert not before
    child = os.fork()
    if child == 0:
        with begun(job, "a"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with begun(job, "b") as before:
        assert not before
    with begun(job, "a") as before:
        assert before
    with begun(job, "a") as before:
        assert not before


@pytest.mark.slow
def test_a_crash_costs_a_worker_process_and_not_the_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    World.reset()
    photos = write_photos(tmp_path / "in", 12)
    (photos / "007b.png").write_bytes(CRASHING)
    items = [{"key": path.name, "source": str(path)} for path in sorted(photos.iterdir())]
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    settings = CaptionSettings(NAME, VERSION, batch_size=4)
    work = CaptionShard(clients, settings, crash_fixtures.decode)
    job = Job("bulk", str(tmp_path / "out"), "captions-{name}", "failures-{name}", amendable=True)
    with hold_output(job, flags) as job:
        job = plan_job(job, dict(zip("ab", assign(items, 2), strict=True)), {}, MODEL)
        run_job(job, work, WriteSummary(job, {}, MODEL), flags)
        ledger = read_ledger(job)
    assert (ledger.captioned, ledger.failed) == (12, {"decode": 1})
    [failure] = [
        json.loads(line)
        for path in (tmp_path / "out").glob("failures-*")
        for line in path.read_text().splitlines()
    ]
    assert failure["key"] == "007b.png"
    assert "ended the process" in failure["message"]
    assert "its shard is begun again" in capfd.readouterr().err
