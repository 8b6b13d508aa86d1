"""Registries: objects by name, of this project and of installed packages (entry points).

A package adds an object without a change here, in its ``pyproject.toml``::

    [project.entry-points."cxr_report.decoders"]
    my_decoder = "my_package.decoding:my_decoder"

The objects of this project are entries of the same form. Only installed packages are imported; a
bundle names a decoder, but carries no code. docs/extend.md has an example of each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """The entries of one group, loaded when they are first used."""

    def __init__(self, group: str, what: str, built_in: Mapping[str, str]) -> None:
        """Declare a group.

        Args:
            group: of the entry points.
            what: the name of an entry in messages, such as ``loss``.
            built_in: name -> ``module:attribute`` of the entries of this project.
        """
        self.group, self.what = group, what
        self._built_in = {name: metadata.EntryPoint(name, value, group) for name, value in built_in.items()}

    def names(self) -> tuple[str, ...]:
        """All names: those of this project, then those of other packages by name."""
        return (*self._built_in, *self.added())

    def built_in(self) -> tuple[str, ...]:
        """The names of this project."""
        return tuple(self._built_in)

    def added(self) -> tuple[str, ...]:
        """The names that other packages add.

        Raises:
            ValueError: two entries have one name.
        """
        entries = _installed(self.group, tuple(sys.path))
        names = sorted(entry.name for entry in entries)
        for name in names:
            if name in self._built_in or names.count(name) > 1:
                values = ", ".join(entry.value for entry in entries if entry.name == name)
                raise ValueError(f"{self.what} {name!r} is defined twice (also {values}); rename one in the entry "
                                 f"points {self.group} of its package")  # fmt: skip
        return tuple(names)

    def check(self, name: str) -> str:
        """The name itself, if it is known; loads nothing.

        Raises:
            ValueError: it is unknown; the message lists the known ones.
        """
        if name not in self._built_in and name not in self.added():
            raise ValueError(
                f"{self.what} {name!r} is unknown; use {', '.join(self.names())}, or install the package that adds "
                f"it by the entry points {self.group}"
            )
        return name

    def get(self, name: str) -> T:
        """The object with this name.

        Raises:
            ValueError: the name is unknown, or the entry cannot be imported.
        """
        entry = self._built_in.get(self.check(name))
        if entry is None:  # only these need a search of the installed packages
            entry = next(one for one in _installed(self.group, tuple(sys.path)) if one.name == name)
        found: T = _load(entry, self.what)
        return found


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group that are installed in the folders of ``path``."""
    return tuple(metadata.entry_points(group=group))


@lru_cache(maxsize=256)
def _load(entry: metadata.EntryPoint, what: str) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} {entry.name!r} ({entry.value}) cannot be imported: {error}; correct the entry point of its package"
        ) from error


Decoder = Callable[..., Any]  # model.decoding.generate.DecodeInputs -> Generated
DECODERS: Registry[Decoder] = Registry(
    "cxr_report.decoders",
    "decoding method",
    {
        "beam": "model.decoding.generate:decode_beam",
        "greedy": "model.decoding.generate:decode_beam",
        "rerank": "model.decoding.generate:decode_rerank",
        "consensus": "model.decoding.generate:decode_consensus",
    },
)

DECODER_ALIASES: Mapping[str, str] = {"mbr": "consensus"}


def decoder_name(name: str) -> str:
    """The name of a decoding method or of its alias; raises ValueError for an unknown one."""
    return DECODERS.check(DECODER_ALIASES.get(name, name))


Writer = Any  # a subclass of model.network.report_model.ReportModel
WRITERS: Registry[Writer] = Registry(
    "cxr_report.writers",
    "writer",
    {
        "cnn-rnn": "model.network.writers.cnn_rnn:CnnRnn",
        "r2gen": "model.network.writers.r2gen:R2Gen",
        "cmn": "model.network.writers.cmn:CrossModalMemoryNetwork",
        "coattention": "model.network.writers.coattention:CoAttentionNetwork",
    },
)
