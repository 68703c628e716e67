"""BasicSR's train and test pipelines, hardened: checked options, exact resume, safe checkpoints, several processes."""

from bsr_plugins.engine.command_line import run
from bsr_plugins.engine.testing import test_pipeline
from bsr_plugins.engine.training import train_pipeline

__all__ = ["run", "test_pipeline", "train_pipeline"]
