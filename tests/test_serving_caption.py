"""`captionbeam caption`: each image a caption or a named failure, whatever its neighbours."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import captionbeam
from model.errors import ItemFailure
from model.image_bytes import canonicalise
from pipelines.fetch_settings import FetchSettings
from pipelines.image_files import read_image_file
from serving import caption
from serving.client import connect
from tests.replica_fixtures import Replica, make_certificate, running
from tests.serving_fixtures import CELLS, PLACES, running_server, save_tiny_model, tiny_caption


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "captioner", version=4)


def write_image(path: Path, colour: tuple[int, int, int], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), colour).save(path, **options)
    return str(path)


def expected(path: str) -> str:
    """The caption of the canonical bytes: what `bulk` and `evaluate` would send."""
    return tiny_caption(canonicalise(Path(path).read_bytes()).data)


def test_captions_through_the_model_and_through_a_server(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        write_image(tmp_path / "red.png", (255, 0, 0)),
        write_image(tmp_path / "green.bmp", (0, 255, 0)),
    ]
    wanted = [f"{path}: {expected(path)}" for path in images]
    assert captionbeam.main(["caption", *images, f"--model={model_dir}"]) == 0
    assert capsys.readouterr().out.splitlines() == wanted
    with running_server(model_dir, name="other") as server:
        arguments = ["caption", *images, f"--server={server.address}", "--model_name=other"]
        assert captionbeam.main(arguments) == 0
        assert capsys.readouterr().out.splitlines() == wanted
        # The default name is not this server's.
        assert captionbeam.main(arguments[:-1]) == 2
        assert "Latest(captioner)" in capsys.readouterr().err


@pytest.fixture
def mixed(tmp_path: Path) -> list[str]:
    """A good image between failures of every kind that needs no network."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "folder.jpg").mkdir()
    cut = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(cut, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(cut.getvalue()[:400])
    names = ("missing.jpg", "empty.jpg", "text.jpg", "good.png", "folder.jpg", "cut.jpg")
    write_image(tmp_path / "good.png", (0, 0, 255))
    return [str(tmp_path / name) for name in names]


def test_failures_are_named_and_the_others_captioned(
    mixed: list[str], model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captionbeam.main(["caption", *mixed, f"--model={model_dir}"]) == 1
    printed = capsys.readouterr()
    good = mixed[3]
    assert printed.out.splitlines() == [f"{good}: {expected(good)}"]
    reasons = ("missing_file", "empty", "not_an_image", "unreadable", "truncated")
    failed = [path for path in mixed if path != good]
    lines = printed.err.splitlines()
    assert len(lines) == len(failed)
    for line, path, reason in zip(lines, failed, reasons, strict=True):
        assert line.startswith(f"{path}: failed ({reason}: ")


def test_files_fail_in_the_words_of_the_pipelines(tmp_path: Path, model_dir: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    paths = [str(tmp_path / name) for name in ("pipe.jpg", "folder.jpg", "gone.jpg")]
    with (
        connect(model=str(model_dir), server=None) as client,
        caption._Reader(FetchSettings()) as read,
    ):
        rows = list(caption.caption_each(paths, client, read))
    for path, row in zip(paths, rows, strict=True):
        with pytest.raises(ItemFailure) as caught:
            read_image_file(path)
        failure = caught.value
        assert row == {"key": path, "reason": failure.reason, "message": failure.message}
    assert rows[0]["message"] == "a pipe, expected a file"


COMMANDS = {
    "caption": ["caption", "x.jpg"],
    "bulk": ["bulk", "--input=photos", "--output=captions"],
    "doctor": ["doctor"],
}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("model_name", "other"),
        ("version_label", "stable"),
        ("wait_s", "9.0"),
        ("tls_ca", "ca.pem"),
        ("tls_name", "captions.example"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_for_a_server_without_one_is_refused(
    command: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [] if command == "doctor" else ["--model=m"]
    assert captionbeam.main([*COMMANDS[command], *here, f"--{flag}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"captionbeam {command}: --{flag} {value}: without --server, which ")
    assert line.endswith("; leave it out")


@pytest.mark.parametrize(
    ("command", "verbosity"), [*((command, "NONE") for command in COMMANDS), ("serve", None)]
)
def test_what_grpc_says_is_hidden_from_clients_alone(
    command: str, verbosity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that it is put back.
    monkeypatch.setenv("GRPC_VERBOSITY", "")
    monkeypatch.delenv("GRPC_VERBOSITY")
    with pytest.raises(SystemExit):
        captionbeam.main([command, "--help"])
    assert os.environ.get("GRPC_VERBOSITY") == verbosity


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_cannot_be_asked_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "a:1,b": ("--server a:1,b: ", []),
        "a:1": ("--wait_s 0: ", ["--wait_s=0"]),
        "b:1": ("--tls_name x: ", ["--tls_name=x"]),
        "a:1,b:1": ("--server a:1,b:1: 2 hosts with --tls_ca", ["--tls_ca=ca.pem"]),
    }
    for server, (message, flags) in refused.items():
        assert captionbeam.main([*COMMANDS[command], f"--server={server}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"captionbeam {command}: {message}")


def test_captions_over_tls_by_a_label_of_replicas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = make_certificate(tmp_path / "ca.pem", ["captions.example"], [])
    replicas = [Replica(tag, version=4, tls=certificate) for tag in ("a", "b")]
    image = write_image(tmp_path / "red.png", (255, 0, 0))
    for replica in replicas:
        replica.captions_are_sizes = True
    flags = ["--tls_ca", str(certificate.file), "--tls_name=captions.example", "--wait_s=60"]
    with running(*replicas) as server:
        arguments = ["caption", image, f"--server={server}", "--version_label=stable", *flags]
        assert captionbeam.main([*arguments, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    size = len(canonicalise(Path(image).read_bytes()).data)
    assert row["caption"] in (f"a: {size}", f"b: {size}")
    assert row["model_version"] == 4
    assert {label for replica in replicas for label in replica.labels} == {"stable"}


def test_json_has_a_row_for_each(
    mixed: list[str], model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captionbeam.main(["caption", *mixed, f"--model={model_dir}", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["key"] for row in rows] == mixed
    canonical = canonicalise(Path(mixed[3]).read_bytes())
    assert rows[3] == {
        "key": mixed[3],
        "caption": tiny_caption(canonical.data),
        "log_prob": -len(canonical.data) / 4,
        "width": 24,
        "height": 16,
        "model": "captioner",
        "model_version": 4,
    }
    for row in rows[:3] + rows[4:]:
        assert row.keys() == {"key", "reason", "message"}
        assert row["message"]


def test_an_image_that_the_model_refuses_fails_alone(
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import model.image_bytes

    def to_bad(data: bytes) -> Any:
        found = canonicalise(data)
        return found if data == Path(good).read_bytes() else type(found)(b"bad", 24, 16)

    bad, good = (write_image(tmp_path / f"{n}.png", (n, 0, 0)) for n in (1, 2))
    monkeypatch.setattr(model.image_bytes, "canonicalise", to_bad)
    assert captionbeam.main(["caption", bad, good, f"--model={model_dir}"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{bad}: failed (model_error: assertion failed")
    assert printed.out == f"{good}: {expected(good)}\n"


def test_explain_draws_each_image_under_its_own_name(
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[tuple[np.ndarray, list[str], np.ndarray, np.ndarray, Path]] = []

    def record(
        image: np.ndarray,
        words: Sequence[str],
        attention: np.ndarray,
        places: np.ndarray,
        path: Path,
    ) -> None:
        drawn.append((image, list(words), attention, places, path))

    monkeypatch.setattr("model.figures.draw_attention", record)
    images = [
        write_image(tmp_path / "a" / "x.png", (255, 0, 0)),
        write_image(tmp_path / "b" / "x.png", (0, 255, 0)),
    ]
    output = tmp_path / "drawn" / "here"
    arguments = ["caption", *images, f"--model={model_dir}", f"--explain={output}"]
    assert captionbeam.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [f"{p}: {expected(p)}" for p in images]
    assert [path for *_, path in drawn] == [output / "x.png", output / "x-2.png"]
    for (pixels, words, attention, places, _), path, colour in zip(
        drawn, images, [(255, 0, 0), (0, 255, 0)], strict=True
    ):
        assert pixels.shape == (16, 24, 3)
        assert pixels.dtype == np.uint8
        assert tuple(pixels[0, 0]) == colour
        assert words == ["size", str(len(canonicalise(Path(path).read_bytes()).data))]
        assert attention.shape == (2, CELLS)
        np.testing.assert_allclose(places, PLACES)


def test_explain_into_a_file_is_refused(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "x.png", (1, 2, 3))
    assert captionbeam.main(["caption", image, f"--model={model_dir}", f"--explain={image}"]) == 2
    assert f"--explain {image}: " in capsys.readouterr().err


class FakeFetcher:
    """Stands for pipelines.fetch.Fetcher: records how it is made and used."""

    made: list["FakeFetcher"]

    def __init__(self, settings: FetchSettings) -> None:
        self.settings = settings
        self.fetched: list[str] = []
        self.closed = False
        self.made.append(self)

    def __enter__(self) -> "FakeFetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        output = io.BytesIO()
        Image.new("RGB", (9, 9), (7, 7, 7)).save(output, "PNG")
        return output.getvalue()


@pytest.fixture
def fetchers(monkeypatch: pytest.MonkeyPatch) -> list[FakeFetcher]:
    FakeFetcher.made = []
    monkeypatch.setattr("pipelines.fetch.Fetcher", FakeFetcher)
    return FakeFetcher.made


def test_urls_go_through_one_guarded_fetcher(
    model_dir: Path, fetchers: list[FakeFetcher], capsys: pytest.CaptureFixture[str]
) -> None:
    urls = ["http://127.0.0.1/a.png", "HTTPS://127.0.0.1/b.png"]
    flags = ["--allow_private", "127.0.0.0/8", "10.0.0.0/8", "--ignore_robots", "--host_rate=3"]
    assert captionbeam.main(["caption", *urls, f"--model={model_dir}", *flags]) == 0
    (fetcher,) = fetchers
    assert fetcher.settings == FetchSettings(
        ("127.0.0.0/8", "10.0.0.0/8"), ignore_robots=True, host_rate=3
    )
    assert fetcher.fetched == urls
    assert fetcher.closed
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_files_need_no_fetcher(
    tmp_path: Path, model_dir: Path, fetchers: list[FakeFetcher]
) -> None:
    image = write_image(tmp_path / "x.png", (1, 2, 3))
    assert captionbeam.main(["caption", image, f"--model={model_dir}"]) == 0
    assert fetchers == []


def test_a_private_address_is_refused_unless_named(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captionbeam.main(["caption", "http://127.0.0.1:9/x.png", f"--model={model_dir}"]) == 1
    assert "failed (refused_address: " in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_refused_unless_asked_for(
    model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "other.test")
    assert captionbeam.main(["caption", "http://site.test/x.png", f"--model={model_dir}"]) == 2
    assert "--allow_proxy" in capsys.readouterr().err


def test_model_or_server_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--model=a", "--server=b:1"]):
        with pytest.raises(SystemExit) as caught:
            captionbeam.main(["caption", "x.jpg", *arguments])
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
