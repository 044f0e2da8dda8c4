"""A runtime that is imported when it is first used: engines are described where it is not installed."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["lazy_import"]


def lazy_import(module: str) -> Any:
    """What stands for the module of that name; looking into it imports the module."""
    return _Lazy(module)


class _Lazy:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self._module), name)
        setattr(self, name, found)  # the next look finds it at once
        return found
