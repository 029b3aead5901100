"""The order of files: those that take minutes begin first, so that no process waits for one."""

import pytest

# By what their slow tests took, longest first; minutes each, half a minute the last.
_LONGEST = (
    "test_model_fine_tuning",
    "test_pipelines_night",
    "test_model_replicas",
    "test_export_check",
    "test_model_resuming",
    "test_demo_run",
    "test_end_to_end",
    "test_model_precision",
    "test_pipelines_killed_bulk",
    "test_export_large_answer",
    "test_pipelines_bulk_runners",
    "test_model_self_critical",
    "test_benchmarks_soak",
    "test_model_initial_weights",
    "test_serving_fuzz",
    "test_export_operations",
    "test_export_photographs",
    "test_model_metrics",
    "test_export",
    "test_model_trainer",
)
_PLACES = {name: place for place, name in enumerate(_LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files in order; in a file the tests stay as they are."""
    items.sort(key=lambda item: _PLACES.get(item.path.stem, len(_LONGEST)))
