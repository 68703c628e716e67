"""BasicSR's train and test pipelines with the options checked before anything is made or moved."""

from bsr_plugins.engine.command_line import run
from bsr_plugins.engine.pipelines import test_pipeline, train_pipeline

__all__ = ["run", "test_pipeline", "train_pipeline"]
