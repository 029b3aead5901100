from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model import runtimes
from model.encoder import Encoder, EncoderSettings
from model.errors import InvalidInput
from model.image_bytes import canonicalise
from model.preprocessing import prepare

pytest.importorskip("openvino", reason="needs captionbeam[openvino]")

SETTINGS = EncoderSettings("random:0", 64, 2)
IMAGES = np.random.default_rng(0).normal(0, 65, (19, 64, 64, 3)).astype(np.float32)
COCO80 = Path(__file__).parents[1].parent / "shared" / "data" / "coco80" / "images"


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.asarray(Encoder(SETTINGS)(IMAGES))


@pytest.fixture(scope="module")
def openvino() -> Encoder:
    return Encoder(EncoderSettings("random:0", 64, 2, runtime="openvino"))


def assert_close(got: np.ndarray, wanted: np.ndarray) -> None:
    """Within 1e-3 of the mean magnitude, everywhere."""
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).mean()


def test_openvino_makes_the_same_grids(openvino: Encoder, expected: np.ndarray) -> None:
    """Two whole batches and a short one."""
    assert len(IMAGES) % openvino.batch_size
    assert_close(np.asarray(openvino(IMAGES)), expected)
    assert openvino.digest == Encoder(SETTINGS).digest


def test_openvino_answers_several_threads_at_once(openvino: Encoder, expected: np.ndarray) -> None:
    """With requests of their own: a shared one would mix the images of two threads."""
    order = [np.random.default_rng(seed).permutation(8) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda rows: np.asarray(openvino(IMAGES[rows])), order))
    for rows, answer in zip(order, answers, strict=True):
        assert_close(answer, expected[rows])


def test_a_grid_of_openvino_does_not_depend_on_its_batch(openvino: Encoder) -> None:
    """Nor on its place there, to the last bit: a shard's last batches are of any size."""
    together = np.asarray(openvino(IMAGES))
    for size in range(1, openvino.batch_size + 1):
        np.testing.assert_array_equal(
            np.asarray(openvino(IMAGES[3 : 3 + size])), together[3 : 3 + size]
        )


@pytest.mark.slow
@pytest.mark.skipif(not COCO80.is_dir(), reason=f"no photographs in {COCO80}")
def test_openvino_makes_the_same_grids_of_photographs() -> None:
    photographs = sorted(COCO80.iterdir())[:8]
    images = np.stack(
        [
            prepare(tf.constant(canonicalise(path.read_bytes()).data), 224).image.numpy()
            for path in photographs
        ]
    )
    one, other = (
        np.asarray(Encoder(EncoderSettings("random:0", runtime=name))(images))
        for name in ("tensorflow", "openvino")
    )
    assert_close(other, one)


@pytest.mark.slow
def test_mixed_precision_rounds_no_more_than_float16_does(expected: np.ndarray) -> None:
    mixed = Encoder(EncoderSettings("random:0", 64, 2, precision="mixed_float16"))
    grids = np.asarray(mixed(IMAGES))
    assert grids.dtype == np.float32
    assert {layer.compute_dtype for layer in mixed.network.layers} == {"float16"}
    assert mixed.digest == Encoder(SETTINGS).digest
    error = np.abs(grids - expected).max() / np.abs(expected).mean()
    # Eleven bits of mantissa through fifty layers; zero would mean float32 after all.
    assert 1e-5 < error < 2e-2
    assert np.asarray(Encoder(SETTINGS)(IMAGES)).dtype == np.float32


@pytest.mark.parametrize(
    ("asked", "gpu", "installed", "given"),
    [
        ({}, False, True, ("tensorflow", "float32")),
        ({}, True, True, ("tensorflow", "mixed_float16")),
        ({"runtime": "auto"}, False, True, ("openvino", "float32")),
        ({"runtime": "auto"}, False, False, ("tensorflow", "float32")),
        ({"runtime": "auto"}, True, True, ("tensorflow", "mixed_float16")),
        ({"runtime": "openvino"}, True, True, ("openvino", "float32")),
        ({"precision": "float32"}, True, True, ("tensorflow", "float32")),
    ],
)
def test_auto_takes_what_the_machine_has(
    asked: dict[str, str],
    gpu: bool,
    installed: bool,
    given: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtimes, "has_gpu", lambda: gpu)
    if not installed:
        monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _: None)
    assert tuple(runtimes.resolve(**asked).values()) == given


def test_openvino_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput) as caught:
        runtimes.resolve("openvino")
    assert str(caught.value) == (
        "encoder_runtime openvino, but it is not installed; install captionbeam[openvino], or "
        "take --encoder_runtime tensorflow"
    )


def test_an_encoder_is_refused_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shards are made, too: a repair must not remove anything first."""
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match="install captionbeam"):
        Encoder(EncoderSettings("random:0", 64, 2, runtime="openvino"))
