"""What several commands of ``training`` share: arguments for data set and device, number types, results, exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from model.bundle import CONFIG, read_config
from model.config import ProtocolName
from model.devices import choose_device
from model.files import write_atomic
from model.manifest import BundleError
from training.data.headings import with_target_text
from training.data.letters import check_letters
from training.data.selection import HALVES
from training.data.studies import DatasetOptions, Source
from training.data.views import ViewCheck, with_views
from training.protocols import IU_XRAY, PROTOCOLS
from training.registries import DATASETS

Number = TypeVar("Number", int, float)
log = logging.getLogger("training")


def run_command(run: Callable[[], int], *, interrupted: str) -> int:
    """Run a command with its log on stderr and return the exit code.

    The code is that of ``run``, 2 for unusable input (the error is logged), 130 when interrupted (``interrupted`` is).
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        return run()
    except (ValueError, BundleError, OSError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("%s", interrupted)
        return 130


def add_common_arguments(parser: argparse.ArgumentParser, *, bundle: bool = False, download: bool = False) -> None:
    """Add the options of data set and device, with ``bundle`` also ``--bundle``, ``--limit`` and ``--resume``."""
    if bundle:
        parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                            help="take the drafts that an interrupted run with the same inputs left")  # fmt: skip
        parser.add_argument("--bundle", type=Path, required=True)
        parser.add_argument("--limit", type=positive, help="only the first N studies of a split")
        parser.add_argument("--split-val", choices=HALVES, help="only the half of val that chooses, or that reports")
    parser.add_argument("--dataset", choices=DATASETS.names(), help="default: r2gen with --annotation, else openi")
    parser.add_argument("--root", type=Path, help="openi: NLMCXR_reports.tgz and images/ or NLMCXR_png.tgz")
    parser.add_argument("--annotation", type=Path, help="r2gen: annotation.json")
    parser.add_argument("--images", type=Path, help="r2gen: image folder")
    default = "that of the bundle" if bundle else "that of the preset, else iu-xray"
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS),
                        help=f"published cleaning, words, length, images a study; default: {default}")  # fmt: skip
    if download:
        parser.add_argument("--download", action="store_true", help="openi: fetch the official archives into --root")
    parser.add_argument("--views-bundle", type=Path,
                        help="a bundle whose view check decides images of unknown view; see views.csv")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def open_source(arguments: argparse.Namespace, protocol: ProtocolName | None = None) -> Source:
    """Open the data set of the options, every view determined that can be.

    ``protocol`` None: that of ``--protocol``, else of ``--bundle``, else iu-xray. For a bundle that writes headings the
    studies have them as targets.

    Raises:
        ValueError: a path that it needs is missing, it has another protocol, the cleaning would destroy the reports,
            ``--views-bundle`` has no view check, or ``--bundle`` writes headings and the studies have none.
    """
    name = protocol or getattr(arguments, "protocol", None) or _bundle_protocol(getattr(arguments, "bundle", None))
    dataset = arguments.dataset or ("r2gen" if arguments.annotation else "openi")
    source = DATASETS.get(dataset)(
        DatasetOptions(
            arguments.root, arguments.annotation, arguments.images, download=getattr(arguments, "download", False),
            protocol=PROTOCOLS[name],
        )
    )  # fmt: skip
    check_letters((study.report for study in (*source.studies, *source.extra)), f"the reports of {source.name}")
    views_bundle: Path | None = getattr(arguments, "views_bundle", None)
    check = ViewCheck.load(views_bundle, choose_device(arguments.device)) if views_bundle else None
    source = with_views(source, _views_table(arguments), check)
    bundle: Path | None = getattr(arguments, "bundle", None)
    return with_target_text(source, read_config(bundle)) if bundle and (bundle / CONFIG).is_file() else source


@contextmanager
def without_new_views(arguments: argparse.Namespace) -> Iterator[None]:
    """Remove the table of views that ``open_source`` wrote, if what follows is refused."""
    table = _views_table(arguments)
    is_new = table is not None and not table.exists()
    try:
        yield
    except ValueError:
        if table is not None and is_new:
            table.unlink(missing_ok=True)
        raise


def _views_table(arguments: argparse.Namespace) -> Path | None:
    folder = arguments.annotation.parent if arguments.annotation else arguments.root or arguments.images
    return folder / "views.csv" if folder else None


def _bundle_protocol(bundle: Path | None) -> ProtocolName:
    """The protocol in ``config.json`` of a bundle; iu-xray without a bundle. An unreadable one is refused later."""
    if bundle is None or not (bundle / CONFIG).is_file():
        return IU_XRAY.name
    return read_config(bundle).protocol


def write_json(path: Path, content: object) -> None:
    """Write a result atomically as indented JSON."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def some_of(what: str, choices: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Type of a command line option: some of ``choices``, separated by commas; ``what`` is their name in an error."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(",") if part.strip())
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"unknown {what} {unknown[0]!r}; choose from {','.join(choices)}")
        if not names:
            raise argparse.ArgumentTypeError(f"names no {what}; choose from {','.join(choices)}")
        return names

    return parse


def at_least(least: int, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Type of a command line option: a finite number of ``least`` or more."""

    def number(text: str) -> Number:
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be {least} or more")
        return value

    return number


positive, not_negative = at_least(1, int), at_least(0, int)
