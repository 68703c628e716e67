"""Metrics."""

from bsr_plugins.metrics.representation import embedding_spread

__all__ = ["embedding_spread"]
