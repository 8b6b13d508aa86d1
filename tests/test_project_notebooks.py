"""The notebooks of ``examples``: their cells run on phantoms, at a tiny size, and they hold no output."""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.paths import REPOSITORY, SHIPPED
from tests.support.tiny import write_denying_bundle

pytestmark = pytest.mark.usefixtures("no_java")
EXAMPLES = REPOSITORY / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
TINY = [
    "--preset", "smoke", "--backbone", "mobilenet_v3_small", "--set", "scst=none", "--set", "pretrain=none",
    "--set", "ce.epochs=1", "--set", "ce.backbone_lr=0.0001",
]  # fmt: skip


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def execute(notebook: Path, parameters: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the cells in the folder of the notebook, as Jupyter does; ``parameters`` replace those of the tagged cell.

    Returns:
        The variables, with the value of each cell that ends in an expression in ``_shown``.
    """
    monkeypatch.chdir(notebook.parent)
    variables: dict[str, Any] = {"__name__": "__main__", "_shown": []}
    for number, cell in enumerate(cell for cell in cells(notebook) if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        where = f"{notebook.name}, code cell {number}"
        exec(compile(tree, where, "exec"), variables)
        if isinstance(last, ast.Expr):
            variables["_shown"].append(eval(compile(ast.Expression(last.value), where, "eval"), variables))
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(variables)
            variables |= parameters
    return variables


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_output(notebook: Path) -> None:
    document = json.loads(notebook.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    for cell in document["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_draft_and_look_shows_a_draft_and_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_denying_bundle(tmp_path / "bundle")
    variables = execute(EXAMPLES / "draft_and_look.ipynb", {"BUNDLE": str(bundle)}, monkeypatch)
    shown = [value for value in variables["_shown"] if isinstance(value, Image.Image)]
    assert [image.size for image in shown] == [(1024, 512)]
    out = capsys.readouterr().out
    assert variables["draft"].findings in out
    assert variables["draft"].reference_cases[0].case_id in out
    assert "'Atelectasis': 'present'" in out


def test_draft_and_look_names_the_shipped_bundle() -> None:
    (parameters,) = (cell for cell in cells(EXAMPLES / "draft_and_look.ipynb") if cell["metadata"].get("tags"))
    values: dict[str, Any] = {}
    exec("".join(parameters["source"]), values)
    assert (EXAMPLES / values["BUNDLE"]).resolve() == SHIPPED.resolve()
    assert all((EXAMPLES / values[name]).is_file() for name in ("FRONTAL", "LATERAL"))


def test_train_score_compare_compares_two_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parameters = {"STUDIES": {"train": 12, "val": 4, "test": 6}, "PRESET": TINY}
    variables = execute(EXAMPLES / "train_score_compare.ipynb", parameters, monkeypatch)
    assert (variables["work"] / "scores" / "report.html").is_file()
    assert list(variables["result"]["against"]) == ["no-retrieval"]
    assert "retrieval − no-retrieval  CIDEr" in capsys.readouterr().out
