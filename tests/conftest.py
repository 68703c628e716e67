"""What every test needs."""

import bsr_plugins  # noqa: F401  (BasicSR cannot be imported before it, wherever a test's imports are sorted to)
