"""Where report texts and radiographs of a data set may be written: never among bundles, never where git sees them."""

from __future__ import annotations

from pathlib import Path

from model.manifest import MANIFEST

GITIGNORE = "# radiographs and report texts of a data set: not to be shared\n*\n"


def refuse_bundles(path: Path) -> None:
    """Raise ValueError for a file with report texts or images that would lie in a bundle or in a folder of bundles."""
    for folder in path.resolve().parents:
        if (folder / MANIFEST).exists() or (folder.name == "bundles" and any(folder.glob(f"*/{MANIFEST}"))):
            raise ValueError(
                f"{path} would lie among bundles, which are shared, and predictions hold report texts; "
                "write to another folder, for example evaluation/"
            )


def check_page_folder(folder: Path, option: str = "--report") -> None:
    """Raise ValueError for a folder among bundles or with other files than an earlier page: git ignores all of it."""
    refuse_bundles(folder / "report.html")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder} is a file; name a new folder")
    marker = folder / ".gitignore"
    if folder.exists() and any(folder.iterdir()) and not (marker.is_file() and marker.read_text() == GITIGNORE):
        raise ValueError(f"{option} {folder} holds other files; name a new folder, for example evaluation/report")
