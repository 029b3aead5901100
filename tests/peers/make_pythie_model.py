"""Writes a model for pythie-serving's sklearn platform, and its models.config.

    .peers/pythie/bin/python tests/peers/make_pythie_model.py DIR NAME INPUT

It takes images as bytes [N, 1] and answers "size LENGTH crc CRC" for each, bytes [N, 1], under
pythie-serving's own output name, `predictions`. Run in its environment: what cloudpickle writes
is read by the same versions only.
"""

import json
import sys
import time
import zlib
from pathlib import Path

import cloudpickle
import numpy as np

WAIT_S = 60.0


class Captioner:
    """What the platform asks of a model: `predict`."""

    def predict(self, samples: np.ndarray) -> np.ndarray:
        """One caption an image; b"bad" fails, b"hold DIR" writes DIR/held and waits for DIR/go."""
        return np.array([[self.caption(image)] for image in samples[:, 0]])

    def caption(self, image: bytes) -> bytes:
        """A function of the image's bytes."""
        if image == b"bad":
            raise ValueError("cannot decode")
        if image.startswith(b"hold "):
            place = Path(image.removeprefix(b"hold ").decode())
            (place / "held").touch()
            deadline_s = time.monotonic() + WAIT_S
            while not (place / "go").exists() and time.monotonic() < deadline_s:
                time.sleep(0.01)
        return b"size %d crc %d" % (len(image), zlib.crc32(image))


def main(directory: str, name: str, tensor: str) -> None:
    """Writes DIR/NAME.pickled, DIR/metadata.json and DIR/models.config."""
    place = Path(directory)
    with (place / f"{name}.pickled").open("wb") as pickled:
        cloudpickle.dump(Captioner(), pickled)
    (place / "metadata.json").write_text(json.dumps({"feature_names": [tensor]}))
    (place / "models.config").write_text(
        f'model_config_list {{ config {{ name: "{name}" base_path: "{place}" '
        'model_platform: "sklearn" } }\n'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
