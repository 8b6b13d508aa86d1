"""A module that a library imports for one function, which we never call: put off until somebody does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def put_off(module: str, function: str) -> Iterator[None]:
    """Imports in this block get ``function`` of ``module`` without importing it; a call of the function does.

    Any other name that they ask of ``module`` imports it at once: a new version of the library can make this useless,
    not wrong. A module that is imported already is left alone.

    Args:
        module: full name of the module.
        function: the function that is not called.
    """
    if module in sys.modules:
        yield
        return
    stand_in = _StandIn(module, function)
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        stand_in.leave()


class _StandIn(ModuleType):
    """In the place of a module until something else than one function is wanted."""

    def __init__(self, module: str, function: str) -> None:
        super().__init__(module)

        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(self._real(), function)(*arguments, **named)

        setattr(self, function, call)

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def _real(self) -> ModuleType:
        self.leave()
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # questions of the import system itself
            raise AttributeError(name)
        return getattr(self._real(), name)
