"""The replay of the image on a small context; the whole replay takes minutes: ``make replay-image``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.dockerfile import context_files
from tests.support.replay_image import NEEDED_BYTES, Image, Replay, ReplayError, check_contents, main, serve_and_draft

DOCKERFILE = """\
# a comment
ARG BASE=python:3.11
FROM ${BASE} AS build
WORKDIR /src
COPY made.txt ./
COPY model model
RUN mkdir -p /opt/x \\
    # a comment within
 && cp -r . /opt/x/
FROM ${BASE}
RUN useradd --uid 10001 report && install -d -o report -g report /app
COPY --from=build /opt/x /opt/x
ENV KEPT=/opt/x URL=http://host/opt/x PATH=/opt/x/bin:$PATH
WORKDIR /app
HEALTHCHECK --interval=5s CMD true
CMD ["cat", "/opt/x/made.txt"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "model").mkdir(parents=True)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / ".dockerignore").write_text("*\n!made.txt\n!model/\n**/*.secret\n")
    (folder / "made.txt").write_text("made\n")
    (folder / "model" / "a.py").write_text("A = 1\n")
    (folder / "model" / "b.secret").write_text("no\n")
    return folder


def test_replays_all_stages_and_keeps_the_last(context: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    replay = Replay(context, work, Path(sys.executable))
    image = replay.build()
    made = image.root / "opt" / "x"
    assert (made / "made.txt").read_text() == "made\n"
    assert sorted(path.name for path in (made / "model").iterdir()) == ["a.py"]
    assert (image.root / "app").is_dir()  # by the stand-in of install, which ignores the owner
    assert not (work / "build").exists()
    assert image.env["KEPT"] == str(made)
    assert image.env["URL"] == "http://host/opt/x"
    assert image.stage.last("CMD").words() == ["cat", "/opt/x/made.txt"]
    assert image.env["PATH"].startswith(f"{made}/bin:")
    assert "stand-ins" not in image.env["PATH"]


def test_a_failing_step_ends_the_replay_with_its_output(context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM a\nRUN echo the reason && false\nCMD x\n")
    with pytest.raises(ReplayError, match=r"exit status 1\n(.|\n)*the reason"):
        Replay(context, tmp_path / "work", Path(sys.executable)).build()


def test_a_source_that_dockerignore_excludes_ends_the_replay(context: Path, tmp_path: Path) -> None:
    (context / ".dockerignore").write_text("model\n")
    assert context_files(context, "model") == []
    with pytest.raises(ReplayError, match="COPY model"):
        Replay(context, tmp_path / "work", Path(sys.executable)).build()


@pytest.mark.parametrize("name", ["training/run.py", "tests/test_a.py", "service/weights.safetensors"])
def test_finds_training_code_tests_and_weights_in_the_image(name: str, tmp_path: Path) -> None:
    packages = tmp_path / "image" / "opt" / "lib" / "python3" / "site-packages"
    (packages / name).parent.mkdir(parents=True)
    (packages / name).write_text("")
    with pytest.raises(ReplayError, match="must not"):
        check_contents(Image(tmp_path / "image", {}))


def test_a_service_that_ends_fails_the_replay(tmp_path: Path) -> None:
    image = Image(tmp_path / "image", {"PATH": "/usr/bin:/bin", "REPORT_BUNDLE": str(tmp_path / "image" / "bundle")})
    for folder in (image.root / "tmp", tmp_path / "bundle"):
        folder.mkdir(parents=True)
    command = [sys.executable, "-c", "import sys; print('no bundle here'); sys.exit(3)"]
    with pytest.raises(ReplayError, match=r"exit status 3\n(.|\n)*no bundle here"):
        serve_and_draft(image, command, tmp_path / "bundle")


def test_refuses_to_start_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=NEEDED_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["--work", str(tmp_path)]) == 2
    assert "8.0 GB free" in (printed := capsys.readouterr().err)
    assert "--work" in printed
    assert not list(tmp_path.iterdir())
