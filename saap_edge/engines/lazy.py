"""Importing a runtime when it is first used, so that engines can be described where it is not installed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["lazy_import"]


def lazy_import(module: str) -> Any:
    """A stand-in for a module, which is imported when one of its names is first used.

    >>> lazy_import("json").dumps([1, 2])
    '[1, 2]'
    """
    return _Lazy(module)


class _Lazy:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self._module), name)
        setattr(self, name, found)  # the next look finds it at once
        return found
