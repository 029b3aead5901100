"""`captionbeam doctor`: every finding with its level and what to do."""

import http.server
import shutil
import socket
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import captionbeam
from serving import doctor
from serving.doctor import FAIL, OK, WARN, Finding
from serving.target import Target
from tests.serving_fixtures import running_server, save_tiny_model

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Keras cache, and no proxy between us and loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


def answering(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/weights.h5"
        server.shutdown()
        thread.join()


@pytest.fixture
def host() -> Iterator[str]:
    yield from answering(200)


@pytest.fixture
def refusing_host() -> Iterator[str]:
    yield from answering(404)


def test_weights_that_can_be_downloaded(host: str) -> None:
    (finding,) = doctor.check_weights(host)
    assert (finding.level, finding.remedy) == (OK, "")


def test_weights_whose_host_does_not_have_them_or_is_not_there(refusing_host: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        for url in (refusing_host, f"http://127.0.0.1:{reserved.getsockname()[1]}/w"):
            (finding,) = doctor.check_weights(url)
            assert finding.level == WARN
            assert "--encoder_weights FILE" in finding.remedy
            assert "random:SEED" in finding.remedy


def test_weights_in_the_cache_need_no_host(no_weights: Path) -> None:
    file = no_weights / "models" / doctor.WEIGHTS_FILE
    file.parent.mkdir(parents=True)
    file.touch()
    (finding,) = doctor.check_weights("http://127.0.0.1:1/never-asked")
    assert finding == Finding(OK, f"ImageNet weights in {file}")


def test_packages_are_those_of_setup_py(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {finding.fact.split()[0]: finding for finding in doctor.check_packages()}
    assert {"tensorflow", "keras", "apache-beam", "grpcio"} <= found.keys()
    # Extras are not needed to run.
    assert "ruff" not in found
    assert all(finding.level == OK for finding in found.values())

    real = metadata.version

    def version(name: str) -> str:
        if name == "grpcio":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "tensorflow" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.fact.split()[0]: finding for finding in doctor.check_packages()}
    assert found["grpcio"].level == FAIL
    assert found["tensorflow"].level == FAIL
    assert "expected" in found["tensorflow"].remedy
    assert "requirements.lock" in found["grpcio"].remedy
    assert found["keras"].level == OK
    (finding,) = doctor.check_packages("no-such-distribution")
    assert finding.level == FAIL


@pytest.mark.parametrize(("free_gib", "level"), [(0.5, FAIL), (5, WARN), (100, OK)])
def test_disk(monkeypatch: pytest.MonkeyPatch, free_gib: float, level: str) -> None:
    usage = Usage(0, 0, int(free_gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    *_, disk = doctor.check_machine()
    assert disk.level == level
    assert bool(disk.remedy) == (level != OK)


def test_python_of_another_version_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(doctor.check_python()).level == OK
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert next(doctor.check_python()).level == FAIL


def test_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(doctor.check_java()).level == WARN
    java.write_text("#!/bin/sh\necho 'openjdk version \"17\"' >&2\n")
    java.chmod(0o755)
    assert next(doctor.check_java()) == Finding(
        OK, 'java for METEOR and SPICE: openjdk version "17"'
    )
    java.write_text("#!/bin/sh\nexit 1\n")
    assert next(doctor.check_java()).level == WARN


def test_server(tmp_path: Path) -> None:
    assert next(doctor.check_server(None)).level == OK
    model = save_tiny_model(tmp_path / "captioner", version=5)
    with running_server(model) as server:
        (found,) = doctor.check_server(Target(None, server.address))
        assert found == Finding(OK, f"server {server.address}: captioner version 5")
        (found,) = doctor.check_server(Target(None, server.address, "other"))
        assert found.level == FAIL
        assert "--model_name" in found.remedy


def test_the_exit_code_is_1_only_with_a_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The true host must not be asked.
    monkeypatch.setattr(doctor, "check_weights", lambda: iter([Finding(WARN, "w", "act")]))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 100 * 2**30))
    assert captionbeam.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "warn  w: act" in lines
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    assert captionbeam.main(["doctor"]) == 1
    assert "fail  0.0 GiB free" in capsys.readouterr().out
