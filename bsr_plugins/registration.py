"""Put classes and functions into registries: BasicSR's, and those of this package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from bsr_plugins.errors import BSRError

T = TypeVar("T", bound=Callable[..., Any])


class Registry(dict[str, T]):
    """What option files may name in one place, e.g. samplers; filled by decorators, from outside the package too.

    Args:
        what: What they are, for messages, e.g. `sampler`.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def register(self, name: str) -> Callable[[T], T]:
        """Register a class or function under a name; the same one may be registered again, as by a reload.

        Raises:
            BSRError: Another one has the name.
        """

        def add(obj: T) -> T:
            holder = self.get(name)
            if holder is not None and _origin(holder) != _origin(obj):
                raise BSRError(f"the {self.what} '{name}' is there already ({'.'.join(_origin(holder))})")
            self[name] = obj
            return obj

        return add


def _origin(obj: Callable[..., Any]) -> tuple[str, str]:
    return obj.__module__, obj.__qualname__


def register(registry: Any) -> Callable[[T], T]:
    """Register a class or function under its name, as `@REGISTRY.register()` does; a reload is harmless.

    Raises:
        BSRError: Somebody else has registered the name; BasicSR's decorator fails with a bare assertion.
    """

    def add(obj: T) -> T:
        holder = registry._obj_map.get(obj.__name__)
        if holder is None:
            registry.register(obj)
        elif _origin(holder) == _origin(obj):
            registry._obj_map[obj.__name__] = obj
        else:
            file = getattr(sys.modules.get(holder.__module__), "__file__", None)
            raise BSRError(
                f"bsr_plugins cannot register '{obj.__name__}' in BasicSR's {registry._name} registry: "
                f"the name is taken by {holder.__module__}.{holder.__qualname__} ({file or 'no file'})"
            )
        return obj

    return add
