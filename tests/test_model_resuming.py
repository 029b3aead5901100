"""Interrupted training goes on to the weights of an undisturbed run, bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints import Checkpoints, load_trained
from model.errors import InvalidInput
from model.stopping import on_sigterm
from model.trainer import Trainer
from tests.trainer_fixtures import (
    EVERYTHING,
    checkpoint_steps,
    history,
    kept,
    make_run,
    silent,
    validate_as,
)


@pytest.mark.parametrize("changes", [(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.slow
def test_resumed_run_equals_the_undisturbed_one(
    tmp_path: Path, changes: tuple[tuple[str, object], ...]
) -> None:
    whole = Trainer(make_run(tmp_path, "whole", 9, *changes))
    whole.fit(silent)
    # Stops inside the second epoch, between validations.
    Trainer(make_run(tmp_path, "parts", 3, *changes)).fit(silent)
    middle = Trainer(make_run(tmp_path, "parts", 6, *changes))
    middle.fit(silent)
    run = make_run(tmp_path, "parts", 9, *changes)
    last = Trainer(run)
    last.fit(silent)
    assert len(kept(whole)) == len(kept(last)) > 50
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(middle.progress.best_score) <= float(last.progress.best_score)


def terminate_after_saving(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    save = Checkpoints.save

    def saved(self: Checkpoints, number: int) -> None:
        save(self, number)
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", saved)


@pytest.mark.slow
def test_sigterm_saves_where_it_is_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer(make_run(tmp_path, "whole", 9, ("checkpoint_steps", 4)))
    whole.fit(silent)
    run = make_run(tmp_path, "parts", 9, ("checkpoint_steps", 4))
    before = signal.getsignal(signal.SIGTERM)
    terminate_after_saving(monkeypatch, 4)
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    # Asked at step 4, told to every process with step 5, saved with the one after.
    assert lines[-1] == "stopped at step 6 of 9; the same command goes on"
    assert signal.getsignal(signal.SIGTERM) is before
    last = Trainer(run)
    last.fit(lines.append)
    assert "resuming at step 6 of 9" in lines
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_sigterm_ends_the_process_as_ever() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        with on_sigterm() as request:
            assert not request
            signal.raise_signal(signal.SIGTERM)
            assert request
            assert not asked
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_resumed_run_remembers_the_best_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate_as(monkeypatch, 3.0, 2.0, 4.0)
    changes = ("validation_steps", 2)
    Trainer(make_run(tmp_path, "model", 2, changes)).fit(silent)
    Trainer(make_run(tmp_path, "model", 4, changes)).fit(silent)
    assert load_trained(tmp_path / "model").step == 2
    Trainer(make_run(tmp_path, "model", 6, changes)).fit(silent)
    assert load_trained(tmp_path / "model").step == 6


def test_interrupted_history_has_each_validation_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 8)
    Trainer(run).fit(silent)
    history = run.model_dir / "history.jsonl"
    before = history.read_text()
    # As a kill after the validation of step 8 and before its checkpoint leaves it.
    with history.open("a") as file:
        file.write('{"step": 12, "loss": 1.0}\n{"step": 16, "lo')
    lines: list[str] = []
    Trainer(run).fit(lines.append)
    assert history.read_text() == before
    assert lines == ["resuming at step 8 of 8", "nothing to do: step 8 of 8 is taken"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 6)
    Trainer(run).fit(silent)
    checkpoints = run.model_dir / "checkpoints"
    lines: list[str] = []
    truncate(checkpoints / "ckpt-6.data-00000-of-00001")
    Trainer(run).fit(lines.append)
    assert "ckpt-6 cannot be read" in lines[0]
    assert lines[1] == "resuming at step 4 of 6"
    for path in checkpoints.glob("*.data*"):
        truncate(path)
    with pytest.raises(InvalidInput, match=r"none of \d checkpoints can be read"):
        Trainer(run).fit(silent)
    truncate(next((run.model_dir / "best").glob("*.data*")))
    with pytest.raises(InvalidInput, match=r"cannot be read|is damaged"):
        load_trained(run.model_dir)


@pytest.mark.slow
def test_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model", 4)
    Trainer(run).fit(silent)
    checkpoints = run.model_dir / "checkpoints"
    # What a kill while step 6 is being written leaves: data, no index, no pointer to it.
    (checkpoints / "ckpt-6.data-00000-of-00001.tempstate123").write_bytes(b"half")
    lines: list[str] = []
    Trainer(make_run(tmp_path, "model", 5)).fit(lines.append)
    assert lines[0] == "resuming at step 4 of 5"


KILLED = """
import os, signal, sys
from pathlib import Path
from model.checkpoints import Checkpoints
from model.trainer import Trainer
from tests.trainer_fixtures import EVERYTHING, make_run, send_in_step, silent

moment, run = sys.argv[2], make_run(Path(sys.argv[1]), "parts", 18, *EVERYTHING)
save = Checkpoints.save

def killed(self, step):
    if step >= 8 and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    if step >= 8 and moment == "while":
        # The files without the word that they are the newest, and these cut short.
        path = self._latest.checkpoint.write(str(run.model_dir / "checkpoints" / f"ckpt-{step}"))
        data = Path(f"{path}.data-00000-of-00001")
        data.write_bytes(data.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, step)

Checkpoints.save = killed
if moment == "between":
    send_in_step(8, signal.SIGKILL)
Trainer(run).fit(silent)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    """In the middle of an epoch, between validation and checkpoint, while one is written."""
    whole_run = make_run(tmp_path, "whole", 18, *EVERYTHING)
    whole = Trainer(whole_run)
    whole.fit(silent)
    for moment in ("between", "before", "while"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), moment],
            capture_output=True,
            cwd=Path(__file__).parents[1],
            timeout=1200,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert checkpoint_steps(tmp_path / "parts"), moment
    run = make_run(tmp_path, "parts", 18, *EVERYTHING)
    last = Trainer(run)
    last.fit(silent)
    for one, other in zip(kept(whole), kept(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history(run) == history(whole_run)
