"""Where report texts and radiographs of a data set may be written: never among bundles, never where git sees them."""

from __future__ import annotations

from pathlib import Path

from model.manifest import MANIFEST

GITIGNORE = "# radiographs and report texts of a data set: not to be shared\n*\n"


def refuse_bundles(path: Path) -> None:
    """Refuse a file with report texts or images that would lie in a bundle or in a folder of bundles.

    Raises:
        ValueError: ``path`` would lie there.
    """
    for folder in path.resolve().parents:
        if (folder / MANIFEST).exists() or (folder.name == "bundles" and any(folder.glob(f"*/{MANIFEST}"))):
            raise ValueError(
                f"{path} would lie among bundles, which are shared, and predictions hold report texts; "
                "write to another folder, for example evaluation/"
            )


def check_page_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier page: git will ignore everything in it.

    Raises:
        ValueError: the folder lies among bundles, is a file, or holds other files.
    """
    refuse_bundles(folder / "report.html")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--report {folder} is a file; name a new folder")
    marker = folder / ".gitignore"
    if folder.exists() and any(folder.iterdir()) and not (marker.is_file() and marker.read_text() == GITIGNORE):
        raise ValueError(f"--report {folder} holds other files; name a new folder, for example evaluation/report")
