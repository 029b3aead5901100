"""Images that end the process that decodes them fail alone."""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.begun import Earlier, begun
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.crashes import CarefulDecoder
from pipelines.job_plan import assign, plan_job
from pipelines.jobs import Job
from pipelines.ledger import WriteSummary, read_ledger
from pipelines.output_settings import OutputSettings
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


def test_an_image_whose_process_ends_once_is_tried_again(tmp_path: Path) -> None:
    """As when memory was short."""
    with CarefulDecoder(crash_fixtures.Flaky(tmp_path / "mark")) as decode:
        assert outcome(decode, photo(1)) == "16 wide"
    assert (tmp_path / "mark").exists()


def test_a_process_that_does_not_start_is_no_image_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not find its decoder."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with (
        CarefulDecoder(crash_fixtures.decode) as decode,
        pytest.raises(InvalidInput, match="does not start"),
    ):
        decode(photo(1))


def test_a_cut_attempt_is_known_and_whether_its_process_ended(tmp_path: Path) -> None:
    job = Job("bulk", str(tmp_path), "", "", amendable=True)
    with begun(job, "a") as earlier:
        assert earlier == Earlier()
    with pytest.raises(OSError, match="disk"), begun(job, "a"):
        raise OSError("disk")
    with begun(job, "a") as earlier:
        assert earlier == Earlier(cut=True, crashed=False)
    child = os.fork()
    if child == 0:
        with begun(job, "a"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with begun(job, "b") as earlier:
        assert earlier == Earlier()
    with begun(job, "a") as earlier:
        assert earlier == Earlier(cut=True, crashed=True)
    with begun(job, "a") as earlier:
        assert earlier == Earlier()
    with begun(replace(job, amendable=False), "c") as earlier:
        assert earlier == Earlier()
    assert list((tmp_path / "_work" / "begun").iterdir()) == []


def test_a_result_does_not_count_while_its_shard_is_made_anew(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    config = BulkConfig(str(tmp_path / "out"), batch_size=4)
    World.reset()
    caption_all(str(photos), Columns(), clients, config)
    note = tmp_path / "out" / "_work" / "begun" / "00000-of-00001.json"
    note.write_text("{}")
    caption_all(str(photos), Columns(), clients, config)
    assert not note.exists()
    # Its rows stay: they were whole.
    assert World.batches == [3]


def test_small_files_of_a_cut_attempt_are_written_again(tmp_path: Path) -> None:
    """They may be of another model than the rows that count."""
    photos = write_photos(tmp_path / "in", 2)
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    outputs = OutputSettings(sidecars=str(tmp_path / "texts"))
    asked = Asked(explain=True)
    config = BulkConfig(str(tmp_path / "out"), batch_size=4, asked=asked, outputs=outputs)
    World.reset()
    caption_all(str(photos), Columns(), clients, config)
    small = [*(tmp_path / "out" / "attention").iterdir(), *(tmp_path / "texts").glob("*.txt")]
    before = {path: path.read_bytes() for path in small}
    assert len(before) == 4
    for path in small:
        path.write_bytes(b"of another model")
    (tmp_path / "out" / "_work" / "begun" / "00000-of-00001.json").write_text("{}")
    caption_all(str(photos), Columns(), clients, config)
    assert {path: path.read_bytes() for path in small} == before


@pytest.mark.slow
def test_a_crash_costs_a_worker_process_and_not_the_job(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    World.reset()
    photos = write_photos(tmp_path / "in", 12)
    poison = ["001b.png", "005b.png", "007b.png", "009b.png"]
    for name in poison:
        (photos / name).write_bytes(CRASHING)
    items = [{"key": path.name, "source": str(path)} for path in sorted(photos.iterdir())]
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    settings = CaptionSettings(NAME, VERSION, batch_size=4)
    work = CaptionShard(clients, settings, crash_fixtures.decode)
    job = Job("bulk", str(tmp_path / "out"), "captions-{name}", "failures-{name}", amendable=True)
    with hold_output(job, flags) as job:
        job = plan_job(job, dict(zip("abcd", assign(items, 4), strict=True)), {}, MODEL)
        run_job(job, work, WriteSummary(job, {}, MODEL), flags)
        ledger = read_ledger(job)
    assert (ledger.captioned, ledger.failed) == (12, {"decode": 4})
    failures = [
        json.loads(line)
        for path in (tmp_path / "out").glob("failures-*")
        for line in path.read_text().splitlines()
    ]
    assert sorted(failure["key"] for failure in failures) == poison
    assert all("ended the process" in failure["message"] for failure in failures)
    assert "ended amid its work, which is begun again" in capfd.readouterr().err
