"""Check what captionbeam needs on this machine; each line says what to do.

    captionbeam doctor
    captionbeam doctor --server localhost:8500 --wait_s 60

A line is `ok`, `warn` (something works less well or not at all until you act) or `fail`
(captionbeam cannot run); with a `fail` the exit code is 1.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from model.errors import CaptionbeamError
from model.startup import import_tensorflow
from serving import flags
from serving.target import Target

OK, WARN, FAIL = "ok", "warn", "fail"

WEIGHTS_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/" + WEIGHTS_FILE
PROBE_TIMEOUT_S = 3.0
_GIB = 2**30
# A 7×7×2048 float16 grid is 196 KiB: COCO's 123,287 images make 23 GiB of records.
COCO_GIB = 30
# Checkpoints and one exported model.
MIN_GIB = 1


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      level: OK, WARN or FAIL.
      fact: what is.
      remedy: what to do about it; empty if nothing.
    """

    level: str
    fact: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.fact}" + (f": {self.remedy}" if self.remedy else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--server", metavar=flags.SERVER_METAVAR, help="ask this server for its model too"
    )
    flags.add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Prints every finding; 1 if one is a `fail`."""
    server = flags.server(args)
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python,
        check_packages,
        check_devices,
        check_machine,
        check_weights,
        check_java,
        lambda: check_server(server),
    ]
    failed = False
    for check in checks:
        for finding in check():
            print(finding, flush=True)
            failed |= finding.level == FAIL
    return 1 if failed else 0


def check_python() -> Iterator[Finding]:
    """The interpreter, which TensorFlow's and Beam's pinned wheels need in this version."""
    fact = f"python {platform.python_version()}"
    if sys.version_info[:2] == (3, 11):
        yield Finding(OK, fact)
    else:
        yield Finding(
            FAIL, fact, "captionbeam needs Python 3.11; run `make PYTHON=python3.11 test`"
        )


def check_packages(distribution: str = "captionbeam") -> Iterator[Finding]:
    """Every package that setup.py requires, in a version that it allows."""
    remedy = "install from requirements.lock (`make demo` does)"
    try:
        from packaging.requirements import Requirement

        lines = metadata.requires(distribution) or []
        # TensorFlow brings Keras in whatever version it likes; the weights depend on it.
        requirements = [Requirement(line) for line in (*lines, "keras>=3")]
    except (ImportError, metadata.PackageNotFoundError):
        yield Finding(FAIL, f"{distribution} is not installed", remedy)
        return
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(FAIL, f"{requirement.name} is not installed", remedy)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(OK, f"{requirement.name} {version}")
        else:
            wanted = f"expected {requirement.specifier}"
            yield Finding(FAIL, f"{requirement.name} {version}", f"{wanted}; {remedy}")


def check_devices() -> Iterator[Finding]:
    """Accelerators as TensorFlow sees them."""
    try:
        import_tensorflow()
        import tensorflow as tf
    except ImportError as error:
        yield Finding(FAIL, f"tensorflow cannot be imported ({error})", "reinstall it")
        return
    names = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
    if names:
        yield Finding(OK, f"{len(names)} GPU: {', '.join(names)}")
    elif Path("/dev/nvidia0").exists():
        yield Finding(
            WARN,
            "an NVIDIA GPU that TensorFlow does not see",
            "install its libraries: pip install 'tensorflow[and-cuda]' in the same version",
        )
    else:
        yield Finding(WARN, "no GPU", "the CPU will do for the demo; train COCO where there is one")


def check_machine() -> Iterator[Finding]:
    """Cores and the disk of the working directory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(OK, f"{cores} cores")
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    fact = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < MIN_GIB:
        yield Finding(FAIL, fact, f"free at least {MIN_GIB} GiB for checkpoints and models")
    elif free < COCO_GIB:
        yield Finding(WARN, fact, f"enough for the demo; COCO's records need {COCO_GIB} GiB")
    else:
        yield Finding(OK, fact)


def check_weights(url: str = WEIGHTS_URL) -> Iterator[Finding]:
    """ImageNet weights of ResNet50: in the Keras cache, or to be had from their host."""
    cached = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / WEIGHTS_FILE
    if cached.is_file():
        yield Finding(OK, f"ImageNet weights in {cached}")
        return
    import requests

    try:
        requests.head(url, timeout=PROBE_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        yield Finding(
            WARN,
            f"ImageNet weights are not in {cached.parent} and their host does not answer "
            f"({type(error).__name__})",
            "preprocess with `--encoder_weights FILE` (a copy of "
            f"{WEIGHTS_FILE}) or `--encoder_weights random:SEED`",
        )
    else:
        yield Finding(OK, "ImageNet weights can be downloaded (94 MB, at the first preprocess)")


def check_java() -> Iterator[Finding]:
    """Java, for two of the metrics."""
    remedy = "METEOR and SPICE are left out; install a Java runtime (8 or newer)"
    java = shutil.which("java")
    if java is None:
        yield Finding(WARN, "no java", remedy)
        return
    try:
        # Java prints its version on stderr.
        done = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding(WARN, f"{java} does not run ({type(error).__name__})", remedy)
    else:
        first = (done.stderr or done.stdout).partition("\n")[0]
        yield Finding(OK, f"java for METEOR and SPICE: {first}")


def check_server(target: Target | None) -> Iterator[Finding]:
    """Whether a captioner answers, if there is a server to ask."""
    if target is None:
        yield Finding(OK, "no server asked for", "name one with --server HOST:PORT to check it")
        return
    from serving.client import connect_to

    try:
        with connect_to(target) as client:
            name, version = client.model
    except CaptionbeamError as error:
        yield Finding(FAIL, f"server {target.server}", str(error))
    else:
        yield Finding(OK, f"server {target.server}: {name} version {version}")
