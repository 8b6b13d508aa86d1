"""``torchvision.models``, imported without PyTorch's compiler."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Allow torchvision to import one function of PyTorch's compiler without the compiler, which costs 2 s and 140 MB.

    A call of the function, or the import of any other name of the module, imports the compiler.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def attribute_of_real(attribute: str) -> Any:
        if attribute.startswith("__"):  # a query of the import system
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    vars(stand_in)["__getattr__"] = attribute_of_real
    vars(stand_in)["is_compile_supported"] = lambda kind: attribute_of_real("is_compile_supported")(kind)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


with _without_compiler():
    from torchvision import models

__all__ = ["models"]
