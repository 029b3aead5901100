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
    return updated(parse(text), "captioner", version, older)[0]


def notes(text: str, version: int, *older: int) -> list[str]:
    return updated(parse(text), "captioner", version, older)[1]


def captioner(*fields: str, base_path: str = "/models/captioner", **labels: int) -> str:
    labelled = (f'version_labels {{ key: "{key}" value: {labels[key]} }}' for key in labels)
    given = " ".join(fields)
    return (
        f'model_config_list {{ config {{ name: "captioner" base_path: "{base_path}" '
        f"{given} {' '.join(labelled)} }} }}"
    )


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
    assert labels(export(captioner(), 3, 1, 2)) == {STABLE: 2, CANARY: 3}
    assert notes(captioner(), 3, 1, 2) == []


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


SPECIFIC = "model_version_policy { specific { versions: 1 versions: 2 versions: 3 } }"
ONCE_AVAILABLE = (
    "models.config: since it lists specific versions, set canary to 4 once 4 is AVAILABLE, "
    "or use `all {}`"
)


def test_canary_stays_where_a_server_could_not_follow() -> None:
    """It updates labels first, and would refuse for ever the file that lets it load the version."""
    text = captioner(SPECIFIC, stable=1, canary=3)
    exported = export(text, 4, 1, 2, 3)
    assert labels(exported) == {STABLE: 1, CANARY: 3}
    assert list(entry_of(exported).model_version_policy.specific.versions) == [1, 2, 3, 4]
    assert notes(text, 4, 1, 2, 3) == [ONCE_AVAILABLE]
    # A server that knows of no canary takes one whose version is not loaded yet.
    assert labels(export(captioner(SPECIFIC, stable=1), 4, 1, 2, 3)) == {STABLE: 1, CANARY: 4}
    assert notes(captioner(SPECIFIC, stable=1), 4, 1, 2, 3) == []


def test_labels_of_deleted_versions_move_to_what_is_loaded_alone() -> None:
    text = captioner(SPECIFIC, stable=2, canary=3, old=3)
    exported = export(text, 8, 1, 7)
    assert labels(exported) == {STABLE: 1}
    assert list(entry_of(exported).model_version_policy.specific.versions) == [1, 8]
    assert notes(text, 8, 1, 7) == [
        "models.config: canary named 3, which was deleted: the label is removed",
        "models.config: old named 3, which was deleted: the label is removed",
        "models.config: stable named 2, which was deleted: the label names 1 now",
        ONCE_AVAILABLE.replace("4", "8"),
    ]
    assert labels(export(text, 8, 7)) == {}
    assert labels(export(text, 8)) == {}


def test_a_label_outside_the_latest_versions_is_said() -> None:
    latest = "model_version_policy { latest { num_versions: 2 } }"
    text = captioner(latest, stable=1, canary=3)
    assert labels(export(text, 4, 1, 2, 3)) == {STABLE: 1, CANARY: 4}
    assert notes(text, 4, 1, 2, 3) == [
        "models.config: stable names 1, which is not among the latest 2 and is not loaded: "
        "raise num_versions, or use `all {}`"
    ]
    assert notes(captioner(latest, stable=3, canary=3), 4, 1, 2, 3) == []
    # 0, that is unset, is 1: nothing else is loaded that could be stable.
    text = captioner("model_version_policy { latest {} }", canary=3)
    assert labels(export(text, 4, 1, 2, 3)) == {CANARY: 4}
    assert notes(text, 4, 1, 2, 3) == [
        "models.config: no stable yet, since no older version is loaded: add it by hand"
    ]
    assert labels(export(text.replace("canary", "stable"), 4, 1, 2)) == {CANARY: 4}


@pytest.mark.parametrize("base_path", ["/models/another", "", "/models/captioner/3"])
def test_a_model_that_is_served_from_elsewhere_is_left_alone(base_path: str) -> None:
    text = captioner(base_path=base_path, stable=7)
    assert entry_of(export(text, 8, 1, 2)) == entry_of(text)
    (note,) = notes(text, 8, 1, 2)
    assert note.startswith(f"models.config: captioner is served from {base_path!r}, which is not ")


@pytest.mark.parametrize("base_path", ["/models/captioner/", "gs://bucket/captioner"])
def test_a_model_that_is_mounted_elsewhere_is_labelled(base_path: str) -> None:
    assert labels(export(captioner(base_path=base_path), 2, 1)) == {STABLE: 1, CANARY: 2}


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
