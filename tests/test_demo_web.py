"""The demo's own web server."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from demo.web import serve_directory


def test_serves_a_directory_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    with serve_directory(tmp_path / "pictures") as url:
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}/a.png") as answer:
            assert answer.read() == b"picture"
        for path in ("b.png", "../secret"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{url}/{path}")
            assert refused.value.code == 404
            refused.value.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/a.png")
    assert capfd.readouterr().err == ""
