"""Half a minute of three times the requests that the local server can answer."""

from pathlib import Path

import pytest

from benchmarks.served import serve
from benchmarks.soak import soak
from model.encoder import EncoderSettings
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.layout import WARMUP_FILE
from tests.export_fixtures import export_unverified, photographs


@pytest.mark.slow
def test_overload_is_answered_or_refused_and_holds_no_more_memory(tmp_path: Path) -> None:
    # An encoder of full size: the client, on the same cores, must be much faster than the server.
    model_dir = export_unverified(tmp_path, EncoderSettings("random:0"))
    small = BatchingParameters(8, 1000, 1, 1, (1, 2, 4, 8))
    (model_dir.parent / BATCHING_FILE).write_text(small.to_text())
    # Its requests are larger than that.
    (model_dir / "1" / WARMUP_FILE).unlink()
    with serve(model_dir, tmp_path / "serve.log") as served:
        found = soak(served, photographs(), 30.0, small.capacity, calibration_s=5.0)
    assert sum(found.codes.values()) == found.sent
    assert set(found.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert found.codes["OK"] > small.capacity
    assert found.late_mib / found.early_mib <= 1.05
