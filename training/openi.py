"""Write the R2Gen annotation file of a copy of the Open-i collection.

    python -m training.openi --root DIR --out annotation.json [--download]

It prints how many studies and images were found, missing or skipped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.command_line import CommandParser
from model.files import write_atomic
from training.data.openi import open_openi
from training.data.studies import SPLITS, Source


def annotation(source: Source) -> dict[str, list[dict[str, Any]]]:
    """The R2Gen layout: split -> entries `id, report, image_path, split, image_ids`."""
    entries = {
        split: [
            {"id": study.study_id, "report": study.report,
             "image_path": [f"{study.study_id}/{k}.png" for k in range(len(study.images))], "split": split,
             "image_ids": [image.key for image in study.images]}
            for study in source.split(split)
        ]
        for split in SPLITS
    }  # fmt: skip
    return {split: studies for split, studies in entries.items() if studies}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the annotation file of a copy of the collection and print the counts."""
    parser = CommandParser(prog="python -m training.openi", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the reports and images")
    parser.add_argument("--out", type=Path, required=True, help="the annotation file to write")
    parser.add_argument("--download", action="store_true", help="fetch the archives that the root lacks")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        source = open_openi(arguments.root, download=arguments.download)
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    entries = annotation(source)
    write_atomic(arguments.out, json.dumps(entries, ensure_ascii=False, indent=1).encode())
    print(*source.notes, sep="\n")
    counts = ", ".join(f"{split} {len(studies)}" for split, studies in entries.items())
    print(f"wrote {arguments.out}: {sum(map(len, entries.values()))} studies ({counts})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
