"""models.config: an export moves canary, a person moves stable, and nobody's entry is lost."""

import re
from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import model_server_config_pb2

from export.models_config import CANARY, STABLE, named, read, updated
from model.errors import InvalidInput
from serving.labels import MODELS_CONFIG


def parse(text: str) -> model_server_config_pb2.ModelServerConfig:
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text, config)
    return config


def entry_of(text: str, name: str = "captioner") -> model_server_config_pb2.ModelConfig:
    (entry,) = (one for one in parse(text).model_config_list.config if one.name == name)
    return entry


def export(text: str, version: int, *older: int) -> str:
    return updated(parse(text), "captioner", version, older)


def labels(text: str) -> dict[str, int]:
    return dict(entry_of(text).version_labels)


def test_the_first_version_is_stable_and_canary() -> None:
    entry = entry_of(export("", 1))
    assert (entry.name, entry.base_path) == ("captioner", "/models/captioner")
    assert entry.model_platform == "tensorflow"
    assert dict(entry.version_labels) == {STABLE: 1, CANARY: 1}
    # Every version is loaded, so that a label can be moved to any.
    assert entry.model_version_policy.WhichOneof("policy_choice") == "all"


def test_a_later_version_is_canary_and_stable_stays() -> None:
    second = export(export("", 1), 2, 1)
    assert labels(second) == {STABLE: 1, CANARY: 2}
    third = export(second, 3, 1, 2)
    assert labels(third) == {STABLE: 1, CANARY: 3}
    promoted = third.replace('key: "stable"\n      value: 1', 'key: "stable"\n      value: 3')
    assert promoted != third
    assert labels(export(promoted, 4, 1, 2, 3)) == {STABLE: 3, CANARY: 4}


def test_where_stable_was_deleted_the_newest_older_version_is() -> None:
    text = export(export("", 1), 2, 1)
    assert labels(export(text, 4, 2, 3)) == {STABLE: 3, CANARY: 4}
    assert labels(export(text, 4)) == {STABLE: 4, CANARY: 4}


def test_an_entry_without_labels_keeps_serving_what_it_served() -> None:
    """As exports wrote it before there were labels: the newest version was served."""
    text = 'model_config_list { config { name: "captioner" base_path: "/models/captioner" } }'
    assert labels(export(text, 3, 1, 2)) == {STABLE: 2, CANARY: 3}


BY_HAND = """
model_config_list {
  config {
    name: "detector"
    base_path: "/elsewhere/detector"
    model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } }
    logging_config { sampling_config { sampling_rate: 0.5 } }
    version_labels { key: "blue" value: 9 }
  }
  config {
    name: "captioner"
    base_path: "/mnt/captioner"
    model_version_policy { specific { versions: 1 versions: 3 versions: 8 } }
    version_labels { key: "stable" value: 3 }
    version_labels { key: "old" value: 1 }
    version_labels { key: "gone" value: 2 }
  }
}
"""


def test_what_was_set_by_hand_stays() -> None:
    text = export(BY_HAND, 9, 1, 3)
    assert entry_of(text, "detector") == entry_of(BY_HAND, "detector")
    entry = entry_of(text)
    assert entry.base_path == "/mnt/captioner"
    assert dict(entry.version_labels) == {STABLE: 3, CANARY: 9, "old": 1}
    # What has a label is loaded, what is not there is not asked for.
    assert list(entry.model_version_policy.specific.versions) == [1, 3, 9]
    assert [one.name for one in parse(text).model_config_list.config] == ["detector", "captioner"]


def test_what_the_file_names_is_named_whether_it_is_there_or_not() -> None:
    assert named(parse(BY_HAND), "captioner") == {1, 2, 3, 8}
    assert named(parse(BY_HAND), "translator") == set()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model_config_list {", "not a ModelServerConfig"),
        (b"models: 1", "not a ModelServerConfig"),
        (b"\xff\xfe", "cannot be read"),
        (b'custom_model_config { type_url: "x" }', "custom_model_config"),
    ],
)
def test_a_file_that_cannot_be_kept_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / MODELS_CONFIG).write_bytes(content)
    with pytest.raises(InvalidInput, match=f"{re.escape(str(tmp_path / MODELS_CONFIG))}: .*{said}"):
        read(tmp_path)


def test_no_file_is_no_models(tmp_path: Path) -> None:
    assert not read(tmp_path).model_config_list.config
