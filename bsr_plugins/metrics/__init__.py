"""Metrics. `*_metric.py` modules register theirs in BasicSR's `METRIC_REGISTRY`."""

from collections.abc import Callable, Mapping
from typing import Any

from bsr_plugins.metrics.lpips_metric import calculate_lpips, check_lpips
from bsr_plugins.metrics.representation import embedding_spread

__all__ = ["METRIC_CHECKS", "calculate_lpips", "embedding_spread"]

METRIC_CHECKS: dict[str, Callable[[Mapping[str, Any], str], None]] = {"calculate_lpips": check_lpips}
"""What can be known before a run of a metric's block in `val.metrics`, beyond the names of its arguments."""
