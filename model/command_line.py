"""The parser of every command of the project."""

from __future__ import annotations

import argparse
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses abbreviated options.

    With abbreviations a misspelled option may set another one, and a script that uses one breaks
    once a new option begins with the same letters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
