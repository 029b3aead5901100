"""Bulk jobs of every format of rows, with sidecars and strips: on any runner, and interrupted."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import captionbeam
from model.errors import InvalidInput
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.ledger import Ledger
from pipelines.output_settings import FORMATS, OutputSettings
from pipelines.row_formats import RowFormat
from tests.bulk_fixtures import NAME, World, connect_fake, fake_caption, photo, write_photos
from tests.cloud_fixtures import gcs_bucket, s3_bucket
from tests.fault_fixtures import STAGES, Events, killed_runs
from tests.output_fixtures import tree

SMALL = BulkConfig("", batch_size=4, shard_size=8)


@pytest.fixture(autouse=True)
def _world() -> None:
    World.reset()


def caption(
    where: Path, output: Path, config: BulkConfig = SMALL, *beam_args: str, **outputs: Any
) -> Ledger:
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    config = replace(config, output=str(output), outputs=OutputSettings(**outputs))
    return caption_all(str(where), Columns(), clients, config, beam_args)


def rows(output: Path, name: str, asked: Asked = SMALL.asked) -> list[dict[str, Any]]:
    read = RowFormat(name, asked.row_fields).read
    return [row for path in sorted(output.glob("captions-*")) for row in read(path.read_bytes())]


def test_every_format_holds_the_same_rows_and_another_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 10, poison=[3])
    ledgers = [caption(photos, tmp_path / name, format=name) for name in FORMATS]
    assert ledgers == [ledgers[0]] * 3
    assert ledgers[0].captioned == 9
    found = [rows(tmp_path / name, name) for name in FORMATS]
    assert found == [found[0]] * 3
    assert len(found[0]) == 9
    for name in FORMATS:
        there = {path.name for path in (tmp_path / name).iterdir()}
        shards = {f"0000{index}-of-00002" for index in range(2)}
        expected = {f"captions-{shard}.{name}" for shard in shards}
        expected |= {f"failures-{shard}.jsonl" for shard in shards}
        assert there == {"summary.json", "_work"} | expected
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert {file["file"] for file in summary["files"]} == expected
    with pytest.raises(InvalidInput, match='holds another job: format is "csv" there, "parquet"'):
        caption(photos, tmp_path / "csv", format="parquet")


def test_files_of_an_unfinished_job_of_another_format_do_not_stay(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    output = tmp_path / "out"
    explained = replace(SMALL, asked=Asked(explain=True))
    caption(photos, output, explained, format="csv")
    # As if killed before the shard was noted as finished.
    for path in (output / "summary.json", *(output / "_work" / "done").iterdir()):
        path.unlink()
    (output / "captions-mine.csv").write_text("not of the job")
    caption(photos, output, replace(SMALL, shard_size=2))
    names = sorted(tree(output))
    shards = [f"0000{index}-of-00002" for index in range(2)]
    assert names == [
        *(f"0/captions-{shard}.jsonl" for shard in shards),
        "0/captions-mine.csv",
        *(f"0/failures-{shard}.jsonl" for shard in shards),
        "0/summary.json",
    ]


def everything(root: Path, name: str, *beam_args: str) -> dict[str, bytes]:
    """Parquet, sidecars beside copies, and strips of ROOT/in."""
    config = replace(SMALL, asked=Asked(explain=True))
    outputs = {"format": "parquet", "sidecars": str(root / f"{name}-txt"), "copies": True}
    caption(root / "in", root / name, config, *beam_args, **outputs)
    return tree(root / name, root / f"{name}-txt")


@pytest.mark.parametrize("calls", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_interrupted_and_resumed_in_threads_it_leaves_the_same_bytes(
    calls: int, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "in", 12, poison=[7])
    World.unavailable_after = calls
    with pytest.raises(InvalidInput, match="went away"):
        everything(tmp_path, "torn")
    World.unavailable_after = None
    (photos / "000.png").write_bytes(photo(50))
    threads = ("--direct_running_mode=multi_threading", "--direct_num_workers=3")
    torn = everything(tmp_path, "torn", *threads)
    assert torn == everything(tmp_path, "whole")
    assert torn["1/000.png.txt"] == f"{fake_caption(photo(50))}\n".encode()
    assert not (tmp_path / "torn-txt" / ".captionbeam").exists()
    found = rows(tmp_path / "torn", "parquet", Asked(explain=True))
    # A row's words are those of its sidecar, and its strip is there.
    for row in found:
        assert torn[f"1/{row['key']}.txt"].decode() == row["caption"] + "\n"
        assert f"0/{row['attention']}" in torn
        assert torn[f"1/{row['key']}"] == (photos / str(row["key"])).read_bytes()
    # Beside them two shards' rows and failures, and the summary.
    assert len(found) == 11
    assert len(torn) == 3 * 11 + 5


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 20, poison=[7])
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert everything(tmp_path, "two", *processes) == everything(tmp_path, "one")


@pytest.mark.parametrize(
    ("sidecars", "message"),
    [
        ("in", "lies in --input"),
        ("in/txt", "lies in --input"),
        ("out", "holds what the job itself writes"),
        ("out/_work/x", "holds what the job itself writes"),
        ("out/attention", "holds what the job itself writes"),
        ("used", "has files that this output's job did not write"),
        ("a[1]", r"has \[, expected a name that is no pattern"),
        ("none://x", "no filesystem for this scheme"),
    ],
)
def test_sidecars_overwrite_nothing(sidecars: str, message: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 1)
    (tmp_path / "used" / "below").mkdir(parents=True)
    (tmp_path / "used" / "below" / "mine.txt").write_text("by hand")
    where = sidecars if "://" in sidecars else str(tmp_path / sidecars)
    with pytest.raises(InvalidInput, match=rf"^--sidecars .*{message}"):
        caption(photos, tmp_path / "out", sidecars=where)
    assert World.connects == 0


def test_a_directory_of_sidecars_belongs_to_its_output(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 1)
    texts = tmp_path / "texts"
    caption(photos, tmp_path / "out", sidecars=f"{texts}/")
    World.batches = []
    caption(photos, tmp_path / "out", sidecars=str(texts))
    assert World.batches == []
    with pytest.raises(InvalidInput, match="has files that this output's job did not write"):
        caption(photos, tmp_path / "other", sidecars=str(texts))
    with pytest.raises(InvalidInput, match="holds another job: sidecars is"):
        caption(photos, tmp_path / "out")
    with pytest.raises(InvalidInput, match="holds another job: copies is null there, true now"):
        caption(photos, tmp_path / "out", sidecars=str(texts), copies=True)
    with pytest.raises(InvalidInput, match=r"^--copies: .* expected --sidecars DIR, too$"):
        OutputSettings(copies=True)


@pytest.mark.parametrize("where", ["in", "in/**/*.png"])
def test_results_to_which_a_link_leads_are_no_inputs(where: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 2)
    (tmp_path / "in" / "around").symlink_to(tmp_path)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "b.png").write_bytes(photo(9))
    config = replace(SMALL, asked=Asked(explain=True))
    for _ in range(2):
        ledger = caption(
            tmp_path / where, tmp_path / "out", config, sidecars=str(tmp_path / "txt"), copies=True
        )
        assert ledger.captioned == 3
    assert ledger.skipped["own_results"] == 2


def test_what_a_killed_run_left_of_a_sidecar_is_removed(tmp_path: Path) -> None:
    scratch = tmp_path / "one-txt" / ".captionbeam"
    scratch.mkdir(parents=True)
    # An unfinished job of this output is what made it.
    write_photos(tmp_path / "in", 2)
    World.unavailable_after = 0
    with pytest.raises(InvalidInput, match="went away"):
        everything(tmp_path, "one")
    World.unavailable_after = None
    left = scratch / "file.tmp-elsewhere-1-2-3"
    left.write_text("half")
    os.utime(left, (0, 0))
    everything(tmp_path, "one")
    assert not scratch.exists()
    assert len(list((tmp_path / "one-txt").iterdir())) == 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_a_bucket_takes_rows_sidecars_and_strips(
    cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "in", 3, poison=[1])
    (photos / "sub").mkdir()
    (photos / "sub" / "é x.png").write_bytes(photo(60))
    expected = everything(tmp_path, "disk")
    with s3_bucket() if cloud == "s3" else gcs_bucket(monkeypatch) as bucket:
        config = replace(SMALL, output=f"{bucket.url}/out", asked=Asked(explain=True))
        outputs = OutputSettings("parquet", f"{bucket.url}/txt", copies=True)
        clients = Clients(Target("models/fake", None, NAME), connect_fake)
        caption_all(str(photos), Columns(), clients, replace(config, outputs=outputs), bucket.flags)
        found = {
            f"{index}/{name.removeprefix(top)}": bucket.get(name)
            for index, top in enumerate(("out/", "txt/"))
            for name in bucket.names(top)
            if not name.startswith("out/_work/")
        }
    assert found == expected


@pytest.mark.slow
def test_killed_before_any_rename_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_photos(tmp_path / "in", 3, poison=[1])
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    events = Events()
    STAGES["bulk with companions"](tmp_path, "whole", events)
    expected = tree(tmp_path / "whole", tmp_path / "whole-txt")
    steps = [at for at, label in enumerate(events.labels, 1) if label.startswith("rename")]
    kinds = {events.labels[at - 1] for at in steps}
    assert {"rename strip", "rename sidecar", "rename shard", "rename done"} <= kinds
    runs = [(f"at-{at}", step, 0.0) for at in steps for step in (at, 0)]
    codes = [code for code, _ in killed_runs("bulk with companions", tmp_path, runs)]
    assert codes == [-signal.SIGKILL, 0] * len(steps)
    for at in steps:
        assert tree(tmp_path / f"at-{at}", tmp_path / f"at-{at}-txt") == expected
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_wrong_format_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input", "x", "--output", "y", "--model", "m", "--format", "xml"]
    assert captionbeam.main(["bulk", *flags]) == 2
    said = capsys.readouterr().err
    assert "--format xml: no format of rows, expected one of jsonl, csv, parquet" in said
    assert said.count("\n") == 1
