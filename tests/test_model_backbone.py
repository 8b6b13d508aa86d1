"""The backbone imports torchvision without PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import REPOSITORY


@pytest.mark.parametrize(
    "code",
    [
        "import service.app; assert 'torch._dynamo' not in sys.modules",
        "import model.network.backbone; from torchvision.ops import roi_align; "
        "assert roi_align.__globals__['is_compile_supported']('cpu') in (True, False); "
        "assert 'torch._dynamo' in sys.modules",
        "from model.network.backbone import _without_compiler\n"
        "with _without_compiler(): from torch._dynamo.utils import counters, is_compile_supported\n"
        "assert counters is sys.modules['torch._dynamo.utils'].counters",
    ],
    ids=["the service needs no compiler", "a call imports it", "another name imports it"],
)
def test_imports_the_compiler_only_when_it_is_needed(code: str) -> None:
    subprocess.run([sys.executable, "-c", f"import sys\n{code}"], cwd=REPOSITORY, check=True)
