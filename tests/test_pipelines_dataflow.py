"""Dataflow up to the network: what would be submitted, and what our command says of the answer."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

import captionbeam
from model.errors import InvalidInput
from model.vocabulary import Vocabulary
from pipelines.shards import carried_errors
from tests.bulk_fixtures import answer_by_fakes, write_photos
from tests.cloud_fixtures import Bucket, FakeDataflow, fake_dataflow, gcs_bucket
from tests.preprocess_fixtures import FakeEncoder, calls, write_split

# A server in the background and many runs: minutes, on two cores.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("demo", "export", "model", "pipelines", "serving")
RUNNER = ("--runner=DataflowRunner", "--project=project-1", "--region=europe-west4")
FLAGS = (*RUNNER, "--temp_location=gs://bucket/tmp")
IMAGE = "gcr.io/cloud-dataflow/v1beta3/beam_python3.11_sdk:2.77.0"
STEPS = {
    "vocabulary": {"Specs", "Spread", "Words", "Count", "Collect", "Publish"},
    "shards": {"Specs", "Spread", "Process", "Collect", "Publish"},
}


@dataclass(frozen=True)
class Run:
    """A command that has ended: its exit code, what it printed, and the jobs Beam built."""

    code: int
    out: str
    err: str
    jobs: list[protos.Pipeline]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout has, and a stray build/ folder as setuptools leaves it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "captionbeam.py"):
        shutil.copy(ROOT / name, root)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "build" / "lib").mkdir(parents=True)
    (root / "build" / "lib" / "stray.py").touch()
    return root


def run(world: Path, *flags: str, images: str = "") -> Run:
    """`captionbeam preprocess` with the fake encoder."""
    split = f"--split=train={world}/captions_train.json:{images or world / 'train'}"
    encoder = ["--encoder_weights=random:0", "--image_size=32", "--grid_size=1"]
    sizes = ["--min_word_count=1", "--shard_size=8"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_encoder = partial(FakeEncoder, world / "log")
        monkeypatch.setattr("pipelines.records_job.Encoder", lambda _: make_encoder())
        return run_command("preprocess", split, *encoder, *sizes, *flags)


def run_command(*arguments: str) -> Run:
    """A command, and what Beam built for Dataflow."""
    jobs = []
    run_pipeline = DataflowRunner.run_pipeline

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = run_pipeline(self, *args, **kwargs)
        jobs.append(self.proto_pipeline)
        return result

    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        monkeypatch.setattr(DataflowRunner, "run_pipeline", noted)
        code = captionbeam.main(arguments)
    return Run(code, out.getvalue(), err.getvalue(), jobs)


def steps(pipeline: protos.Pipeline) -> set[str]:
    """The outermost names of its transforms, but for the root that holds them all."""
    transforms = pipeline.components.transforms
    names = {name: transform.unique_name for name, transform in transforms.items()}
    below = names.keys() - set(pipeline.root_transform_ids)
    return {names[name].partition("/")[0] for name in below}


def image(pipeline: protos.Pipeline) -> str:
    """The container of its only environment."""
    [environment] = pipeline.components.environments.values()
    return str(protos.DockerPayload.FromString(environment.payload).container_image)


def staged(pipeline: protos.Pipeline) -> dict[str, Path]:
    """Files for the workers: the name there → where it lies here."""
    [environment] = pipeline.components.environments.values()
    files = {}
    for artifact in environment.dependencies:
        role = protos.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
        payload = protos.ArtifactFilePayload.FromString(artifact.type_payload)
        files[role.staged_name] = Path(payload.path)
    return files


def check_package(path: Path) -> None:
    """It holds README, setup.py and every module of every package, and nothing stray."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {
        str(file.relative_to(ROOT)) for name in PACKAGES for file in (ROOT / name).glob("*.py")
    }
    assert {"README.md", "setup.py", "pyproject.toml", "captionbeam.py"} <= names
    assert {name for name in names if name.startswith(PACKAGES) and name.endswith(".py")} == modules
    assert not [name for name in names if "stray" in name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training split."""
    root = tmp_path_factory.mktemp("world")
    write_split(root, "train", 20)
    return root


@pytest.fixture(scope="module")
def dry_run(checkout: Path, world: Path) -> Run:
    """A dry run from the checkout, as a user writes it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(checkout)
        # Whoever asks for credentials fails.
        monkeypatch.setattr("google.auth.default", pytest.fail)
        output = f"--output={world / 'dry'}"
        return run(world, *FLAGS, output, "--dry_run=True", "--setup_file=setup.py")


def test_a_dry_run_says_that_it_made_nothing(dry_run: Run, world: Path) -> None:
    assert (dry_run.code, dry_run.out) == (0, "")
    assert dry_run.err == (
        "captionbeam preprocess: dry run: the job of 3 shards was built and not run; to run it, "
        "leave --dry_run out\n"
    )
    output = world / "dry"
    assert {path.name for path in output.iterdir()} == {"_work"}
    assert {path.name for path in (output / "_work").iterdir()} == {
        "annotation_failures.jsonl",
        "job.json",
        "lease",
        "specs",
    }
    assert not (world / "log").exists()


def test_a_dry_run_builds_both_jobs(dry_run: Run) -> None:
    assert [steps(job) for job in dry_run.jobs] == list(STEPS.values())
    assert [image(job) for job in dry_run.jobs] == [IMAGE, IMAGE]


def test_the_workers_get_all_of_our_packages(dry_run: Run) -> None:
    for job in dry_run.jobs:
        check_package(staged(job)["workflow.tar.gz"])


def test_the_package_for_the_workers_can_be_installed(dry_run: Run, tmp_path: Path) -> None:
    package = staged(dry_run.jobs[0])["workflow.tar.gz"]
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    where = ["--target", str(tmp_path / "installed"), str(package)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, *where],
        check=True,
        timeout=1200,
        cwd=tmp_path,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    program = (
        "import captionbeam, demo.run, export.module, pipelines.records_job, serving.client\n"
        "for module in (captionbeam, demo, export, pipelines.records_job, serving):\n"
        "    print(module.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        timeout=1200,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(found) == 5
    assert all(Path(path).is_relative_to(tmp_path / "installed") for path in found)


def test_a_container_of_ones_own_is_taken(world: Path) -> None:
    flags = ("--dry_run=True", "--sdk_container_image=example.org/captionbeam:1")
    ended = run(world, *FLAGS, f"--output={world / 'own'}", *flags)
    assert ended.code == 0
    assert [image(job) for job in ended.jobs] == ["example.org/captionbeam:1"] * 2
    assert all("workflow.tar.gz" not in staged(job) for job in ended.jobs)


@pytest.mark.parametrize("flag", ["--dry_run", "--dry_run=True"])
def test_a_dry_run_of_bulk_builds_its_job_and_writes_no_output(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "in", 20)
    answer_by_fakes(monkeypatch)
    flags = (*FLAGS, "--sdk_container_image=example.org/captionbeam:1", "--shard_size=8")
    where = (f"--input={photos}", f"--output={tmp_path / 'out'}", "--model=m/fake")
    ended = run_command("bulk", *where, flag, *flags)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("dry run: nothing was written\nimages: 20 in 3 shards; 0 skipped\n")
    assert ended.out.endswith("runner: the job was built and not run\n")
    assert [steps(job) for job in ended.jobs] == [STEPS["shards"]]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dry_run=True"], "--dry_run: FnApiRunner runs all the same, expected --runner=Data"),
        ([*FLAGS], "{output}: on this machine, where the workers of DataflowRunner cannot reach"),
        (
            [*FLAGS, "--output=gs://bucket/out"],
            "{world}/train: on this machine, where the workers of DataflowRunner cannot reach it",
        ),
        (
            [*FLAGS, "--dry_run=True", "--setup_file=none/setup.py"],
            "--setup_file none/setup.py: no such file, expected setup.py of a checkout",
        ),
        ([*FLAGS, "--dry_run=True", "--project=x"], "Beam: Pipeline has validations errors: Inv"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line(world: Path, flags: list[str], said: str) -> None:
    output = world / "refused"
    ended = run(world, f"--output={output}", *flags)
    assert (ended.code, ended.out, ended.jobs) == (2, "", [])
    assert ended.err.startswith(
        f"captionbeam preprocess: {said.format(output=output, world=world)}"
    )
    assert ended.err.count("\n") == 1
    assert not output.exists()


# The whole way, to an endpoint and a bucket on loopback.


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket of --output and --temp_location."""
    with gcs_bucket(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def dataflow() -> Iterator[FakeDataflow]:
    """A Dataflow that takes jobs and runs none."""
    with fake_dataflow() as dataflow:
        yield dataflow


def submit(world: Path, dataflow: FakeDataflow, *flags: str) -> Run:
    """The command with all in the bucket; what Beam says on the way is not of interest."""
    endpoint = f"--dataflow_endpoint={dataflow.endpoint}"
    images = "gs://bucket/train"
    return run(world, *FLAGS, "--output=gs://bucket/out", endpoint, *flags, images=images)


def test_what_is_submitted_is_whole(
    world: Path, checkout: Path, bucket: Bucket, dataflow: FakeDataflow, tmp_path: Path
) -> None:
    ended = submit(
        world,
        dataflow,
        f"--setup_file={checkout}/setup.py",
        "--num_workers=3",
        "--max_num_workers=9",
        "--worker_machine_type=n2-standard-8",
        "--experiments=no_use_multiple_sdk_containers",
    )
    # It answers that the job is done, and nothing ran.
    assert ended.code == 1
    assert ended.err == (
        "captionbeam preprocess: gs://bucket/out/_work/vocabulary.json: the runner ended without "
        "it; see the log of its job, then repeat the command\n"
    )
    [job] = dataflow.jobs
    [pool] = job["environment"]["workerPools"]
    assert [entry["containerImage"] for entry in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert (pool["numWorkers"], pool["machineType"]) == (3, "n2-standard-8")
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 9
    assert "use_runner_v2" in job["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" in job["environment"]["experiments"]
    place = "storage.googleapis.com/bucket/tmp/"
    assert job["environment"]["tempStoragePrefix"].startswith(place)
    packages = {package["name"]: package["location"] for package in pool["packages"]}
    assert packages["workflow.tar.gz"].startswith(place)

    package = tmp_path / "workflow.tar.gz"
    package.write_bytes(bucket.get(packages["workflow.tar.gz"].partition("/bucket/")[2]))
    check_package(package)
    options = job["environment"]["sdkPipelineOptions"]["options"]
    proto = bucket.get(options["pipelineUrl"].removeprefix("gs://bucket/"))
    assert steps(protos.Pipeline.FromString(proto)) == STEPS["vocabulary"]


def test_the_second_job_follows_the_first_and_its_work_is_found(
    world: Path, bucket: Bucket, dataflow: FakeDataflow
) -> None:
    for path in (world / "train").iterdir():
        bucket.put(f"train/{path.name}", path.read_bytes())
    assert submit(world, dataflow).code == 1
    # What the first job would have made.
    vocabulary = Vocabulary.build({"dog": 5, "red": 4}, 1)
    bucket.put("out/_work/vocabulary.json", vocabulary.to_json().encode())
    ended = submit(world, dataflow)
    assert ended.code == 1
    assert ended.err == (
        "captionbeam preprocess: gs://bucket/out/manifest.json: the runner ended without it; see "
        "the log of its job, then repeat the command\n"
    )
    assert [steps(job) for job in ended.jobs] == [STEPS["shards"]]
    # What the second would have made, made here: the job is the same wherever it runs.
    images = "gs://bucket/train"
    assert run(world, "--output=gs://bucket/out", images=images).code == 0
    assert calls(world / "log") == 3
    ended = submit(world, dataflow)
    assert (ended.code, ended.err, len(dataflow.jobs)) == (0, "", 2)
    assert ended.out.startswith("gs://bucket/out is complete already; nothing was done\n")


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("state", "status", "code", "said"),
    [
        (
            "JOB_STATE_FAILED",
            200,
            1,
            "DataflowRunner: Dataflow pipeline failed. State: FAILED, Error: None; see the log of "
            "its job, then repeat the command\n",
        ),
        ("JOB_STATE_CANCELLED", 200, 1, "gs://bucket/out/_work/vocabulary.json: the runner ended"),
        ("JOB_STATE_DONE", 403, 2, "DataflowRunner: 403 POST http://localhost:"),
    ],
)
def test_a_job_that_fails_or_is_refused_is_one_line(
    world: Path, dataflow: FakeDataflow, state: str, status: int, code: int, said: str
) -> None:
    dataflow.state, dataflow.status = state, status
    ended = submit(world, dataflow)
    assert ended.code == code
    assert ended.err.startswith(f"captionbeam preprocess: {said}")
    assert ended.err.count("\n") == 1
    if status == 403:
        assert ended.err.endswith(
            ": project-1 may not do that; see that project, region, buckets and credentials are "
            "right\n"
        )


def test_an_error_of_ours_comes_back_from_dataflow(
    world: Path, bucket: Bucket, dataflow: FakeDataflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers' tracebacks reach us as text."""
    del bucket
    dataflow.state = "JOB_STATE_FAILED"
    with pytest.raises(RuntimeError) as caught, carried_errors("out"):
        raise InvalidInput("no word of the training captions")
    text = f"Traceback (most recent call last): … {caught.value} [while running 'Publish']"
    monkeypatch.setattr(DataflowRunner, "last_error_msg", text, raising=False)
    ended = submit(world, dataflow)
    assert (ended.code, ended.err) == (
        2,
        "captionbeam preprocess: no word of the training captions\n",
    )
