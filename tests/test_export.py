"""Export: what is published answers like the pieces that trained and evaluated the model."""

import dataclasses
import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from export import saved_model
from export.graph_checks import check_batches
from export.module import look_at
from export.samples import NO_IMAGE, Sample, sample_images
from export.server_files import BATCH_SIZES
from export.verify import verify
from model import dataset
from model.checkpoints import load_encoder
from model.decoding import search_captions
from model.encoder import EncoderSettings
from model.errors import CheckFailed, RecordsMismatch
from model.image_bytes import canonicalise
from model.places import places as model_places
from model.preprocessing import KEEP, SQUASH, prepare
from model.records import Manifest
from model.vocabulary import Vocabulary
from pipelines.records_job import preprocess
from serving import contract
from serving.contract import Status
from serving.labels import MODELS_CONFIG
from serving.layout import WARMUP_FILE
from tests.export_fixtures import Exported, export, photographs
from tests.preprocess_fixtures import jpeg, write_split
from tests.preprocess_fixtures import settings as world_settings


@pytest.fixture(scope="module", name="exported")
def fixture_exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


def test_published_signatures_are_the_contract(exported: Exported) -> None:
    images = photographs()[:2]
    for signature, outputs in contract.OUTPUTS.items():
        answer = exported.call(signature, images)
        assert set(answer) == set(outputs)
        sizes = {"N": 2, "T": 6, "K": 3, "P": 4, "G": 2, "2": 2}
        for name, tensor in outputs.items():
            assert answer[name].shape == tuple(sizes[dim] for dim in tensor.dims)
            expected = np.object_ if tensor.dtype == "string" else np.dtype(tensor.dtype)
            assert answer[name].dtype == expected


def test_the_graph_holds_no_weights(exported: Exported) -> None:
    """They are variables: TensorFlow copies a graph many times over, with its constants."""
    graph, variables = (
        sum(file.stat().st_size for file in exported.version_dir.glob(pattern))
        for pattern in ("saved_model.pb", "variables/*")
    )
    weights = [*exported.module.weights, *exported.module.encoder_weights]
    held = sum(variable.shape.num_elements() * variable.dtype.size for variable in weights)
    assert held > 80 * 2**20
    assert held < variables < held + 2**20
    assert graph < 8 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(64, 2, SQUASH), (100, 3, KEEP)])
def test_the_exported_graph_sees_the_grids_that_records_hold(
    tmp_path: Path, settings: tuple[int, int, str]
) -> None:
    """In one batch, with pictures of several shapes: a wide one, a tall one, a square."""
    write_split(tmp_path, "train", 3)
    sizes = [(300, 90), (90, 300), (120, 120)]
    pictures = [jpeg(number, size) for number, size in enumerate(sizes)]
    for path, data in zip(sorted((tmp_path / "train").iterdir()), pictures, strict=True):
        path.write_bytes(data)
    wanted = EncoderSettings("random:0", *settings)
    preprocess(world_settings(tmp_path, "out", encoder=wanted), ())
    manifest = Manifest.load(tmp_path / "out")
    parsed = next(iter(dataset.images(dataset.Split(tmp_path / "out", manifest, "train"), 3)))

    encoder = load_encoder(manifest)
    graph = tf.function(lambda images: look_at(images, encoder))
    seen, places, status = graph(tf.constant(pictures))
    np.testing.assert_array_equal(status, 0)
    seen = seen.numpy()
    for picture, looked_at in zip(pictures, places.numpy(), strict=True):
        with Image.open(io.BytesIO(picture)) as image:
            expected = model_places(image.size[::-1], manifest)
        np.testing.assert_allclose(looked_at, expected, rtol=1e-5)
    order = np.argsort(parsed["image_id"].numpy())
    stored = parsed["grid"].numpy()[order]
    assert stored.shape == (3, settings[1] ** 2, 2048)
    np.testing.assert_allclose(seen, stored, rtol=2e-3, atol=2e-4)
    assert np.abs(stored[0] - stored[1]).mean() > 0.05 * stored.mean()


def test_captions_are_those_of_the_pieces(exported: Exported) -> None:
    images = photographs()
    answer = exported.call(contract.SERVING_DEFAULT, images)
    assert len(set(answer[contract.CAPTION])) > 1
    trained = exported.trained
    for row, image in enumerate(images):
        grid = exported.encoder(prepare(image, 64).image[tf.newaxis])
        found = search_captions(
            trained.captioner, trained.vocabulary, trained.config.search, tf.cast(grid, tf.float16)
        )
        tokens = found.tokens[0, 0].numpy()
        assert answer[contract.CAPTION][row].decode() == trained.vocabulary.decode(tokens)
        np.testing.assert_array_equal(answer[contract.TOKEN_IDS][row], tokens)
        length = answer[contract.LENGTH][row]
        assert length == (tokens != 0).sum() == len(set(tokens[:length]))
        assert answer[contract.LOG_PROB][row] == pytest.approx(
            float(found.log_prob[0, 0]), rel=2e-3, abs=1e-3
        )


def test_a_caption_does_not_depend_on_its_batch(exported: Exported) -> None:
    images = photographs()
    together = exported.call(contract.SERVING_DEFAULT, images)[contract.CAPTION]
    backwards = exported.call(contract.SERVING_DEFAULT, images[::-1])[contract.CAPTION]
    np.testing.assert_array_equal(together, backwards[::-1])
    alone = exported.call(contract.SERVING_DEFAULT, images[2:3])[contract.CAPTION]
    assert alone[0] == together[2]


NOTHING: dict[str, object] = {
    contract.CAPTION: b"",
    contract.LOG_PROB: -np.inf,
    contract.TOKEN_IDS: 0,
    contract.LENGTH: 0,
    contract.WORDS: b"",
    contract.ATTENTION: 0.0,
    contract.PLACES: 0.0,
    contract.CAPTIONS: b"",
    contract.LOG_PROBS: -np.inf,
}


@pytest.mark.parametrize("place", [0, 3, 7])
def test_an_image_that_cannot_be_read_fails_no_other(exported: Exported, place: int) -> None:
    good = photographs()
    images = [*good[:place], good[0][:500], *good[place:]]
    for signature in contract.OUTPUTS:
        expected = exported.call(signature, good)
        answer = exported.call(signature, images)
        status = answer.pop(contract.STATUS)
        assert status.tolist() == [Status.DECODE if row == place else 0 for row in range(8)]
        for name, values in answer.items():
            assert np.all(values[place] == NOTHING[name]), name
            others = np.delete(values, place, axis=0)
            if values.dtype == np.float32:
                np.testing.assert_allclose(others, expected[name], rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(others, expected[name])


def test_nothing_that_can_be_read_gives_no_caption(exported: Exported) -> None:
    answer = exported.call(contract.SERVING_DEFAULT, [b"", b"<html>"])
    assert answer[contract.STATUS].tolist() == [Status.NOT_AN_IMAGE] * 2
    assert answer[contract.CAPTION].tolist() == [b"", b""]


def test_a_photograph_of_a_phone_gets_the_upright_caption(exported: Exported) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = []
    for picture in photographs():
        file = io.BytesIO()
        Image.open(io.BytesIO(picture)).save(file, "JPEG", exif=exif, quality=95)
        turned.append(file.getvalue())
    found = exported.call(contract.SERVING_DEFAULT, turned)
    upright = [canonicalise(picture).data for picture in turned]
    assert all(Image.open(io.BytesIO(picture)).size == (70, 90) for picture in upright)
    expected = exported.call(contract.SERVING_DEFAULT, upright)
    np.testing.assert_array_equal(found[contract.CAPTION], expected[contract.CAPTION])
    np.testing.assert_allclose(found[contract.LOG_PROB], expected[contract.LOG_PROB], rtol=1e-3)
    lying = exported.call(contract.SERVING_DEFAULT, photographs())
    assert not np.array_equal(lying[contract.CAPTION], found[contract.CAPTION])


def test_explain_and_nbest_agree_with_the_default(exported: Exported) -> None:
    images = photographs()
    best = exported.call(contract.SERVING_DEFAULT, images)
    explained = exported.call(contract.EXPLAIN, images)
    np.testing.assert_array_equal(explained[contract.CAPTION], best[contract.CAPTION])
    for row, length in enumerate(best[contract.LENGTH]):
        words = [word.decode() for word in explained[contract.WORDS][row]]
        ids = best[contract.TOKEN_IDS][row]
        assert words[:length] == [exported.trained.vocabulary.words[i] for i in ids[:length]]
        assert not any(words[length:])
        sums = explained[contract.ATTENTION][row].sum(axis=-1)
        np.testing.assert_allclose(sums[:length], 1.0, rtol=1e-5)
        np.testing.assert_array_equal(sums[length:], 0.0)
    ranked = exported.call(contract.NBEST, images)
    np.testing.assert_array_equal(ranked[contract.CAPTIONS][:, 0], best[contract.CAPTION])
    np.testing.assert_allclose(ranked[contract.LOG_PROBS][:, 0], best[contract.LOG_PROB], rtol=1e-5)
    assert (np.diff(ranked[contract.LOG_PROBS], axis=1) <= 0).all()


def test_text_is_detokenised_as_the_vocabulary_does(exported: Exported) -> None:
    vocabulary = exported.trained.vocabulary
    ids = vocabulary.encode("the man's hat in a house") + [vocabulary.pad_id] * 3
    assert "'s" in {vocabulary.words[i] for i in ids}
    text = exported.module._text(tf.constant([ids]))[0].numpy().decode()
    assert text == vocabulary.decode(ids) == "the man's hat in a house"


def test_export_holds_no_python_and_all_assets(exported: Exported) -> None:
    files = {str(p.relative_to(exported.version_dir)) for p in exported.version_dir.rglob("*")}
    assert {"assets/vocabulary.json", "assets/manifest.json"} <= files
    assert (exported.version_dir / "assets/vocabulary.json").read_bytes() == (
        exported.model_dir / "vocabulary.json"
    ).read_bytes()


def test_warm_up_requests_replay(exported: Exported) -> None:
    path = exported.version_dir / WARMUP_FILE
    requests = []
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(raw)
        request = log.predict_log.request
        assert request.model_spec.name == "tiny"
        signature = request.model_spec.signature_name
        images = tf.make_ndarray(request.inputs[contract.IMAGE_BYTES]).tolist()
        answer = exported.call(signature, images)
        assert set(answer) == set(contract.OUTPUTS[signature])
        requests.append((signature, len(answer[contract.STATUS])))
    assert tuple(requests) == saved_model.WARMUP_REQUESTS
    default = [rows for signature, rows in requests if signature == contract.SERVING_DEFAULT]
    assert tuple(default) == BATCH_SIZES
    assert {signature for signature, _ in requests} == set(contract.OUTPUTS)


def test_models_config_names_exported_models_alone(exported: Exported) -> None:
    models = exported.version_dir.parents[1]
    photographs_of_a_year = models / "photos" / "2017"
    photographs_of_a_year.mkdir(parents=True)
    publish_again(exported, lambda _: None)
    assert '"photos"' not in (models / MODELS_CONFIG).read_text()


def publish_again(exported: Exported, check: Callable[[Path], None]) -> Path:
    # Traced once: that takes most of an export's time here.
    return saved_model.publish(
        exported.module, exported.model_dir, exported.version_dir.parent, check
    )


def test_each_export_is_a_new_version(exported: Exported) -> None:
    versions = [int(path.name) for path in exported.version_dir.parent.iterdir()]
    again = publish_again(exported, lambda _: None)
    assert int(again.name) == max(versions) + 1
    assert exported.version_dir.is_dir()


def test_failed_verification_publishes_nothing(exported: Exported) -> None:
    before = sorted(exported.version_dir.parent.iterdir())

    def refuse(path: Path) -> None:
        assert (path / "saved_model.pb").is_file()
        raise CheckFailed("no")

    with pytest.raises(CheckFailed):
        publish_again(exported, refuse)
    assert sorted(exported.version_dir.parent.iterdir()) == before


def test_verify_names_a_caption_that_changed(exported: Exported) -> None:
    other = list(exported.trained.vocabulary.words)
    other[4:] = other[:3:-1]
    trained = dataclasses.replace(exported.trained, vocabulary=Vocabulary(tuple(other)))
    with pytest.raises(CheckFailed, match=r"sample 0 is captioned .* after reloading"):
        verify(exported.version_dir, trained, exported.encoder)


@pytest.mark.slow
def test_verify_names_a_warm_up_that_fails(exported: Exported, tmp_path: Path) -> None:
    """In the process that has none of our code; one bad record fails the server's load."""
    path = tmp_path / "1"
    shutil.copytree(exported.version_dir, path)
    log = saved_model._warmup_log("tiny", contract.SERVING_DEFAULT, 1)
    log.predict_log.request.inputs["pixels"].CopyFrom(tf.make_tensor_proto([b""]))
    with tf.io.TFRecordWriter(str(path / WARMUP_FILE)) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(CheckFailed, match=r"a session cannot load it or answer .*pixels"):
        verify(path, exported.trained, exported.encoder)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_verify_names_a_caption_that_depends_on_its_batch(size: int) -> None:
    images = [b"one", b"two", b"three"]
    samples = [Sample(image, "caption", -float(number), 0) for number, image in enumerate(images)]

    def serve(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        known = {sample.image: sample for sample in (*samples, NO_IMAGE)}
        rows = [known[image] for image in image_bytes.numpy()]
        log_probs = tf.constant([row.log_prob for row in rows])
        if len(rows) == size:
            log_probs = tf.roll(log_probs, 1, axis=0) if size > 1 else log_probs - 0.1
        return {
            contract.CAPTION: tf.constant([row.caption for row in rows]),
            contract.LOG_PROB: log_probs,
            contract.STATUS: tf.constant([int(row.status) for row in rows]),
        }

    with pytest.raises(CheckFailed, match=f"in a batch of {size}, "):
        check_batches(serve, samples)


def test_verify_names_a_missing_asset(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "1"
    exported.module.assets = []
    tf.saved_model.save(exported.module, str(path), signatures=exported.module.signatures())
    with pytest.raises(CheckFailed, match=r"asset vocabulary\.json is missing"):
        verify(path, exported.trained, exported.encoder)


def test_verify_refuses_python_ops(exported: Exported, tmp_path: Path) -> None:
    class Bad(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            caption = tf.numpy_function(lambda x: x, [image_bytes], tf.string)
            return {contract.CAPTION: caption}

    bad = Bad()
    tf.saved_model.save(bad, str(tmp_path / "1"), signatures=bad.serve)
    with pytest.raises(CheckFailed, match=r"or that touch files: .*PyFunc"):
        verify(tmp_path / "1", exported.trained, exported.encoder)


def test_encoder_of_other_weights_is_refused(exported: Exported) -> None:
    with pytest.raises(RecordsMismatch, match="encoder weights random:1: digest"):
        load_encoder(exported.trained.manifest, "random:1")


def test_sample_images_are_canonical_and_differ() -> None:
    kinds = [Image.open(io.BytesIO(image)).format for image in sample_images()]
    assert kinds == ["JPEG", "JPEG", "PNG", "JPEG", "PNG"]
    for one, other in itertools.combinations(sample_images(), 2):
        assert one != other
