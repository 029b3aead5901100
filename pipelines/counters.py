"""Beam's own counters of what became of the items, beside what the shards' results say.

Dashboards show them while a job runs; where the runner tells them at the end, the ledger is
compared with them.
"""

from collections import Counter
from typing import Any, TypeAlias

from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter

from pipelines.jobs import ShardResult

Counted: TypeAlias = tuple[int, dict[str, int]]
"""Items written, and failed by reason."""

_NAMESPACE = "captionbeam"
_WRITTEN, _FAILED = "written", "failed_"


def count(result: ShardResult) -> None:
    """Inside a DoFn: count a shard's items, whether it was made or found."""
    Metrics.counter(_NAMESPACE, _WRITTEN).inc(result.written)
    for reason, failed in result.failed.items():
        Metrics.counter(_NAMESPACE, f"{_FAILED}{reason}").inc(failed)


def counted(result: Any) -> Counted | None:
    """What a runner counted: items written, and failed by reason.

    Args:
      result: Beam's PipelineResult.

    Returns:
      What was counted; None where the runner keeps no counters, or does not tell them.
    """
    try:
        found = result.metrics().query(MetricsFilter().with_namespace(_NAMESPACE))["counters"]
    # Some runners have no result, others refuse the question, a service may be out of reach: the
    # job has ended well all the same.
    except Exception:
        return None
    values: Counter[str] = Counter()
    for metric in found:
        if metric.committed is None:
            return None
        values[metric.key.metric.name] += metric.committed
    if _WRITTEN not in values:
        return None
    failed = {
        name.removeprefix(_FAILED): value for name, value in values.items() if name != _WRITTEN
    }
    return values[_WRITTEN], dict(sorted(failed.items()))
