"""Metrics. `*_metric.py` modules register theirs in BasicSR's `METRIC_REGISTRY`."""

from bsr_plugins.metrics.checks import METRIC_CHECKS
from bsr_plugins.metrics.lpips_metric import calculate_lpips
from bsr_plugins.metrics.representation import embedding_spread

__all__ = ["METRIC_CHECKS", "calculate_lpips", "embedding_spread"]
