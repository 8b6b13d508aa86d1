"""The container files: valid by the compose specification and hadolint, hardened, free of training code."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

RESET = object()


class ComposeLoader(yaml.SafeLoader):
    """YAML with compose's ``!reset`` tag, which drops what an earlier file set."""


ComposeLoader.add_constructor("!reset", lambda loader, node: RESET)


def load(*names: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Read compose files as ``docker compose -f … -f …`` would: variables filled in, later files on top."""
    merged: dict[str, Any] = {}
    for name in names:
        text = (REPOSITORY / name).read_text()
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: (environment or {}).get(m[1], m[2]), text)
        assert "${" not in text, f"{name}: a variable without a default"
        merged = overlay(merged, yaml.load(text, ComposeLoader))
    return merged


def overlay(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    kept = {key: value for key, value in below.items() if above.get(key) is not RESET}
    return kept | {key: overlay(kept.get(key), value) for key, value in above.items() if value is not RESET}


BOTH = [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.cpu.yml")]


@pytest.mark.parametrize("names", BOTH, ids=["gpu", "cpu"])
def test_compose_files_meet_the_specification(names: tuple[str, ...]) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="no binary of the validator for this machine")
    compose = compose_spec.PyCompose.from_json(json.dumps(load(*names)))
    compose.validate()
    assert sorted(compose.service_names()) == ["hydrate", "report"]


def test_the_validator_would_notice_a_mistake() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="no binary of the validator for this machine")
    broken = load("docker-compose.yml")
    broken["services"]["report"]["networks"] = ["elsewhere"]
    with pytest.raises(ValueError, match="elsewhere"):
        compose_spec.PyCompose.from_json(json.dumps(broken)).validate()
    misspelt = load("docker-compose.yml")
    misspelt["services"]["report"]["port"] = ["8000:8000"]
    with pytest.raises(ValueError, match="port"):
        compose_spec.PyCompose.from_json(json.dumps(misspelt))


def test_every_named_volume_is_declared() -> None:
    compose = load("docker-compose.yml")
    mounted = {mount.split(":")[0] for service in compose["services"].values() for mount in service["volumes"]}
    assert {name for name in mounted if not name.startswith((".", "/"))} == set(compose["volumes"])


@pytest.mark.parametrize("service", ["report", "hydrate"])
def test_containers_are_locked_down(service: str) -> None:
    definition = load("docker-compose.yml")["services"][service]
    assert definition["read_only"] is True
    assert definition["user"] == "10001:10001"
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in definition
    assert "./bundles:/app/bundles:ro" in definition["volumes"]


def test_the_service_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    assert load("docker-compose.yml")["services"]["report"]["ports"] == ["127.0.0.1:8000:8000"]
    opened = load("docker-compose.yml", environment={"BIND": "0.0.0.0", "PORT": "80"})
    assert opened["services"]["report"]["ports"] == ["0.0.0.0:80:8000"]


def test_gpu_is_reserved_and_the_override_takes_the_reservation_back() -> None:
    gpu = load("docker-compose.yml")["services"]["report"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    cpu = load("docker-compose.yml", "docker-compose.cpu.yml")["services"]["report"]
    assert "deploy" not in cpu
    assert cpu["environment"] == {**gpu["environment"], "REPORT_DEVICE": "cpu"}
    assert gpu["environment"]["REPORT_BUNDLE"] == "/app/bundles/iu-xray"
    assert gpu["environment"]["REPORT_LOG_FORMAT"] == "json"


def test_hydration_writes_where_the_service_looks_and_only_on_demand() -> None:
    services = load("docker-compose.yml")["services"]
    assert services["hydrate"]["profiles"] == ["hydrate"]
    assert "hydrated:/app/.bundles" in services["hydrate"]["volumes"]
    assert "hydrated:/app/.bundles:ro" in services["report"]["volumes"]
    command = services["hydrate"]["command"]
    assert command[command.index("--out") + 1] == "/app/.bundles/iu-xray-hydrated"
    assert command[command.index("--bundle") + 1] == services["report"]["environment"]["REPORT_BUNDLE"]


def dockerfile() -> str:
    return (REPOSITORY / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint for this machine")
    run = subprocess.run([hadolint, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_training_code_enters_the_image() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"model", "retrieval_index", "service"} <= set(copied)
    assert not {".", "training", "tests", "bundles"} & set(copied)
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored("training/run.py", ignore)
    assert ignored("bundles/iu-xray/model.safetensors", ignore)
    assert ignored(".venv/bin/python", ignore)
    for source in copied:
        assert not ignored(source, ignore), f"COPY {source} would find nothing"


def ignored(path: str, rules: list[str]) -> bool:
    """The last matching rule wins, as in Docker; a rule for a folder holds for all below it."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    verdict = False
    for rule in (line.strip() for line in rules):
        if rule and not rule.startswith("#"):
            pattern = rule.lstrip("!").rstrip("/").removeprefix("**/")
            if any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes):
                verdict = not rule.startswith("!")
    return verdict


def test_the_image_runs_as_nobody_in_particular_and_is_checked() -> None:
    final = dockerfile().rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER 10001", final, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\n.*/health", final, re.MULTILINE)
    assert "slim" in dockerfile()
    assert 'nvidia-driver.minimum="580"' in final
