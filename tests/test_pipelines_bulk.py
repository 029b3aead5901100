"""Bulk captioning as a whole: every image accounted for, on any runner, however interrupted."""

import argparse
import functools
import hashlib
import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import captionbeam
from model.errors import CheckFailed, InvalidInput
from pipelines import bulk
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.fetch_settings import FetchSettings
from pipelines.ledger import Ledger
from tests.bulk_fixtures import (
    NAME,
    POISON_COLOUR,
    VERSION,
    World,
    bad_images,
    connect_fake,
    fake_caption,
    good_images,
    photo,
    png,
    write_photos,
)
from tests.serving_fixtures import running_server, save_tiny_model, tiny_caption

SMALL = BulkConfig("", batch_size=4, shard_size=8)


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    World.reset()
    yield
    World.reset()


def caption(
    where: Path | str, output: Path, config: BulkConfig = SMALL, beam_args: tuple[str, ...] = ()
) -> Ledger:
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    return caption_all(
        str(where), Columns(), clients, replace(config, output=str(output)), beam_args
    )


def rows(output: Path, kind: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(output.glob(f"{kind}-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def captions_by_key(output: Path) -> dict[str, str]:
    return {row["key"]: row["caption"] for row in rows(output, "captions")}


def contents(output: Path) -> dict[str, bytes]:
    """Every result file; what is only there to resume is left out."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_every_kind_of_file_ends_as_a_caption_or_as_a_named_failure(tmp_path: Path) -> None:
    good = good_images()
    bad = bad_images() | {"poison.png": (png(POISON_COLOUR), "model_error")}
    for name, data in {**good, **{name: data for name, (data, _) in bad.items()}}.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "in" / "readme.txt").write_text("x")
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere")

    ledger = caption(tmp_path / "in", tmp_path / "out")

    found = {row["key"]: row for row in rows(tmp_path / "out", "captions")}
    assert set(found) == set(good)
    for name, data in good.items():
        assert found[name]["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["plain.png"]["caption"] == fake_caption(good["plain.png"])
    size = found["sub/rotated.jpg"]["width"], found["sub/rotated.jpg"]["height"]
    assert size == (10, 20)
    failures = {row["key"]: row for row in rows(tmp_path / "out", "failures")}
    expected = {name: reason for name, (_, reason) in bad.items()} | {"gone.jpg": "missing_file"}
    assert {key: row["reason"] for key, row in failures.items()} == expected
    assert all(
        set(row) == {"key", "source", "stage", "reason", "message"} for row in failures.values()
    )
    assert (ledger.inputs, ledger.captioned, ledger.skipped) == (12, 4, {"no_image_suffix": 1})
    assert ledger.failed == dict.fromkeys(expected.values(), 1)


def test_the_summary_balances_and_vouches_for_every_file(tmp_path: Path) -> None:
    caption(write_photos(tmp_path / "in", 20, poison=[3]), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ledger"] == {
        "inputs": 20,
        "captioned": 19,
        "failed": {"model_error": 1},
        "skipped": {},
    }
    assert summary["model"] == {"name": NAME, "version": VERSION}
    files = {file["file"]: file for file in summary["files"]}
    assert sorted(files) == [
        f"{kind}-{index:05d}-of-00003.jsonl"
        for kind in ("captions", "failures")
        for index in range(3)
    ]
    for name, file in files.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(rows(tmp_path / "out", "captions")) == 19


@pytest.mark.parametrize("calls", [0, 1, 3, 4])
def test_an_interrupted_job_resumed_equals_an_undisturbed_one(calls: int, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 30, poison=[7])
    caption(photos, tmp_path / "whole")
    World.reset()
    World.unavailable_after = calls
    with pytest.raises(InvalidInput, match="went away"):
        caption(photos, tmp_path / "torn")
    assert not (tmp_path / "torn" / "summary.json").exists()
    World.reset()
    ledger = caption(photos, tmp_path / "torn")
    assert ledger.captioned == 29
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_finished_shards_are_not_captioned_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 30)
    World.unavailable_after = 4
    with pytest.raises(InvalidInput):
        caption(photos, tmp_path / "out")
    finished = len(list((tmp_path / "out").glob("captions-*.jsonl")))
    done = len(rows(tmp_path / "out", "captions"))
    assert finished > 0
    World.reset()
    caption(photos, tmp_path / "out")
    assert sum(World.batches) == 30 - done


def test_a_complete_output_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "in", 5, poison=[0])
    first = caption(photos, tmp_path / "out")
    World.reset()
    assert caption(photos, tmp_path / "out") == first
    assert World.batches == []
    assert "is complete" in capsys.readouterr().out


def test_a_lost_file_of_a_complete_output_is_made_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 20)
    caption(photos, tmp_path / "out")
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "captions-00001-of-00003.jsonl").unlink()
    caption(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("mode", ["multi_threading", "in_memory"])
def test_the_bytes_do_not_depend_on_workers(mode: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 30, poison=[7, 8])
    caption(photos, tmp_path / "one")
    args = (f"--direct_running_mode={mode}", "--direct_num_workers=4")
    caption(photos, tmp_path / "other", beam_args=args)
    assert contents(tmp_path / "other") == contents(tmp_path / "one")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_manifest_of_urls_gives_the_captions_of_the_files(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 10)
    caption(photos, tmp_path / "files")
    handler = functools.partial(Quiet, directory=str(photos))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        lines = [json.dumps({"url": f"{base}/{name}", "id": name}) for name in keys_of(photos)]
        lines.append(json.dumps({"url": f"{base}/none.png", "id": "none"}))
        (tmp_path / "urls.jsonl").write_text("\n".join(lines))
        fetch = FetchSettings(allow_private=("127.0.0.1/32",), host_rate=0)
        config = replace(SMALL, output=str(tmp_path / "urls"), fetch=fetch)
        clients = Clients(Target("models/fake", None, NAME), connect_fake)
        ledger = caption_all(str(tmp_path / "urls.jsonl"), Columns(id="id"), clients, config)
        server.shutdown()
    assert (ledger.captioned, ledger.failed) == (10, {"http_4xx": 1})
    assert captions_by_key(tmp_path / "urls") == captions_by_key(tmp_path / "files")


def keys_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_proxy_is_refused_before_the_model_is_asked_unless_no_url_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "inside.test")
    manifest = tmp_path / "urls.txt"
    manifest.write_text("http://inside.test/a.png\nhttp://site.test/a.png\n")
    with pytest.raises(InvalidInput, match="--allow_proxy"):
        caption(manifest, tmp_path / "out")
    assert World.connects == 0
    assert not (tmp_path / "out").exists()
    assert caption(write_photos(tmp_path / "in", 2), tmp_path / "out").captioned == 2


def test_an_output_inside_the_input_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5)
    with pytest.raises(InvalidInput, match="lies in --input"):
        caption(photos, photos / "captions")


# The ledger is counted from the rows, too.


def tamper(output: Path, edit: Any) -> None:
    """Changes a finished shard's rows, and its result's digest so that only keys can tell."""
    [path] = output.glob("captions-*.jsonl")
    data = edit(path.read_bytes())
    path.write_bytes(data)
    [done] = (output / "_work" / "done").glob("*.json")
    result = json.loads(done.read_text())
    result["output"]["bytes"] = len(data)
    result["output"]["sha256"] = hashlib.sha256(data).hexdigest()
    done.write_text(json.dumps(result))
    (output / "summary.json").unlink()


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.replace(b'"key": "002.png"', b'"key": "003.png"'),
        lambda data: data[: data.index(b"\n") + 1] + data,
        lambda data: data[data.index(b"\n") + 1 :],
    ],
    ids=["twice and never", "one more", "one less"],
)
def test_a_key_that_is_not_in_exactly_one_row_fails_the_job(edit: Any, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5)
    caption(photos, tmp_path / "out")
    tamper(tmp_path / "out", edit)
    with pytest.raises(CheckFailed, match="not in exactly one row"):
        caption(photos, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_reasons_that_the_rows_do_not_confirm_fail_the_job(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5, poison=[1])
    caption(photos, tmp_path / "out")
    [done] = (tmp_path / "out" / "_work" / "done").glob("*.json")
    done.write_text(done.read_text().replace("model_error", "decode"))
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(CheckFailed, match=r'report .*"decode": 1.* rows say .*"model_error": 1'):
        caption(photos, tmp_path / "out")


def test_rows_that_were_changed_afterwards_fail_the_job(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5)
    caption(photos, tmp_path / "out")
    [path] = (tmp_path / "out").glob("captions-*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"photo", b"phot0"))
    (tmp_path / "out" / "summary.json").unlink()
    with pytest.raises(CheckFailed, match="not the"):
        caption(photos, tmp_path / "out")


# The command, with a real SavedModel in this process and behind a server.


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "captioner", version=2)


def test_the_command_says_the_same_in_process_and_through_the_server(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "in", 6)
    common = ["bulk", "--input", str(photos), "--output"]
    assert captionbeam.main([*common, f"{tmp_path}/a", "--model", str(tiny_model)]) == 0
    assert "6 inputs = 6 captioned + 0 failed + 0 skipped" in capsys.readouterr().out
    with running_server(tiny_model) as server:
        assert captionbeam.main([*common, f"{tmp_path}/b", "--server", server.address]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    expected = {path.name: tiny_caption(path.read_bytes()) for path in photos.iterdir()}
    assert captions_by_key(tmp_path / "a") == expected
    assert {row["model_version"] for row in rows(tmp_path / "a", "captions")} == {2}


def test_explained_rows_are_the_same_in_process_and_through_the_server(
    tiny_model: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "in", 3)
    common = ["bulk", "--input", str(photos), "--explain", "--nbest", "2", "--output"]
    assert captionbeam.main([*common, f"{tmp_path}/a", "--model", str(tiny_model)]) == 0
    with running_server(tiny_model) as server:
        assert captionbeam.main([*common, f"{tmp_path}/b", "--server", server.address]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a" / "attention") == contents(tmp_path / "b" / "attention")
    found = rows(tmp_path / "a", "captions")
    assert {row["attention"] for row in found} == {
        f"attention/{path.name}.png" for path in photos.iterdir()
    }
    expected = {f.name: f"{tiny_caption(f.read_bytes())} rank 0" for f in photos.iterdir()}
    assert {row["key"]: row["caption"] for row in found} == expected


def test_a_manifest_of_dead_urls_is_accounted_for_and_does_not_pass(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    (tmp_path / "a.png").write_bytes(photo(1))
    (tmp_path / "urls.csv").write_text(
        f'url\nhttp://127.0.0.1:{port}/x.jpg\nhttp://127.0.0.2:{port}/x.jpg\n""\na.png\n'
    )
    code = captionbeam.main(
        [
            *("bulk", "--input", f"{tmp_path}/urls.csv", "--output", f"{tmp_path}/out"),
            *("--model", str(tiny_model), "--allow_private", "127.0.0.1/32"),
        ]
    )
    assert code == 1
    said = capsys.readouterr()
    assert "4 inputs = 1 captioned + 3 failed" in said.out
    assert "3 of 4 images failed" in said.err
    assert {row["key"]: row["reason"] for row in rows(tmp_path / "out", "failures")} == {
        f"http://127.0.0.1:{port}/x.jpg": "connection",
        f"http://127.0.0.2:{port}/x.jpg": "refused_address",
        "line 4": "invalid_url",
    }


def test_what_cannot_be_used_is_one_line_and_exit_2(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.csv").write_text("link,n\na.jpg,1\n")
    (tmp_path / "m.txt").write_text("a.jpg\n")
    (tmp_path / "file").write_text("x")
    model = ["--model", str(tiny_model)]
    good = {"--input": str(photos), "--output": f"{tmp_path}/out"}
    cases: list[tuple[dict[str, str], list[str], str]] = [
        ({"--input": f"{tmp_path}/empty"}, model, "it is empty"),
        ({"--input": f"{tmp_path}/none"}, model, "no such file or directory"),
        ({"--input": f"{tmp_path}/m.csv"}, model, "no column 'url'; it has link, n"),
        ({"--output": f"{tmp_path}/file"}, model, f"{tmp_path}/file"),
        ({}, ["--model", f"{tmp_path}/none"], "no such directory"),
        ({}, ["--server", "127.0.0.1:1"], "no server at 127.0.0.1:1"),
        ({}, ["--server", "nonsense"], "expected HOST:PORT"),
        ({"--allow_private": "nonsense"}, model, "--allow_private"),
        ({"--url_column": "url"}, model, f"--url_column url: --input {photos} has no columns"),
        ({"--id_column": "n"}, model, f"--id_column n: --input {photos} has no columns"),
        (
            {"--input": f"{tmp_path}/*.csv", "--id_column": "n"},
            model,
            "expected a manifest (.csv, .tsv, .json, .jsonl, .parquet); leave it out",
        ),
        ({"--input": f"{tmp_path}/m.txt", "--url_column": "link"}, model, "has no columns"),
        ({"--carry_columns": "n"}, model, f"--carry_columns n: --input {photos} has no columns"),
        ({"--model_name": "captioner"}, model, "--model_name captioner: without --server"),
        ({"--batch_size": "0"}, model, "--batch_size 0: expected 1 or more"),
        ({"--max_failure_rate": "2"}, model, "expected 0 to 1"),
    ]
    for changes, where, message in cases:
        flags = [part for flag in (good | changes).items() for part in flag]
        assert captionbeam.main(["bulk", *flags, *where]) == 2, changes
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1, said


def test_the_columns_named_are_those_that_are_read(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1))
    (tmp_path / "m.csv").write_text("url,link,name\nnone.png,a.png,first\n")
    columns = ["--url_column", "link", "--id_column", "name"]
    flags = ["--input", f"{tmp_path}/m.csv", "--output", f"{tmp_path}/out", *columns]
    assert captionbeam.main(["bulk", *flags, "--model", str(tiny_model)]) == 0
    assert captions_by_key(tmp_path / "out") == {"first": tiny_caption(photo(1))}


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--input", "x"],
        ["--input", "x", "--output", "y"],
        ["--input", "x", "--output", "y", "--model", "m", "--server", "s:1"],
        ["--input", "x", "--output", "y", "--model", "m", "--no_such_flag"],
        ["--input", "x", "--output", "y", "--model", "m", "--batch_size", "many"],
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_2(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        captionbeam.main(["bulk", *flags])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_inputs_and_columns_may_be_several() -> None:
    parser = argparse.ArgumentParser()
    bulk.add_arguments(parser)
    given = ["--input", "a", "b", "--input", "c", "--carry_columns", "n", "k"]
    args = parser.parse_args([*given, "--output", "o", "--model", "m"])
    assert args.input == ["a", "b", "c"]
    assert args.carry_columns == ["n", "k"]


@pytest.mark.slow
def test_processes_write_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 20)
    config = replace(SMALL, output=str(tmp_path / "one"))
    clients = Clients(Target(str(tiny_model), None, "captioner"))
    caption_all(str(photos), Columns(), clients, config)
    args = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    other = replace(config, output=str(tmp_path / "two"))
    caption_all(str(photos), Columns(), clients, other, args)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_real_photographs_are_all_captioned(tiny_model: Path, tmp_path: Path) -> None:
    images = Path(__file__).parents[1].parent / "shared" / "data" / "coco80" / "images"
    if not images.is_dir():
        pytest.skip("shared/data/coco80 is not there")
    config = BulkConfig(str(tmp_path / "out"), shard_size=32)
    clients = Clients(Target(str(tiny_model), None, "captioner"))
    ledger = caption_all(str(images), Columns(), clients, config)
    assert (ledger.inputs, ledger.captioned) == (80, 80)
    for row in rows(tmp_path / "out", "captions"):
        with Image.open(io.BytesIO((images / row["key"]).read_bytes())) as image:
            assert (row["width"], row["height"]) == image.size
