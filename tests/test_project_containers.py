"""The container files: valid by the compose specification and hadolint, hardened, consistent with the settings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.inference.runtime import MAX_REQUEST_TIMEOUT_S
from service.pacs import node_settings
from service.settings import ENV_PREFIX, Settings
from tests.support.dockerfile import context_files, dockerignore, parse_dockerfile
from tests.support.paths import REPOSITORY

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
    if isinstance(below, list) and isinstance(above, list):
        return below + above
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    kept = {key: value for key, value in below.items() if above.get(key) is not RESET}
    return kept | {key: overlay(kept.get(key), value) for key, value in above.items() if value is not RESET}


BASE, CPU, TLS, KEY, PACS = (f"docker-compose{name}.yml" for name in ("", ".cpu", ".tls", ".key", ".pacs"))
DEPLOYMENTS = {
    "gpu": (BASE,), "cpu": (BASE, CPU), "gpu-key": (BASE, KEY), "gpu-tls": (BASE, TLS),
    "cpu-tls-key": (BASE, CPU, TLS, KEY), "cpu-pacs": (BASE, CPU, PACS),
    "cpu-tls-key-pacs": (BASE, CPU, TLS, KEY, PACS),
}  # fmt: skip
ALL = ("docker-compose.yml", *sorted(path.name for path in REPOSITORY.glob("docker-compose.*.yml")))


def validate(compose: dict[str, Any]) -> list[str]:
    """Check against the compose specification; the names of the services."""
    compose_spec = pytest.importorskip("compose_spec", reason="no binary of the validator for this machine")
    parsed = compose_spec.PyCompose.from_json(json.dumps(compose))
    parsed.validate()
    return sorted(parsed.service_names())


@pytest.mark.parametrize("names", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_compose_files_are_valid_and_declare_their_volumes(names: tuple[str, ...]) -> None:
    compose = load(*names)
    mounted = {mount.split(":")[0] for service in compose["services"].values() for mount in service["volumes"]}
    assert {name for name in mounted if not name.startswith((".", "/"))} == set(compose["volumes"])
    more = (["proxy"] if TLS in names else []) + (["node", "orthanc"] if PACS in names else [])
    assert validate(compose) == sorted(["hydrate", "report", *more])


def test_every_compose_file_is_part_of_a_tested_combination() -> None:
    assert {name for names in DEPLOYMENTS.values() for name in names} == set(ALL)


def test_the_validator_rejects_mistakes() -> None:
    broken = load(BASE)
    broken["services"]["report"]["networks"] = ["elsewhere"]
    with pytest.raises(ValueError, match="elsewhere"):
        validate(broken)
    misspelt = load(BASE)
    misspelt["services"]["report"]["port"] = ["8000:8000"]
    with pytest.raises(ValueError, match="port"):
        validate(misspelt)


def test_images_are_never_swapped_or_dumped_and_logs_are_bounded() -> None:
    for name, definition in load(BASE, TLS, PACS)["services"].items():
        assert definition["mem_limit"] == definition["memswap_limit"], f"{name} could swap images to the disk"
        assert definition["ulimits"]["core"] == 0, f"{name} could dump images to the disk"
        assert set(definition["logging"]["options"]) == {"max-size", "max-file"}, name


@pytest.mark.parametrize("service", ["report", "hydrate", "node"])
def test_containers_are_locked_down(service: str) -> None:
    definition = load(BASE, PACS)["services"][service]
    assert definition["read_only"] is True
    assert definition["user"] == "10001:10001"
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in definition
    assert definition["pids_limit"] > 0
    assert service == "node" or "./bundles:/app/bundles:ro" in definition["volumes"]


def test_ports_are_published_on_localhost_by_default() -> None:
    assert load("docker-compose.yml")["services"]["report"]["ports"] == ["127.0.0.1:8000:8000"]
    opened = load("docker-compose.yml", environment={"BIND": "0.0.0.0", "PORT": "80"})
    assert opened["services"]["report"]["ports"] == ["0.0.0.0:80:8000"]


def test_gpu_is_reserved_and_the_cpu_override_removes_the_reservation() -> None:
    gpu = load("docker-compose.yml")["services"]["report"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    cpu = load("docker-compose.yml", "docker-compose.cpu.yml")["services"]["report"]
    assert "deploy" not in cpu
    assert cpu["environment"] == {**gpu["environment"], "REPORT_DEVICE": "cpu"}
    assert gpu["environment"]["REPORT_BUNDLE"] == "/app/bundles/iu-xray"
    assert gpu["environment"]["REPORT_LOG_FORMAT"] == "json"
    assert gpu["environment"]["REPORT_DEVICE"] == "cuda"


def test_a_reload_by_signal_keeps_the_restart_policy() -> None:
    """Docker's restart policies after ``kill -s HUP``: moby/moby issues 11065 and 41302."""
    report = load(BASE)["services"]["report"]
    assert report["restart"] == "always"
    assert report["stop_signal"] == "SIGTERM"
    assert parse_dockerfile(dockerfile())[-1].last("STOPSIGNAL").rest == "SIGTERM"
    assert report["init"] is True


def test_hydration_writes_to_the_volume_of_the_service_on_demand_only() -> None:
    services = load("docker-compose.yml")["services"]
    assert services["hydrate"]["profiles"] == ["hydrate"]
    assert "hydrated:/app/.bundles" in services["hydrate"]["volumes"]
    assert "hydrated:/app/.bundles:ro" in services["report"]["volumes"]
    command = services["hydrate"]["command"]
    assert command[command.index("--out") + 1] == "/app/.bundles/iu-xray-hydrated"
    assert command[command.index("--bundle") + 1] == services["report"]["environment"]["REPORT_BUNDLE"]


# --- settings ---------------------------------------------------------------------------------------------------

SETTINGS = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
SETTINGS |= {f"{node_settings.ENV_PREFIX}{name.upper()}" for name in node_settings.NodeSettings.model_fields}


def default(name: str) -> float:
    """A setting's default."""
    return float(Settings.model_fields[name].default)


@pytest.mark.parametrize(
    "name", [*ALL, "Dockerfile", "deploy/Caddyfile", "deploy/try-pacs.sh", "docs/deployment.md", "docs/pacs.md"]
)
def test_files_name_only_existing_settings(name: str) -> None:
    named = set(re.findall(r"\bREPORT_(?!RAY_)[A-Z][A-Z_]*[A-Z]\b", (REPOSITORY / name).read_text()))
    assert named <= SETTINGS


def test_stop_periods_cover_the_drain_of_service_and_proxy() -> None:
    services = load(BASE, TLS)["services"]
    drain = default("drain_timeout_s")
    grace = re.search(r"grace_period (\d+)s", caddyfile())
    assert grace is not None
    assert drain < seconds(services["report"]["stop_grace_period"])
    assert drain < int(grace[1]) < seconds(services["proxy"]["stop_grace_period"])


def test_limits_of_the_proxy_cover_those_of_the_service() -> None:
    largest = 2 * int(default("max_upload_bytes")) + 64 * 1024
    assert int(variable("MAX_BODY_BYTES")) == largest
    assert load(BASE, TLS)["services"]["proxy"]["environment"]["MAX_BODY_BYTES"] == largest
    upload, request = default("upload_timeout_s"), MAX_REQUEST_TIMEOUT_S
    read, write = (float(re.search(rf"\b{name} (\d+)s", caddyfile())[1]) for name in ("read_body", "write"))  # type: ignore[index]
    answer = seconds(variable("RESPONSE_TIMEOUT"))
    assert upload < read
    assert request < answer
    assert upload + request < write


def test_only_the_proxy_publishes_ports() -> None:
    plain, compose = load(BASE)["services"]["report"], load(BASE, CPU, TLS, KEY)
    report, proxy = compose["services"]["report"], compose["services"]["proxy"]
    assert plain["ports"]
    assert "ports" not in report
    assert report["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    assert proxy["ports"] == ["0.0.0.0:443:443", "0.0.0.0:80:80"]
    assert set(proxy["networks"]) == {"inside", "outside"}
    assert proxy["depends_on"]["report"]["condition"] == "service_healthy"
    assert proxy["read_only"] is True
    assert (proxy["cap_drop"], proxy["cap_add"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert proxy["environment"]["UPSTREAM"] == variable("UPSTREAM") == "report:8000"


def test_the_node_reaches_the_service_and_the_archive_of_its_file() -> None:
    compose = load(BASE, CPU, PACS)["services"]
    node, report = compose["node"], compose["report"]
    assert node["image"] == report["image"]
    assert report["build"]["args"]["EXTRAS"] == "pacs"
    assert "os.environ.get('EXTRAS'" in dockerfile()
    assert node["environment"]["REPORT_PACS_REPORT_URL"] == "http://report:8000"
    assert report["environment"]["REPORT_WORKLIST"] == f"{node['environment']['REPORT_PACS_DIR']}/queue.sqlite"
    assert "node:/app/node" in node["volumes"]
    assert "node:/app/node" in report["volumes"]
    assert all(port.startswith("127.0.0.1:") for name in ("node", "orthanc") for port in compose[name]["ports"])
    assert seconds(node["healthcheck"]["start_period"]) >= 60, "the node imports for seconds before it listens"
    with_proxy = load(BASE, CPU, TLS, PACS)["services"]
    assert set(with_proxy["report"]["networks"]) == {"inside", "default"}
    assert "networks" not in with_proxy["node"]


def test_orthanc_finds_its_plugins_on_debian_and_in_the_image_of_the_compose_file() -> None:
    folders = json.loads(re.sub(r"\$\{[^}]*\}", "0", (REPOSITORY / "deploy" / "orthanc.json").read_text()))["Plugins"]
    assert folders == ["/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins"]
    assert load(BASE, PACS)["services"]["orthanc"]["image"].startswith("jodogne/orthanc-plugins:")


def test_the_key_file_is_outside_of_git_and_image() -> None:
    compose = load(BASE, KEY)
    report = compose["services"]["report"]
    assert report["secrets"] == ["report_api_key"]
    assert report["environment"]["REPORT_API_KEY_FILE"] == "/run/secrets/report_api_key"
    source = compose["secrets"]["report_api_key"]["file"].removeprefix("./")
    assert dockerignore(REPOSITORY).match_file(source)
    assert "secrets/" in (REPOSITORY / ".gitignore").read_text().splitlines()


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def caddyfile() -> str:
    return (REPOSITORY / "deploy" / "Caddyfile").read_text()


def variable(name: str) -> str:
    """The default of a variable in the Caddyfile."""
    found = re.search(rf"\{{\${name}:([^}}]*)\}}", caddyfile())
    assert found is not None, f"the Caddyfile has no variable {name}"
    return found[1]


# --- the image --------------------------------------------------------------------------------------------------


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
        for stage in parse_dockerfile(dockerfile())
        for instruction in stage.instructions
        if instruction.name == "COPY" and "from" not in instruction.flags
        for source in instruction.words()[:-1]
    ]
    assert {"model", "retrieval_index", "service"} <= set(copied)
    assert not {".", "training", "tests", "bundles", "deploy"} & set(copied)
    rules = dockerignore(REPOSITORY)
    outside = ("training/run.py", "bundles/iu-xray/model.safetensors", ".venv/bin/python", ".git/config", "report.env")
    assert all(map(rules.match_file, outside))
    for source in copied:
        assert context_files(REPOSITORY, source)


def test_the_image_has_an_unprivileged_user_and_a_health_check() -> None:
    final = parse_dockerfile(dockerfile())[-1]
    assert final.last("USER").rest == load(BASE)["services"]["report"]["user"] == "10001:10001"
    check = final.last("HEALTHCHECK")
    assert "/health" in check.rest
    assert seconds(check.flags["timeout"]) < seconds(check.flags["interval"])


def test_one_build_argument_chooses_the_pytorch_of_the_image() -> None:
    stages = parse_dockerfile(dockerfile())
    assert [stage.last("ARG").rest for stage in stages] == ["TORCH=default"] * 2
    assert any('install.sh "$TORCH" -r ' in step.rest for step in stages[0].instructions if step.name == "RUN")
    assert 'cxr-report.torch="${TORCH}"' in stages[-1].last("LABEL").rest
    for name in ("report", "hydrate"):  # they share an image
        assert load(BASE)["services"][name]["build"]["args"]["TORCH"] == "default"
        assert load(BASE, environment={"TORCH": "cu126"})["services"][name]["build"]["args"]["TORCH"] == "cu126"
