"""BasicSR's train and test pipelines, hardened: checked options, exact resume, safe checkpoints, several processes."""

from bsr_plugins.engine.pipelines import test_pipeline as test_pipeline
from bsr_plugins.engine.pipelines import train_pipeline as train_pipeline
from bsr_plugins.options.command_line import run as run
