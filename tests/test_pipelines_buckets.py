"""Preprocessing from and to buckets, S3's and GCS's, gives what it gives on a disk."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import distributed
import pytest
from google.cloud.storage.fileio import BlobWriter

import captionbeam
from model.errors import InvalidInput
from pipelines import storage
from pipelines.coco import Source
from pipelines.records_job import PreprocessSettings, preprocess
from tests.cloud_fixtures import Bucket, gcs_bucket, s3_bucket
from tests.preprocess_fixtures import (
    FakeEncoder,
    NotingEncoder,
    calls,
    jpeg,
    processes,
    published,
    settings,
    write_split,
)

# A server in the background and many runs: minutes, on two cores.
pytestmark = pytest.mark.slow

SCHEMES = ("s3", "gs")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two splits of which one image is missing and one is cut short."""
    root = tmp_path / "world"
    write_split(root, "train", 20)
    write_split(root, "val", 6, first_id=101)
    (root / "train" / f"{1:012d}.jpg").unlink()
    (root / "train" / f"{2:012d}.jpg").write_bytes(jpeg(2, (640, 480))[:-2000])
    return root


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket of the scheme in the test's parameter; empty."""
    made = s3_bucket() if request.param == "s3" else gcs_bucket(monkeypatch)
    with made as bucket:
        yield bucket


both = pytest.mark.parametrize("bucket", SCHEMES, indirect=True)
only_s3 = pytest.mark.parametrize("bucket", ["s3"], indirect=True)


def in_bucket(bucket: Bucket, local: PreprocessSettings) -> PreprocessSettings:
    """The same settings over the copy of the world in a bucket."""
    root = Path(local.output).parent

    def moved(path: str) -> str:
        return path.replace(str(root), f"{bucket.url}/{root.name}")

    sources = tuple(
        Source(source.split, moved(source.annotations), moved(source.images))
        for source in local.sources
    )
    return replace(local, sources=sources, output=f"{bucket.url}/out")


def local_files(world: Path, bucket: Bucket) -> Mapping[str, bytes]:
    """What a run on the disk publishes, its failures telling of the bucket's paths."""
    preprocess(settings(world, "local"), (), partial(FakeEncoder, world.parent / "local.log"))
    files = dict(published(world / "local"))
    name = "failures.jsonl"
    assert files[name].count(b"\n") == 2
    assert b'"reason": "missing_file"' in files[name]
    files[name] = files[name].replace(str(world).encode(), f"{bucket.url}/{world.name}".encode())
    return files


def make(world: Path, bucket: Bucket, *beam_args: str, **encoder: Any) -> Mapping[str, bytes]:
    """Preprocess in the bucket; returns what it holds then."""
    log = world.parent / "bucket.log"
    wanted = in_bucket(bucket, settings(world, "out"))
    preprocess(wanted, (*bucket.flags, *beam_args), partial(NotingEncoder, log, **encoder))
    return bucket.published("out")


def temporary(bucket: Bucket) -> list[str]:
    return [name for name in bucket.names("out/") if storage.TEMPORARY_MARK in name]


@both
def test_a_bucket_gives_the_bytes_of_a_disk(world: Path, bucket: Bucket) -> None:
    bucket.upload(world)
    expected = local_files(world, bucket)
    assert make(world, bucket) == expected
    assert not temporary(bucket)
    # Complete: neither encoded nor written again.
    assert make(world, bucket) == expected
    assert calls(world.parent / "bucket.log") == calls(world.parent / "local.log") == 4


@both
def test_an_interrupted_run_in_a_bucket_goes_on(world: Path, bucket: Bucket) -> None:
    bucket.upload(world)
    expected = local_files(world, bucket)
    with pytest.raises(RuntimeError, match="the machine went away"):
        make(world, bucket, stop_at=3)
    assert "out/manifest.json" not in bucket.names("out/")
    assert len([name for name in bucket.names("out/") if name.endswith(".tfrecord")]) == 2
    assert not temporary(bucket)

    assert make(world, bucket) == expected
    assert calls(world.parent / "bucket.log") == 3 + 2  # 4 shards, of which the third had failed
    assert not temporary(bucket)


@both
def test_only_what_nobody_writes_any_more_is_removed(world: Path, bucket: Bucket) -> None:
    bucket.upload(world)
    with pytest.raises(RuntimeError, match="the machine went away"):
        make(world, bucket, stop_at=2)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mark, host = storage.TEMPORARY_MARK, socket.gethostname()
    # HOST-PID-START-NUMBER; what another host wrote a moment ago may be in the making.
    ours, theirs = f"{mark}{host}-{ended.pid}-1-0", f"{mark}other-{host}-{ended.pid}-1-0"
    files = ("out/train-00000-of-00003.tfrecord", "out/_work/done/val-00000-of-00001.json")
    for name in files:
        bucket.put(name + ours, b"half")
        bucket.put(name + theirs, b"half")
    make(world, bucket)
    assert temporary(bucket) == sorted(name + theirs for name in files)


@both
def test_a_rename_that_fails_is_one_line_and_the_same_command_finishes(
    world: Path, bucket: Bucket
) -> None:
    bucket.upload(world)
    expected = local_files(world, bucket)
    rename = storage.rename

    def renamed(source: str, destination: str) -> None:
        # The bucket's own refusal, of a source that is not there.
        gone = "-gone" if destination.endswith("train-00001-of-00003.tfrecord") else ""
        rename(source + gone, destination)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(storage, "rename", renamed)
        with pytest.raises(InvalidInput) as caught:
            make(world, bucket)
    said = str(caught.value)
    assert said.startswith(f"{bucket.url}/out: cannot be written or read (Rename operation failed")
    assert said.endswith("; see that it can and has free space, then repeat the command")
    assert "\n" not in said
    assert "out/manifest.json" not in bucket.names("out/")
    assert make(world, bucket) == expected
    assert not temporary(bucket)


@both
@pytest.mark.parametrize("size", [0, 1, 6 * 2**20 + 1])
def test_files_of_every_size_come_back(bucket: Bucket, size: int) -> None:
    # Nothing, one byte, more than the part in which Beam uploads to S3 (5 MiB).
    data = os.urandom(size)
    storage.use_flags(bucket.flags)
    path = f"{bucket.url}/some/file"
    storage.write_bytes(path, data)
    assert storage.read_bytes(path) == data == bucket.get("some/file")
    assert storage.size(path) == size
    storage.concatenate([path, path], f"{path}s")
    assert bucket.get("some/files") == 2 * data
    assert bucket.names("") == ["some/file", "some/files"]


@both
def test_what_is_not_there_is_said_as_of_a_disk(bucket: Bucket) -> None:
    storage.use_flags(bucket.flags)
    path = f"{bucket.url}/none"
    assert not storage.exists(path)
    assert storage.size(path) is None
    assert storage.read_json(path) is None
    assert storage.match(f"{path}/*") == []
    storage.delete_matching(f"{path}*")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(path)
    with pytest.raises(OSError, match=r"NoSuchBucket|404"):
        storage.write_bytes(f"{bucket.url[:5]}none-such/file", b"data")


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_what_could_not_be_uploaded_is_not_tried_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    upload = BlobWriter._initiate_upload

    def counted(self: BlobWriter) -> None:
        tried.append(self)
        upload(self)

    monkeypatch.setattr(BlobWriter, "_initiate_upload", counted)
    file = storage.open_write(f"{bucket.url[:5]}none-such/file")
    file.write(b"data")
    with pytest.raises(OSError, match="404"):
        file.close()
    # As Python does when it collects the file.
    tried[0].close()
    assert len(tried) == 1


@pytest.fixture
def command(world: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`captionbeam preprocess` of the training split, with the fake encoder; lacks --output."""
    encoder = FakeEncoder(world.parent / "command.log")
    monkeypatch.setattr("pipelines.records_job.Encoder", lambda _: encoder)
    flags = ["--encoder_weights=random:0", "--image_size=32", "--grid_size=1"]
    split = f"--split=train={world}/captions_train.json:{world}/train"
    return ["preprocess", split, *flags, "--min_word_count=1"]


@both
def test_the_command_writes_to_the_root_of_a_bucket(
    command: list[str], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert captionbeam.main([*command, f"--output={bucket.url}", *bucket.flags]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"records: {bucket.url}\n")
    assert f"{bucket.url} is complete already; nothing was done" in out
    assert err == ""
    assert [name for name in bucket.names("") if "/" not in name] == [
        "failures.jsonl",
        "manifest.json",
        "train-00000-of-00001.tfrecord",
        "vocabulary.json",
    ]


@both
def test_a_bucket_that_is_not_there_is_one_line(
    command: list[str], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"{bucket.url[:5]}none-such"
    assert captionbeam.main([*command, f"--output={missing}/out", *bucket.flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"captionbeam preprocess: {missing}/out: cannot be used (")
    split = f"--split=train={missing}/captions.json:{missing}/train"
    command = ["preprocess", split, f"--output={bucket.url}/out", *bucket.flags]
    assert captionbeam.main(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"captionbeam preprocess: {missing}/captions.json: cannot be read (")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            [],
            "no AWS credentials, expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
            "environment, a profile or a role of this machine",
        ),
        (
            ["--s3_endpoint_url=localhost:9", "--s3_access_key_id=x", "--s3_secret_access_key=x"],
            "S3: Invalid endpoint: localhost:9",
        ),
    ],
)
def test_what_s3_cannot_be_reached_with_is_one_line(
    command: list[str],
    flags: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    output = "s3://bucket/out"
    assert captionbeam.main([*command, f"--output={output}", *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"captionbeam preprocess: {output}: cannot be used (")
    assert reason in said[0]


@only_s3
def test_s3_is_reached_through_one_client(
    world: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    made = []
    client = boto3.session.Session.client

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return client(self, *args, **kwargs)

    bucket.upload(world)
    monkeypatch.setattr(boto3.session.Session, "client", counted)
    make(world, bucket)
    assert len(made) == 1


@pytest.mark.slow
@only_s3
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_workers_elsewhere_know_the_flags_of_the_bucket(
    world: Path, bucket: Bucket, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    bucket.upload(world)
    expected = local_files(world, bucket)
    if where == "processes":
        flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
        assert make(world, bucket, *flags) == expected
    else:
        with distributed.LocalCluster(
            n_workers=2, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster:
            runner = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
            address = f"--dask_client_address={cluster.scheduler_address}"
            assert make(world, bucket, runner, address, "--dask_partition_size=1") == expected
    assert os.getpid() not in processes(world.parent / "bucket.log")


@both
def test_records_in_a_bucket_are_checked_mended_and_shown(
    world: Path,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    bucket.upload(world)
    expected = make(world, bucket)
    encoder = FakeEncoder(tmp_path / "repair.log")
    monkeypatch.setattr("pipelines.records_repair.Encoder", lambda _: encoder)
    check = ["preprocess", "--check", f"{bucket.url}/out", *bucket.flags]
    assert captionbeam.main(check) == 0
    shard = "out/val-00000-of-00001.tfrecord"
    bucket.put(shard, bucket.get(shard)[:-1])
    assert captionbeam.main(check) == 1
    assert captionbeam.main([*check, "--repair"]) == 0
    assert bucket.published("out") == expected
    assert calls(tmp_path / "repair.log") == 1
    capsys.readouterr()
    picture = tmp_path / "records.png"
    show = ["records", f"{bucket.url}/out", "--show=2", f"--picture={picture}", *bucket.flags]
    assert captionbeam.main(show) == 0
    assert "not read" not in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
