"""Bulk captioning whose launcher is killed: the same command again accounts for every image."""

import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bulk_fixtures import photo, write_photos
from tests.fault_fixtures import Events, caption_noted, killed_runs
from tests.preprocess_fixtures import published

KILLS = 5


@dataclass(frozen=True)
class World:
    """An input that changed after it was captioned, and what an undisturbed run then leaves.

    Attributes:
      root: has `in`, and `before`: the output from before it changed.
      files: the output of a run that begins and ends with the input as it is now.
      steps: of a run that begins with `before`.
    """

    root: Path
    files: Mapping[str, bytes]
    steps: Sequence[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("bulk")
    photos = write_photos(root / "in", 20, poison=[7])
    (photos / "late.png").symlink_to(root / "there")
    (photos / "broken.png").write_bytes(b"no image")
    caption_noted(root, "before", Events())
    for index in range(4):
        (photos / f"{index}-new.png").write_bytes(photo(70 + index))
    (root / "there").write_bytes(photo(80))
    (photos / "003.png").unlink()
    shutil.copytree(root / "before", root / "amended")
    events = Events()
    caption_noted(root, "amended", events)
    caption_noted(root, "whole", Events())
    files = published(root / "whole")
    assert published(root / "amended") == files
    return World(root, files, events.labels)


@pytest.mark.slow
def test_killed_at_random_moments_it_leaves_the_rows_of_an_undisturbed_run(world: World) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    outputs = [f"killed-{number}" for number in range(KILLS)]
    for output in outputs[1::2]:
        shutil.copytree(world.root / "before", world.root / output)
    kills = [(output, chance.randrange(1, len(world.steps)), 0.0) for output in outputs]
    # The second attempt is killed as well, wherever it then is.
    again = [(output, chance.randrange(1, 30), 0.0) for output in outputs]
    runs = [*kills, *again, *((output, 0, 0.0) for output in outputs)]
    print(runs)
    codes = [code for code, _ in killed_runs("bulk", world.root, runs)]
    assert codes[:KILLS] == [-signal.SIGKILL] * KILLS
    assert codes[-KILLS:] == [0] * KILLS
    for output in outputs:
        check(world, output)


@pytest.mark.slow
def test_killed_before_any_rename_of_a_changed_input_it_goes_on(world: World) -> None:
    steps = [at for at, label in enumerate(world.steps, 1) if label.startswith("rename")]
    kinds = {world.steps[at - 1] for at in steps}
    assert {"rename job", "rename specs", "rename shard", "rename failures", "rename done"} <= kinds
    for at in steps:
        shutil.copytree(world.root / "before", world.root / f"at-{at}")
    runs = [(f"at-{at}", step, 0.0) for at in steps for step in (at, 0)]
    codes = [code for code, _ in killed_runs("bulk", world.root, runs)]
    assert codes == [-signal.SIGKILL, 0] * len(steps)
    for at in steps:
        check(world, f"at-{at}")


def check(world: World, output: str) -> None:
    """Every row as undisturbed, and nothing left of the runs that were killed."""
    assert published(world.root / output) == world.files
    there = world.root / output
    assert not list(there.rglob("*.tmp-*"))
    for directory in ("lease", "begun"):
        assert list((there / "_work" / directory).iterdir()) == []
