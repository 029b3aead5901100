"""The files beside NAME, parsed as TensorFlow Serving and Docker parse them."""

import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from google.protobuf import text_format  # type: ignore[import-untyped]

from export.publishing import publish
from export.server_files import (
    BATCH_SIZES,
    COMPOSE_FILE,
    FLAGS,
    IMAGE,
    MONITORING_FILE,
    SSL_EXAMPLE_FILE,
    once_written,
)
from serving import batching_parameters
from serving.batching_parameters import BATCHING_FILE
from serving.contract import GRPC_PORT, REST_PORT
from serving.labels import MODELS_CONFIG
from tests.serving_config import message

DOCS = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
TEXTS = once_written("captioner")


def test_the_largest_batch_is_the_last_that_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / BATCHING_FILE
    file.write_text(TEXTS[BATCHING_FILE])
    found = batching_parameters.load(file)
    assert found.allowed_batch_sizes == BATCH_SIZES
    assert found.max_batch_size == BATCH_SIZES[-1]
    assert found.max_enqueued_batches * found.max_batch_size == 256


def test_monitoring_is_switched_on() -> None:
    config = message("MonitoringConfig")
    text_format.Parse(TEXTS[MONITORING_FILE], config)
    assert config.prometheus_config.enable
    assert config.prometheus_config.path.startswith("/")


def test_the_example_of_tls_holds_pem_text() -> None:
    config = message("SSLConfig")
    text_format.Parse(TEXTS[SSL_EXAMPLE_FILE], config)
    assert config.server_key.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert config.server_cert.endswith("-----END CERTIFICATE-----\n")
    assert not config.client_verify


def test_the_commands_in_the_docs_make_an_ssl_config(tmp_path: Path) -> None:
    (command,) = re.findall(r"```sh\n([^`]*ssl\.config\)\n)```", DOCS)
    pems = {"key.pem": "-----BEGIN X-----\na+/=\n-----END X-----\n", "cert.pem": "first\nsecond\n"}
    for name, text in pems.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "models").mkdir()
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    config, file = message("SSLConfig"), tmp_path / "models" / "ssl.config"
    # It holds a private key.
    assert file.stat().st_mode & 0o077 == 0
    text_format.Parse(file.read_text(), config)
    assert [config.server_key, config.server_cert] == list(pems.values())


def compose() -> dict[str, object]:
    (service,) = yaml.safe_load(TEXTS[COMPOSE_FILE])["services"].values()
    assert isinstance(service, dict)
    return service


def test_the_composed_server_is_started_as_the_docs_say() -> None:
    service = compose()
    assert service["image"] == IMAGE
    assert service["command"] == list(FLAGS)
    assert service["volumes"] == [".:/models:ro"]
    ports = (GRPC_PORT, REST_PORT)
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    (run,) = re.findall(r"docker run [^`]*", DOCS)
    words = run.replace("\\\n", " ").split()
    assert words[words.index(IMAGE) + 1 :] == list(FLAGS)
    for port in ports:
        assert f"127.0.0.1:{port}:{port}" in words


def test_every_file_that_a_flag_names_is_written(tmp_path: Path) -> None:
    publish(tmp_path / "captioner", lambda path: (path / "saved_model.pb").touch())
    named = {flag.partition("=/models/")[2] for flag in FLAGS if "=/models/" in flag}
    assert named == {MODELS_CONFIG, BATCHING_FILE, MONITORING_FILE}
    written = {path.name for path in tmp_path.iterdir()} - {"captioner", ".export.lock"}
    assert written == named | {COMPOSE_FILE, SSL_EXAMPLE_FILE}


def test_what_an_operator_changed_stays(tmp_path: Path) -> None:
    for _ in range(2):
        publish(tmp_path / "captioner", lambda path: (path / "saved_model.pb").touch())
        for file in TEXTS:
            (tmp_path / file).write_text("mine")
    (tmp_path / COMPOSE_FILE).unlink()
    publish(tmp_path / "captioner", lambda path: (path / "saved_model.pb").touch())
    assert (tmp_path / COMPOSE_FILE).read_text() == TEXTS[COMPOSE_FILE]
    others = set(TEXTS) - {COMPOSE_FILE}
    assert {(tmp_path / file).read_text() for file in others} == {"mine"}


class Status(BaseHTTPRequestHandler):
    """Answers as TensorFlow Serving does when asked for a model's state."""

    state = ""

    def do_GET(self) -> None:
        """One path alone."""
        found = self.path == "/v1/models/captioner"
        text = f'{{"model_version_status": [{{"version": "1", "state": "{self.state}"}}]}}'
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(text.encode() if found else b"{}")

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture(name="port")
def fixture_port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("state", "is_healthy"), [("AVAILABLE", True), ("LOADING", False), ("UNLOADING", False)]
)
def test_a_container_is_healthy_while_its_model_is_available(
    port: int, state: str, is_healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Status, "state", state)
    health = compose()["healthcheck"]
    assert isinstance(health, dict)
    kind, *command = health["test"]
    assert kind == "CMD"
    command = [part.replace(str(REST_PORT), str(port)) for part in command]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert (done.returncode == 0) == is_healthy


def test_a_container_whose_server_is_not_there_is_not_healthy() -> None:
    health = compose()["healthcheck"]
    assert isinstance(health, dict)
    command = [part.replace(str(REST_PORT), "1") for part in health["test"][1:]]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert done.returncode != 0


def test_names_are_quoted_for_the_health_check() -> None:
    (service,) = yaml.safe_load(once_written("it's $HOME")[COMPOSE_FILE])["services"].values()
    assert "/v1/models/it%27s%20%24HOME" in service["healthcheck"]["test"][-1]
