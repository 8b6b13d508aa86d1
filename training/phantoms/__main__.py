"""Command line of the phantoms: a data set, or the documentation's example radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from model.command_line import CommandParser
from training.phantoms import make_phantom, write_phantom_root

EXAMPLES = {
    "normal": (11, frozenset[str]()),
    "effusion": (5, frozenset({"cardiomegaly", "right effusion"})),
    "consolidation": (23, frozenset({"left consolidation", "pacemaker"})),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog="python -m training.phantoms", description=__doc__)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="write a data set to this new folder")
    target.add_argument("--examples", type=Path, metavar="DIR", help="write the README's radiographs here")
    parser.add_argument("--studies", type=int, default=60, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--size", type=int, default=256, help="side of the data set's images (%(default)s)")
    options = parser.parse_args(arguments)
    if options.examples is not None:
        write_examples(options.examples)
        return 0
    if options.studies < 6:
        parser.error(f"--studies {options.studies}: at least 6, for a sixth each goes to val and to test")
    held_out = options.studies // 6
    try:
        root = write_phantom_root(options.out, train=options.studies - 2 * held_out, val=held_out, test=held_out,
                                  seed=options.seed, size=options.size)  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    print(f"{root}: {options.studies - 2 * held_out} train, {held_out} val and {held_out} test phantoms")
    return 0


def write_examples(folder: Path, size: int = 512) -> None:
    """``<name>-frontal.png`` and ``<name>-lateral.png`` per example; prints their reports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (seed, findings) in EXAMPLES.items():
        study = make_phantom(seed, findings, size=size)
        for view, pixels in (("frontal", study.frontal), ("lateral", study.lateral)):
            Image.fromarray(pixels).save(folder / f"{name}-{view}.png", "PNG", optimize=True)
        print(f"{name}: {study.report}")


if __name__ == "__main__":
    raise SystemExit(main())
