"""The reader of the Dockerfile and the replay's own rules; the replay itself takes minutes: ``make replay-image``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dockerfile import (
    DockerfileError,
    context_files,
    environment,
    healthcheck,
    ignored,
    parse_dockerfile,
)
from tests.support.paths import REPOSITORY
from tests.support.replay_image import NEEDED_BYTES, Built, Replay, check_contents, image_paths, main
from tests.support.replay_service import Container, ReplayError, serve_and_ask

TWO_STAGES = """\
# a comment
ARG BASE=python:3.11
FROM ${BASE} AS build
ENV A=1 B="two words"
WORKDIR /src
RUN echo one \\
    # a comment within
 && mkdir -p /opt/made && cp made.txt /opt/made/made.txt
COPY made.txt ./
FROM ${BASE}
COPY --from=build /opt/made /opt/made
ENV PATH=/opt/made/bin:$PATH \\
    HOME=/tmp
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=500ms CMD ["python", "-c", "print('/health')"]
CMD ["python", "-m", "service"]
"""


def test_stages_and_continued_lines_are_read() -> None:
    build, final = parse_dockerfile(TWO_STAGES)
    assert (build.base, build.name, final.base, final.name) == ("python:3.11", "build", "python:3.11", None)
    run = next(instruction for instruction in build.instructions if instruction.name == "RUN")
    assert run.rest == "echo one && mkdir -p /opt/made && cp made.txt /opt/made/made.txt"
    assert run.line == 6
    assert environment(build.instructions[0], {}) == {"A": "1", "B": "two words"}
    assert environment(final.instructions[1], {"PATH": "/bin"}) == {"PATH": "/opt/made/bin:/bin", "HOME": "/tmp"}
    assert final.instructions[0].flags == {"from": "build"}
    assert final.last("CMD").words() == ["python", "-m", "service"]
    assert parse_dockerfile(TWO_STAGES, {"BASE": "mirror/python"})[0].base == "mirror/python"
    check = healthcheck(final.last("HEALTHCHECK"))
    assert (check.interval_s, check.timeout_s, check.start_period_s, check.retries) == (5, 0.5, 0, 3)
    assert check.command[-1] == "print('/health')"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FROM a\nONBUILD RUN x", "line 2: ONBUILD is not known"),
        ("RUN x\nFROM a", "RUN before the first FROM"),
        ("ARG A=1", "no FROM"),
        ("FROM a\nRUN x \\", "the file ends"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(DockerfileError, match=words):
        parse_dockerfile(text)


def test_a_missing_command_and_a_wrong_duration_are_named() -> None:
    (stage,) = parse_dockerfile("FROM a\nHEALTHCHECK --interval=soon CMD x")
    with pytest.raises(DockerfileError, match="has no CMD"):
        stage.last("CMD")
    with pytest.raises(DockerfileError, match="'soon' is no duration"):
        healthcheck(stage.last("HEALTHCHECK"))


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("other.txt", True),
        ("model", False),
        ("model/a.py", False),
        ("model/deep/a.pyc", True),
        ("model/deep/__pycache__/x", True),
        ("models/a.py", True),
        ("docs/a.md", False),
        ("docs/deep/a.md", True),
    ],
)
def test_dockerignore_lets_the_last_matching_rule_win(path: str, verdict: bool) -> None:
    assert (
        ignored(path, ["# comment", "*", "!model/", "!docs", "docs/*", "!docs/*.md", "**/__pycache__", "**/*.pyc"])
        is verdict
    )


def test_paths_of_the_image_are_moved_and_no_others() -> None:
    pattern = image_paths(parse_dockerfile(TWO_STAGES))
    text = "PATH=/opt/made/bin:/usr/bin cp /src/a /tmp/b; curl http://host/opt/x ./opt/y; '/health' /optional"
    assert pattern.sub(lambda match: f"R{match[0]}", text) == (
        "PATH=R/opt/made/bin:/usr/bin cp R/src/a R/tmp/b; curl http://host/opt/x ./opt/y; '/health' /optional"
    )


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "model").mkdir(parents=True)
    (folder / "Dockerfile").write_text(
        "FROM a AS build\nWORKDIR /src\nCOPY made.txt ./\nCOPY model model\nRUN mkdir -p /opt/x && cp -r . /opt/x/\n"
        "FROM a\nRUN useradd --uid 10001 report && install -d -o report -g report /app\n"
        "COPY --from=build /opt/x /opt/x\nENV KEPT=/opt/x\nWORKDIR /app\nUSER 10001\n"
        'HEALTHCHECK CMD true\nCMD ["cat", "/opt/x/made.txt"]\n'
    )
    (folder / ".dockerignore").write_text("**/*.secret\n")
    (folder / "made.txt").write_text("made\n")
    (folder / "model" / "a.py").write_text("A = 1\n")
    (folder / "model" / "b.secret").write_text("no\n")
    return folder


def test_a_replay_makes_the_last_stage_and_throws_the_others_away(context: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    replay = Replay(context, work, Path(sys.executable))
    image = replay.build()
    made = image.root / "opt" / "x"
    assert (made / "made.txt").read_text() == "made\n"
    assert (made / "model" / "a.py").exists()
    assert not (made / "model" / "b.secret").exists()
    assert (image.root / "app").is_dir()  # by the stand-in of install, which names no owner
    assert not (work / "build").exists()
    container = replay.container(image)
    assert container.command == ["cat", str(made / "made.txt")]
    assert container.env["KEPT"] == str(made)
    assert "stand-ins" not in container.env["PATH"]
    assert (container.user, container.workdir) == ("10001", image.root / "app")


def test_a_step_that_fails_ends_the_replay_with_its_output(context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM a\nRUN echo it is so && false\nCMD x\n")
    with pytest.raises(ReplayError, match=r"line 2: RUN ended with status 1\n(.|\n)*it is so"):
        Replay(context, tmp_path / "work", Path(sys.executable)).build()


def test_a_source_that_dockerignore_keeps_out_is_an_error(context: Path) -> None:
    with pytest.raises(DockerfileError, match="COPY model"):
        context_files(context, "model", ["model"])


@pytest.mark.parametrize("what", ["training/run.py", "tests/test_a.py", "service/weights.safetensors"])
def test_training_code_tests_and_weights_in_the_image_are_found(what: str, context: Path, tmp_path: Path) -> None:
    replay = Replay(context, tmp_path / "work", Path(sys.executable))
    packages = tmp_path / "image" / "opt" / "lib" / "python3" / "site-packages"
    (packages / what).parent.mkdir(parents=True)
    (packages / what).write_text("")
    with pytest.raises(ReplayError, match="must not"):
        check_contents(Built(tmp_path / "image", {}), replay)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('no bundle here'); sys.exit(3)", r"ended with status 3\n(.|\n)*no bundle here"),
        ("import time; time.sleep(60)", "not healthy in time: .*refused"),
    ],
)
def test_a_service_that_does_not_become_healthy_fails_the_replay(tmp_path: Path, program: str, words: str) -> None:
    root, bundle = tmp_path / "image", tmp_path / "bundle"
    for folder in (root / "tmp", root / "app", bundle):
        folder.mkdir(parents=True)
    probe = "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['REPORT_PORT'], timeout=1)"
    text = f"FROM a\nHEALTHCHECK --interval=1s --retries=1 CMD {json.dumps([sys.executable, '-c', probe])}\nCMD x"
    health = parse_dockerfile(text)[0].last("HEALTHCHECK")
    env = {"PATH": "/usr/bin:/bin"}
    container = Container(root, root / "app", env, [sys.executable, "-c", program], health, user="10001")
    said: list[str] = []
    with pytest.raises(ReplayError, match=words):
        serve_and_ask(container, bundle, str(root / "app" / "bundle"), lambda what, began=None: said.append(what))
    assert said[0].startswith("CMD ")


def test_too_little_disk_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=NEEDED_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["--work", str(tmp_path)]) == 2
    assert "8.0 GB free" in (said := capsys.readouterr().err)
    assert "--work" in said
    assert not list(tmp_path.iterdir())


def test_the_command_of_the_makefile_exists() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "tests.support.replay_image", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--keep" in help_text
    assert "-m tests.support.replay_image" in (REPOSITORY / "Makefile").read_text()
