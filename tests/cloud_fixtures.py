"""Clouds on loopback: an S3 and a GCS bucket from emulators, and a Dataflow that only listens."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from apache_beam.internal.gcp import auth
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
S3_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


@dataclass(frozen=True)
class Bucket:
    """An emulated bucket, reached past Beam; names are those of objects.

    Attributes:
      url: scheme and bucket.
      flags: what Beam must be told.
      client: boto3's S3 client, or google.cloud's bucket.
    """

    url: str
    flags: tuple[str, ...]
    client: Any

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        if self.flags:
            self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        else:
            self.client.blob(name).upload_from_string(data)

    def delete(self, name: str) -> None:
        """Remove an object."""
        if self.flags:
            self.client.delete_object(Bucket=BUCKET, Key=name)
        else:
            self.client.delete_blob(name)

    def names(self, prefix: str) -> list[str]:
        """Objects below a prefix, in order."""
        if self.flags:
            found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
            return [entry["Key"] for entry in found.get("Contents", ())]
        return sorted(blob.name for blob in self.client.list_blobs(prefix=prefix))

    def get(self, name: str) -> bytes:
        """Read an object."""
        if self.flags:
            return bytes(self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read())
        return bytes(self.client.blob(name).download_as_bytes())

    def upload(self, root: Path) -> None:
        """Put every file of a directory, below the directory's name."""
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self.put(f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes())

    def published(self, output: str) -> Mapping[str, bytes]:
        """As preprocess_fixtures.published: all files of a records directory but its job's."""
        names = [name.removeprefix(f"{output}/") for name in self.names(f"{output}/")]
        return {name: self.get(f"{output}/{name}") for name in names if "/" not in name}


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """S3, as moto emulates it."""
    # It tells every request on stderr.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **S3_KEYS)
        # Its buckets are those of the process.
        requests.post(f"{endpoint}/moto-api/reset", timeout=60).raise_for_status()
        client.create_bucket(Bucket=BUCKET)
        flags = (
            f"--s3_endpoint_url={endpoint}",
            "--s3_region_name=us-east-1",
            *(f"--s3_{name.removeprefix('aws_')}={value}" for name, value in S3_KEYS.items()),
        )
        yield Bucket(f"s3://{BUCKET}", flags, client)
        client.close()
    finally:
        server.stop()


@contextmanager
def gcs_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """GCS, as gcp-storage-emulator emulates it, with Google's own variable pointing there."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        _, port = server._api._httpd.server_address
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        forbid_credentials(monkeypatch)
        client = gcs.Client(credentials=AnonymousCredentials(), project="project-1")
        yield Bucket(f"gs://{BUCKET}", (), client.bucket(BUCKET))
        client.close()
    finally:
        server.stop()


def forbid_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam looks for no credentials of Google's, which it would do for half a minute."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    anonymous = auth._ApitoolsCredentialsAdapter(AnonymousCredentials())
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", anonymous)


@dataclass
class FakeDataflow:
    """Takes job requests and runs nothing.

    Attributes:
      state: what it says every job's state is.
      status: HTTP status of its answers; above 399 it refuses.
      jobs: the requests.
    """

    state: str = "JOB_STATE_DONE"
    status: int = 200
    jobs: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Note a request; the job it makes."""
        if self.status >= 400:
            return {"error": {"code": self.status, "message": "project-1 may not do that"}}
        fields = {"projectId": "project-1", "location": "europe-west4", "type": "JOB_TYPE_BATCH"}
        if path.endswith("/jobs"):
            self.jobs.append(json.loads(body))
        return {"id": f"job-{len(self.jobs)}", "currentState": self.state, **fields}


@contextmanager
def fake_dataflow() -> Iterator[FakeDataflow]:
    """A Dataflow on loopback."""
    dataflow = FakeDataflow()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(dataflow.answer(self.path.partition("?")[0], body)).encode()
            self.send_response(dataflow.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        # By this name Beam speaks HTTP to it; by any other, gRPC.
        dataflow.endpoint = f"http://localhost:{server.server_port}"
        yield dataflow
        server.shutdown()
        thread.join()
