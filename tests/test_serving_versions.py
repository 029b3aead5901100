"""Which versions are loaded when, and what a request gets while they change."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from serving import watcher
from serving.errors import CallFailed
from serving.labels import LabelFile, read_labels
from serving.published import ModelVersion, Source
from serving.versions import State, Versions, VersionStatus, Wanted

TIMEOUT_S = 60


class FakeModel:
    """Stands for a loaded version."""

    def __init__(self, found: ModelVersion) -> None:
        self.version = found.version
        self.closed = False

    def close(self) -> None:
        self.closed = True


class World:
    """A directory of versions and what is loaded of it."""

    def __init__(self, path: Path, fixed: int | None = None) -> None:
        self.path = path
        self.labels: dict[str, int] = {}
        self.broken: set[int] = set()
        self.models: dict[int, FakeModel] = {}
        self.loads: list[int] = []
        self.log: list[str] = []
        self.while_loading: Callable[[], None] = lambda: None
        load: Any = self._load
        self.versions = Versions(
            Source(path, fixed), "tiny", load, lambda: self.labels, self.log.append
        )

    def _load(self, found: ModelVersion) -> FakeModel:
        self.loads.append(found.version)
        self.while_loading()
        if found.version in self.broken:
            raise InvalidInput(f"version {found.version} is broken")
        self.models[found.version] = FakeModel(found)
        return self.models[found.version]

    def publish(self, *versions: int) -> None:
        for version in versions:
            (self.path / str(version)).mkdir(parents=True)

    def poll(self) -> list[int]:
        """Polls; the versions that are open now."""
        self.versions.poll()
        return sorted(version for version, model in self.models.items() if not model.closed)

    def answers(self, **wanted: Any) -> int:
        with self.versions.using(Wanted(**wanted)) as model:
            fake: Any = model
            return int(fake.version)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "tiny")


def test_the_highest_version_answers_and_the_one_before_is_closed(world: World) -> None:
    world.publish(9, 10)
    assert world.poll() == [10]
    assert world.answers() == world.answers(version=10) == world.versions.latest == 10
    world.publish(11)
    assert world.poll() == [11]
    assert world.answers() == 11
    assert world.loads == [10, 11]
    assert world.versions.status() == [
        VersionStatus(11, State.AVAILABLE),
        VersionStatus(10, State.END),
    ]
    for wanted, asked in (({"version": 10}, "Specific(tiny, 10)"), ({"version": 9}, "Specific")):
        with pytest.raises(CallFailed, match="NOT_FOUND: Servable not found for request") as caught:
            world.answers(**wanted)
        assert asked in caught.value.message


def test_nothing_is_loaded_twice_and_other_names_are_no_versions(world: World) -> None:
    world.publish(3)
    (world.path / ".unpublished-4").mkdir()
    (world.path / "5.partial").mkdir()
    assert world.poll() == world.poll() == [3]
    assert world.loads == [3]


def test_before_anything_is_loaded_requests_are_not_found(world: World) -> None:
    world.publish(1)
    seen: list[Any] = []

    def ask() -> None:
        seen.extend(world.versions.status())
        with pytest.raises(CallFailed, match=r"NOT_FOUND: .*Latest\(tiny\)"):
            world.answers()

    world.while_loading = ask
    assert world.poll() == [1]
    assert seen == [VersionStatus(1, State.LOADING)]


def test_the_old_version_answers_while_the_new_one_loads(world: World) -> None:
    world.publish(1)
    world.poll()
    world.publish(2)
    seen: list[int] = []
    world.while_loading = lambda: seen.append(world.answers())
    assert world.poll() == [2]
    assert seen == [1]


def test_a_version_stays_until_its_last_call_has_ended(world: World) -> None:
    world.publish(1)
    world.poll()
    world.publish(2)
    with world.versions.using(Wanted()) as model:
        poll = threading.Thread(target=world.poll)
        poll.start()
        while world.versions.status(1)[0].state is not State.UNLOADING:
            assert poll.is_alive()
        fake: Any = model
        assert not fake.closed
        # New requests go to the new one meanwhile.
        assert world.answers() == 2
    poll.join(TIMEOUT_S)
    assert world.models[1].closed


def test_a_broken_version_is_refused_and_tried_again_when_it_is_mended(world: World) -> None:
    world.publish(1)
    world.poll()
    world.publish(2)
    world.broken = {2}
    assert world.poll() == world.poll() == [1]
    assert world.loads == [1, 2]
    assert world.answers() == 1
    assert world.versions.status(2) == [VersionStatus(2, State.END, "version 2 is broken")]
    assert "version 2 is refused: version 2 is broken" in world.log
    world.broken = set()
    (world.path / "2" / "saved_model.pb").write_bytes(b"mended")
    assert world.poll() == [2]
    assert world.versions.status(2) == [VersionStatus(2, State.AVAILABLE)]


def test_at_the_start_a_broken_version_leaves_its_place_to_the_next(world: World) -> None:
    world.publish(1, 2, 3)
    world.broken = {3}
    assert world.poll() == [2]


def test_a_deleted_version_goes_back_to_the_one_before(world: World) -> None:
    world.publish(1, 2)
    assert world.poll() == [2]
    (world.path / "2").rmdir()
    assert world.poll() == [1]
    assert [status.version for status in world.versions.status()] == [1]


def test_what_is_loaded_stays_where_the_directory_cannot_be_read(world: World) -> None:
    world.publish(1)
    world.poll()
    (world.path / "1").rmdir()
    world.path.rmdir()
    assert world.poll() == [1]
    assert world.answers() == 1


def test_labelled_versions_stay_loaded(world: World) -> None:
    world.publish(1, 2)
    world.labels = {"stable": 1, "canary": 2, "old": 0}
    assert world.poll() == [1, 2]
    assert (world.answers(), world.answers(label="stable"), world.answers(label="canary")) == (
        *(2, 1, 2),
    )
    with pytest.raises(CallFailed, match="INVALID_ARGUMENT: Unrecognized servable version label"):
        world.answers(label="old")
    world.publish(3)
    world.labels = {"stable": 2, "canary": 3}
    assert world.poll() == [2, 3]
    assert world.answers(label="stable") == 2
    assert world.versions.number(Wanted(label="canary")) == 3


def test_a_label_stays_where_it_is_until_its_new_version_is_loaded(world: World) -> None:
    world.publish(1, 2)
    world.labels = {"stable": 1}
    world.poll()
    world.publish(3)
    world.broken = {3}
    for moved in (3, 4):
        world.labels = {"stable": moved}
        assert world.poll() == [1, 2]
        assert world.answers(label="stable") == 1
    world.labels = {"stable": 2}
    assert world.poll() == [2]
    assert world.answers(label="stable") == 2
    world.labels = {}
    world.poll()
    with pytest.raises(CallFailed, match="Unrecognized servable version label"):
        world.answers(label="stable")


def test_labels_stay_where_the_directory_cannot_be_read(world: World, tmp_path: Path) -> None:
    world.publish(1, 2)
    world.labels = {"stable": 1}
    world.poll()
    world.path.rename(tmp_path / "elsewhere")
    assert world.poll() == [1, 2]
    assert (world.answers(), world.answers(label="stable")) == (2, 1)


def test_the_watcher_goes_on_after_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_S", 0.01)
    polled, seen = threading.Semaphore(0), list[str]()
    poll = world.versions.poll

    def once_broken() -> None:
        if not seen:
            raise RuntimeError("no such dtype")
        poll()

    monkeypatch.setattr(world.versions, "poll", once_broken)
    world.publish(1)
    watching = watcher.Watcher(world.versions, polled.release, seen.append)
    watching.start()
    for _ in range(2):
        assert polled.acquire(timeout=TIMEOUT_S)
    watching.ask_to_stop()
    assert seen == ["versions cannot be looked at (RuntimeError: no such dtype)"]
    assert world.answers() == 1


def test_a_fixed_version_is_the_only_one(tmp_path: Path) -> None:
    world = World(tmp_path / "tiny", fixed=1)
    world.publish(1, 2)
    world.labels = {"canary": 2}
    assert world.poll() == [1]


def test_close_waits_for_calls_and_closes_all(world: World) -> None:
    world.publish(1, 2)
    world.labels = {"stable": 1}
    world.poll()
    world.versions.close()
    assert all(model.closed for model in world.models.values())
    assert world.versions.latest is None


CONFIG = """
model_config_list {
  config { name: "other" version_labels { key: "stable" value: 9 } }
  config { name: "tiny" version_labels { key: "stable" value: 1 }
           version_labels { key: "canary" value: 2 } }
}
"""


def test_labels_are_those_of_the_models_entry(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    assert read_labels(file, "tiny") == {}
    file.write_text(CONFIG)
    assert read_labels(file, "tiny") == {"stable": 1, "canary": 2}
    assert read_labels(file, "another") == {}
    file.write_text("model_config_list { name: 3 }")
    with pytest.raises(InvalidInput, match=r"models.config: .*expected a ModelServerConfig"):
        read_labels(file, "tiny")


def test_labels_stay_where_the_file_is_broken_and_it_is_said_once(tmp_path: Path) -> None:
    file, log = tmp_path / "models.config", list[str]()
    labels = LabelFile(file, "tiny", log.append)
    assert labels() == {}
    file.write_text(CONFIG)
    assert labels() == {"stable": 1, "canary": 2}
    file.write_text("{")
    assert labels() == labels() == {"stable": 1, "canary": 2}
    assert len(log) == 1
    file.write_text(CONFIG.replace("value: 1", "value: 2"))
    assert labels() == {"stable": 2, "canary": 2}
