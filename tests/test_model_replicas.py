"""N replicas, in one process or several, train the weights of one; a lost process is named."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.errors import InvalidInput
from model.strategies import _others_named, is_chief, make_strategy
from tests import tiny
from tests.trainer_fixtures import EVERYTHING, checkpoint_steps, make_run

# Clipping is active and lengths are uneven: both tell a wrong order of sum and clip.
CHANGES = dict(EVERYTHING, dropout=0.0, clip_norm=0.1, scheduled_sampling=0.0)
STEPS = 20


@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), True),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), False),
    ],
)
def test_one_process_of_a_cluster_saves(
    cluster: dict[str, list[str]], task: tuple[str, int], expected: bool
) -> None:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=task[0], task_id=task[1]
    )
    assert is_chief(resolver) is expected
    assert is_chief(None)


TRAIN_TWENTY_STEPS = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf

root, name, strategy = Path(sys.argv[1]), *sys.argv[2:4]
if strategy == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = tf.config.LogicalDeviceConfiguration
    tf.config.set_logical_device_configuration(cpu, [logical(), logical()])
from model.stopping import on_sigterm
from model import trainer as module
from model.strategies import make_strategy
chosen = make_strategy(strategy)
from model.run import Run
from model.trainer import train
from tests.test_model_replicas import CHANGES, STEPS
from tests.trainer_fixtures import kept, make_run, send_in_step, silent

plain = make_run(root, name, STEPS, *CHANGES.items())
# One process may be told to send itself a signal in its seventh step.
for number in sys.argv[4:]:
    send_in_step(7, int(number))
trainer = train(Run(plain.records, plain.model_dir, plain.config, chosen, plain.steps), silent)
if trainer.is_chief:
    np.savez(root / f"{name}.npz", *kept(trainer))
print("replicas", chosen.num_replicas_in_sync)
"""


def start(
    root: Path, name: str, strategy: str, tf_config: str = "", number: int | None = None
) -> subprocess.Popen[str]:
    sent = [] if number is None else [str(int(number))]
    return start_python(TRAIN_TWENTY_STEPS, [str(root), name, strategy, *sent], tf_config)


def start_python(script: str, arguments: Sequence[str], tf_config: str) -> subprocess.Popen[str]:
    environment = os.environ | ({"TF_CONFIG": tf_config} if tf_config else {})
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait for a run; its number of replicas."""
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err[-2000:]
    return int(out.split()[-1])


def saved_weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module", name="one_device")
def fixture_one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replicas")
    tiny.make_records(root / "records")
    assert finish(start(root, "one", "one")) == 1
    return root


def assert_same_weights(root: Path, *names: str) -> None:
    expected = saved_weights(root / "one.npz")
    for name in names:
        for one, other in zip(expected, saved_weights(root / f"{name}.npz"), strict=True):
            # Gradients are added in another order.
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_replicas_train_the_weights_of_one(one_device: Path) -> None:
    assert finish(start(one_device, "mirrored", "mirrored")) == 2
    assert_same_weights(one_device, "mirrored")


def cluster_of_two() -> list[str]:
    """TF_CONFIG of each process."""
    ports = []
    with socket.socket() as one, socket.socket() as two:
        for listener in (one, two):
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    workers = [f"127.0.0.1:{port}" for port in ports]
    tasks = ({"type": "worker", "index": index} for index in range(2))
    return [json.dumps({"cluster": {"worker": workers}, "task": task}) for task in tasks]


def start_two(root: Path, name: str, number: int | None = None) -> list[subprocess.Popen[str]]:
    """A cluster of two, of which the second sends itself a signal."""
    # Both look at one MODEL_DIR, as machines with a shared disk do.
    return [
        start(root, name, "multiworker", tf_config, sent)
        for tf_config, sent in zip(cluster_of_two(), (None, number), strict=True)
    ]


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(one_device: Path) -> None:
    assert [finish(process) for process in start_two(one_device, "multiworker")] == [2, 2]
    assert_same_weights(one_device, "multiworker")
    rows = (one_device / "multiworker" / "history.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]


@pytest.mark.slow
def test_a_cluster_that_is_stopped_and_loses_a_process_goes_on(one_device: Path) -> None:
    # Asked in step 7 of one of them, told to both by step 8, saved after step 9.
    assert [finish(process) for process in start_two(one_device, "mended", signal.SIGTERM)] == [
        2,
        2,
    ]
    assert checkpoint_steps(one_device / "mended")[-1] == 9
    survivor, dying = start_two(one_device, "mended", signal.SIGKILL)
    _, err = survivor.communicate(timeout=1200)
    dying.communicate(timeout=1200)
    assert dying.returncode == -signal.SIGKILL
    assert survivor.returncode == 1
    assert re.search(r"CheckFailed: worker 1 \(127\.0\.0\.1:\d+\) no longer answers", err)
    assert [finish(process) for process in start_two(one_device, "mended")] == [2, 2]
    assert_same_weights(one_device, "mended")


# The command, in a process that kills itself in its seventh step if it is told to.
COMMAND = """
import signal, sys
from model.startup import import_tensorflow
import_tensorflow()
import captionbeam
from tests.trainer_fixtures import send_in_step

if sys.argv[1] == "dies":
    send_in_step(7, signal.SIGKILL)
sys.exit(captionbeam.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_cluster_whose_chief_dies_goes_on(one_device: Path) -> None:
    """The chief saves, and the coordination service of the others lives in it."""
    run = make_run(one_device, "headless", STEPS, *CHANGES.items())
    settings = one_device / "headless.json"
    settings.write_text(run.config.to_json(), encoding="utf-8")
    arguments = ["train", f"--records={run.records}", f"--model_dir={run.model_dir}"]
    arguments += [f"--config={settings}", f"--steps={STEPS}", "--strategy=multiworker"]
    chief, survivor = (
        start_python(COMMAND, [fate, *arguments], tf_config)
        for fate, tf_config in zip(("dies", "lives"), cluster_of_two(), strict=True)
    )
    _, err = survivor.communicate(timeout=1200)
    chief.communicate(timeout=1200)
    assert chief.returncode == -signal.SIGKILL
    assert survivor.returncode == 1
    ours = [line for line in err.splitlines() if "captionbeam" in line]
    assert len(ours) == 1, err[-2000:]
    assert re.match(
        r"captionbeam train: worker 0 \(127\.0\.0\.1:\d+\) no longer answers; ", ours[0]
    )
    assert "Traceback" not in err
    assert checkpoint_steps(run.model_dir)[-1] == 6
    assert [finish(process) for process in start_two(one_device, "headless")] == [2, 2]
    assert_same_weights(one_device, "headless")


def test_multiworker_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InvalidInput, match="TF_CONFIG is not set"):
        make_strategy("multiworker")
    monkeypatch.setenv("TF_CONFIG", "{bad")
    with pytest.raises(InvalidInput, match="TF_CONFIG is not usable"):
        make_strategy("multiworker")


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("{{node_/job:worker/replica:0/task:0/device:CPU:0}} aborted", []),
        ("from /job:worker/task:0: /job:worker/replica:0/task:1 crashed", ["worker 1 (b:2)"]),
        ("/job:chief/replica:0/task:0 left", ["chief 0 (c:3)"]),
        ("at /job:localhost/replica:0/task:0", []),
    ],
)
def test_a_lost_process_is_named_with_its_address(message: str, lost: list[str]) -> None:
    cluster = tf.train.ClusterSpec({"chief": ["c:3"], "worker": ["a:1", "b:2"]})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type="worker", task_id=0
    )
    assert _others_named(message, resolver) == lost
    assert _others_named(message, None) == []
