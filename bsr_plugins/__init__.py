"""Blind super-resolution for BasicSR: importing this package puts its classes into BasicSR's registries.

First BasicSR is made to run on today's torch, torchvision and numpy where it does not (`bsr_plugins.compat`),
then the sub-packages register what they hold. Nothing else happens.
"""

from bsr_plugins import compat

__version__ = "0.1.0"

compat.apply()

from bsr_plugins import archs, data, losses, metrics, models  # noqa: E402  (they import BasicSR)

__all__ = ["archs", "compat", "data", "losses", "metrics", "models"]
