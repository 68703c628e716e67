"""Importing bsr_plugins before any test module repairs BasicSR's own import."""

import bsr_plugins  # noqa: F401
