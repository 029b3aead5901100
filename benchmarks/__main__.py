"""Runs the benchmarks named, or all: `python -m benchmarks [NAME …]`."""

import importlib
import os
import sys

NAMES = (
    "preprocess",
    "workers",
    "memory",
    "train",
    "step_profile",
    "self_critical",
    "bulk",
    "bulk_fetch",
    "bulk_scale",
    "listing",
    "export",
    "serving",
)


def main() -> int:
    """Run them one after another; exit code 2 for an unknown name."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    wanted = sys.argv[1:] or NAMES
    for name in wanted:
        if name not in NAMES:
            print(f"benchmarks: no {name!r}, expected some of {', '.join(NAMES)}", file=sys.stderr)
            return 2
    from model.startup import import_tensorflow

    import_tensorflow()
    for name in wanted:
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
