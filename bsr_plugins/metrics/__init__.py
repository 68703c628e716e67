"""Metrics. `*_metric.py` modules register theirs in BasicSR's `METRIC_REGISTRY`."""

from bsr_plugins.metrics.lpips_metric import calculate_lpips as calculate_lpips
from bsr_plugins.metrics.representation import embedding_spread as embedding_spread
