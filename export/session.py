"""What TensorFlow's C++ loader makes of a version, in a process that has none of our code."""

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export import session_check
from export.samples import NO_IMAGE, Sample
from export.saved_model import WARMUP_REQUESTS
from export.server_files import BATCH_SIZES
from model.errors import CheckFailed
from serving import contract
from serving.layout import WARMUP_FILE

_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Session:
    """What that process took to load the version and to answer.

    Attributes:
      load_s: seconds of the load.
      peak_mib: its peak memory in MiB, TensorFlow's own included.
      answer_bytes: of the largest answer, an explanation of as many images as the server puts in
        a batch.
    """

    load_s: float
    peak_mib: float
    answer_bytes: int


def check_session(path: Path, samples: Sequence[Sample]) -> Session:
    """The loader takes the version, its warm-up, the samples and what is no image.

    Raises:
      CheckFailed: saying which it does not.
    """
    known = [*samples, NO_IMAGE]
    asked = {
        "path": str(path),
        "warmup": str(path / WARMUP_FILE),
        "signature": contract.SERVING_DEFAULT,
        "explain": contract.EXPLAIN,
        "input": contract.IMAGE_BYTES,
        "caption": contract.CAPTION,
        "status": contract.STATUS,
        "images": [base64.b64encode(sample.image).decode() for sample in known],
        "largest": BATCH_SIZES[-1],
    }
    # Isolated: neither this folder nor the environment adds anything to import.
    command = [sys.executable, "-I", str(Path(session_check.__file__))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"export: a session did not load it and answer within {_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"export: a session cannot load it or answer ({last})")
    found = json.loads(done.stdout.splitlines()[-1])
    said = list(zip(found["captions"], found["statuses"], strict=True))
    expected = [(sample.caption, sample.status) for sample in known]
    if said != expected:
        raise CheckFailed(f"export: a session says of the samples {said}, expected {expected}")
    requests = [tuple(request) for request in found["requests"]]
    if requests != list(WARMUP_REQUESTS):
        raise CheckFailed(
            f"export: warm-up requests {_listed(requests)}, expected {_listed(WARMUP_REQUESTS)}"
        )
    return Session(found["load_s"], found["peak_mib"], found["answer_bytes"])


def _listed(requests: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{signature} of {rows}" for signature, rows in requests) or "none"
