"""``cxr-report serve|draft|train|score …``: the commands of the project under one name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from cxr_report import __version__
from model.command_line import CommandParser

COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("service.__main__", "serve a bundle over HTTP: python -m service"),
    "draft": ("service.report", "draft one study: python -m service.report"),
    "train": ("training.run", "train a bundle: python -m training.run"),
    "score": ("training.score", "score the texts of any system: python -m training.score"),
}
_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with its options; returns its exit code, or 2 where it cannot be imported."""
    parser = CommandParser(
        prog="cxr-report",
        description="Draft chest X-ray findings, serve, train and score. cxr-report COMMAND --help shows the options.",
        epilog="\n".join(f"{name:6} {what}" for name, (_, what) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cxr-report {__version__}")
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command")
    given = parser.parse_args(arguments)
    module = COMMANDS[given.command][0]
    try:
        run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        extra = "[train]" if module.startswith("training.") else ""
        remedy = f"pip install '.{extra}' in the source tree"
        print(f"cxr-report {given.command} needs {error.name}: {remedy}", file=sys.stderr)
        return _USAGE
    return int(run(given.options))


if __name__ == "__main__":
    raise SystemExit(main())
