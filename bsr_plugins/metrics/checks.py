"""What can be known of a metric's options before a run."""

from collections.abc import Callable

from bsr_plugins.registration import Registry

METRIC_CHECKS: Registry[Callable[..., None]] = Registry("check of a metric")
"""Checks by the names of metrics. A check has the metric's arguments but the images, and raises `OptionError`.

`build_from_block(block, METRIC_CHECKS, "val.metrics.NAME")` calls one for a block of `val.metrics`.
"""
