"""Scale-out: two replicas of the tiny bundle on a real Ray Serve; one of them is killed under load."""

from __future__ import annotations

import ast
import asyncio
import base64
import concurrent.futures
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from benchmarks.raw_http import events
from model.types import DraftOptions
from service.inference.backend import RemoteDraft
from service.ray_app import __main__ as ray_app
from service.ray_app import cluster as ray_cluster
from service.ray_app.replica import ModelReplica
from service.settings import MIB
from tests.support.index import add_picture
from tests.support.paths import REPOSITORY
from tests.support.ray_cluster import KEY, START_S, Cluster, health, stopped, wait_for
from tests.support.service import PROBLEM, encode, free_port, png, settings_for

RAY = importlib.util.find_spec("ray") is not None and sys.platform == "linux"
needs_ray = pytest.mark.skipif(not RAY, reason="needs Linux and pip install '.[ray]' in the source tree")
DEADLINE_S = 10.0
CANARY = "Canary-Patient-4711"


# --- settings: no cluster ---------------------------------------------------------------------------------------


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPORT_RAY_REPLICAS", "7")
    monkeypatch.setenv("REPORT_RAY_CPUS_PER_REPLICA", "0.5")
    monkeypatch.setenv("REPORT_QUEUE_SIZE", "9")
    assert ray_cluster.read_settings({"queue_size": 8})[0].max_concurrent_requests == 8  # a deprecated name
    monkeypatch.chdir(tmp_path)
    settings, scale = ray_cluster.read_settings({"replicas": "3", "bundle": "here"})
    assert (scale.replicas, scale.cpus_per_replica, settings.max_concurrent_requests) == (3, 0.5, 9)
    assert settings.bundle == tmp_path / "here"  # a replica may have another working directory


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"replica": 2}, "unknown argument replica; known are replicas"),
        ({"replicas": 0}, "REPORT_RAY_REPLICAS=0"),
        ({"port": "http"}, "REPORT_PORT='http'"),
        ({"device": "cuda:0"}, "REPORT_RAY_GPUS_PER_REPLICA"),
        ({"user_cases_dir": "here"}, "REPORT_USER_CASES_DIR is set, but replicas cannot share added cases"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        ray_cluster.read_settings(arguments)


def test_every_setting_is_documented() -> None:
    guide = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    for name in ray_cluster.RaySettings.model_fields:
        assert f"`REPORT_RAY_{name.upper()}`" in guide, name


def test_missing_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, scale = ray_cluster.read_settings({"object_store_bytes": 2**60})
    with pytest.raises(ValueError, match="REPORT_RAY_OBJECT_STORE_BYTES"):
        ray_cluster._store_bytes(settings, scale)
    monkeypatch.setattr(ray_cluster, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(ValueError, match="files on the disk"):
        ray_cluster._store_bytes(settings, scale)


def test_replicas_that_exceed_the_cluster_are_refused() -> None:
    _, scale = ray_cluster.read_settings({"replicas": 3, "gpus_per_replica": 0.5})
    ray_cluster._check_resources({"CPU": 3.0, "GPU": 1.5}, scale)
    with pytest.raises(ValueError, match=r"need 1\.5, but the cluster has 1"):
        ray_cluster._check_resources({"CPU": 3.0, "GPU": 1.0}, scale)
    with pytest.raises(ValueError, match="REPORT_RAY_CPUS_PER_REPLICA"):
        ray_cluster._check_resources({"CPU": 2.0, "GPU": 2.0}, scale)


@pytest.mark.filterwarnings("ignore:coroutine 'ModelReplica.__del__' was never awaited")
def test_replica_computes_in_its_own_number_of_threads_and_names_no_pictures(bundle_copy: Path) -> None:
    add_picture(bundle_copy)
    before = torch.get_num_threads()
    replica = object.__new__(ModelReplica)

    async def lifetime() -> None:
        await replica.__init__(settings_for(bundle_copy), before)  # type: ignore[misc]
        draft = await replica.draft({"frontal": png()}, DraftOptions(top_k=50))
        assert isinstance(draft, RemoteDraft)
        assert {case.images for case in draft.reference_cases} == {()}, "the ingress cannot serve them"
        await replica.__del__()

    try:
        torch.set_num_threads(before + 1)  # as inherited from the process that started Ray
        asyncio.run(lifetime())
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


# --- without Ray ------------------------------------------------------------------------------------------------


def test_only_the_ray_modules_import_ray() -> None:
    for path in sorted((REPOSITORY / "service").rglob("*.py")):
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        assert "ray" not in names or path.parent.name == "ray_app", path


def test_service_works_without_ray_and_the_module_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import service.app, service.__main__\n"
        "from service.ray_app.__main__ import main\n"
        f"sys.exit(main(['--port', '{free_port()}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=START_S)
    assert done.returncode == ray_app.EXIT_SETTINGS, done.stderr
    assert "pip install '.[ray]' in the source tree" in done.stderr
    assert "Traceback" not in done.stderr


@needs_ray
def test_port_in_use_is_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ray_app.main(["--port", str(port)]) == ray_app.EXIT_ADDRESS
    assert f"127.0.0.1:{port} is not available" in capsys.readouterr().err


@needs_ray
def test_missing_bundle_is_reported_before_a_cluster_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert ray_app.main(["--port", str(free_port()), "--bundle", missing]) == ray_app.EXIT_BUNDLE
    assert missing in capsys.readouterr().err


# --- two replicas -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: Unix socket paths have a length limit
    output = tmp_path_factory.mktemp("ray") / "output"
    port = free_port()
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(session),
        "HOME": str(session),  # Ray stores the cluster token there
        "REPORT_BUNDLE": str(bundle),
        "REPORT_PORT": str(port),
        "REPORT_DEVICE": "cpu",
        "REPORT_DECODE_WORKERS": "1",
        "REPORT_API_KEY": KEY,
        "REPORT_REQUEST_TIMEOUT_S": str(DEADLINE_S),
        "REPORT_RAY_OBJECT_STORE_BYTES": str(128 * MIB),
        "REPORT_RAY_CPUS_PER_REPLICA": "0.5",  # two replicas fit on any machine
    }
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.ray_app"], cwd=REPOSITORY, env=environment, stdout=file, stderr=file
        )
    running = Cluster(process, f"http://127.0.0.1:{port}", session, output)
    try:
        wait_for(lambda: "2 replicas of" in running.log(), running)
        wait_for(lambda: health(running) == 200, running)
        yield running
    finally:
        for pid in running.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(START_S)
        shutil.rmtree(session, ignore_errors=True)
        shutil.rmtree(f"/dev/shm/cxr-report-{process.pid}", ignore_errors=True)  # a killed process leaves it behind


def post(client: httpx.Client, image: bytes | None = None, **fields: str) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", png() if image is None else image)}, data=fields)


@needs_ray
def test_replicas_respond_like_a_single_process(cluster: Cluster, client: httpx.Client) -> None:
    studies = [{"frontal": png(90, 120)}, {"lateral": png(100, 80)}, {"frontal": png(64, 64), "lateral": png(70, 90)}]
    with cluster.client() as scaled:
        for study in studies:
            files = {view: ("f", image) for view, image in study.items()}
            found, expected = (c.post("/report", files=files, data={"top_k": "4"}).json() for c in (scaled, client))
            for name in ("findings", "labels", "warnings", "model", "disclaimer"):
                assert found[name] == expected[name], name
            ids, expected_ids = ([case["case_id"] for case in one["reference_cases"]] for one in (found, expected))
            assert ids == expected_ids
            assert {"upload", "images", "queue", "encode", "decode", "total"} <= set(found["timings_ms"])
        health, expected = scaled.get("/health").json(), client.get("/health").json()
        assert health.pop("queue") == {"depth": 0, "waiting": 0, "capacity": 32}
        assert health == {name: value for name, value in expected.items() if name != "queue"}
        for wrong in (b"nonsense", png()[:200], b""):
            refused, expected_refusal = post(scaled, wrong), post(client, wrong)
            assert (refused.status_code, refused.json()) == (expected_refusal.status_code, expected_refusal.json())
            assert refused.headers["content-type"] == PROBLEM


@needs_ray
def test_replicas_have_the_priority_of_the_service(cluster: Cluster) -> None:
    pids = [cluster.process.pid, *cluster.replicas()]
    assert len({os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}) == 1


@needs_ray
def test_stream_sends_all_events_at_the_end(cluster: Cluster) -> None:
    files = {"frontal": ("f", png(90, 120))}
    with cluster.client() as client:
        whole = client.post("/report", files=files).json()
        answer = client.post("/report", files=files, data={"stream": "true"})
        wrong = client.post("/report", files={"frontal": ("f", b"no image")}, data={"stream": "true"})
    (_, cases), *sentences, (last, report) = events(answer.text.split("\n"))
    assert [data["sentence"]["text"] for _, data in sentences] == [one["text"] for one in whole["sentences"]]
    assert (last, report["findings"], report["model"]) == ("report", whole["findings"], whole["model"])
    assert cases["reference_cases"] == report["reference_cases"]
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, PROBLEM)


@needs_ray
def test_requires_the_key_and_refuses_swaps_and_cases(cluster: Cluster) -> None:
    request_id = "0f8fad5bd9cb469fa16570867728950e"
    with cluster.client(Authorization="Bearer of bad news") as client:
        assert post(client).status_code == 401
    with cluster.client(**{"X-Request-ID": request_id}) as client:
        assert client.get("/livez").headers.get_list("x-request-id") == [request_id]
        swap = client.post("/reload")
        assert (swap.status_code, swap.json()["code"]) == (409, "reload_refused")
        assert "serve deploy" in swap.json()["detail"]
        for answer in (client.get("/cases/CXR9001_IM-0001"), client.post("/cases")):
            assert (answer.status_code, answer.json()["code"]) == (403, "cases_off")


@needs_ray
def test_deadline_holds_when_all_replicas_hang(cluster: Cluster) -> None:
    with cluster.client() as client:
        with stopped(cluster.replicas()):
            began = time.monotonic()
            answer = post(client)
            took_s = time.monotonic() - began
        assert (answer.status_code, answer.json()["code"]) == (503, "deadline")
        assert DEADLINE_S <= took_s < DEADLINE_S + 10
        wait_for(lambda: post(client).status_code == 200, cluster)
        assert client.get("/health").json()["queue"]["depth"] == 0


@needs_ray
def test_killing_a_replica_under_load_loses_no_response(cluster: Cluster) -> None:
    threads, each = 8, 4
    image = png(3000, 3000)  # slow to decode, so that the victim is busy
    with cluster.client() as client:
        right = post(client, image).json()["findings"]
    before = cluster.retries()
    victim, other = cluster.replicas()
    answers: list[httpx.Response] = []
    under_way = threading.Event()

    def work() -> None:
        with cluster.client() as client:
            client.headers["X-Request-ID"] = CANARY  # a test below searches the logs for it
            for _ in range(each):
                answers.append(post(client, image))
                if len(answers) > 2 * threads:
                    under_way.set()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        assert under_way.wait(START_S)
        time.sleep(0.3)  # responses arrive in batches: not right after those of the victim
        os.kill(victim, signal.SIGKILL)
        for one in working:
            one.result()  # raises if a request got no response
    assert len(answers) == threads * each
    seen = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
    assert set(seen) <= {(200, None), (503, "replica_lost"), (503, "deadline")}, seen
    assert seen[200, None] >= threads * each // 2, seen
    assert {answer.json()["findings"] for answer in answers if answer.status_code == 200} == {right}
    assert cluster.retries() > before
    wait_for(lambda: len(set(cluster.replicas()) - {victim, other}) == 1, cluster)
    wait_for(lambda: "replicas: 2 with" in cluster.log().rpartition("replicas: 1 with")[2], cluster)
    assert health(cluster) == 200


@needs_ray
def test_reports_not_ready_until_replicas_are_back(cluster: Cluster) -> None:
    lost = cluster.replicas()
    with cluster.client() as client:
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: health(cluster) == 503, cluster)
        answer = post(client)
        assert (answer.status_code, answer.json()["code"]) == (503, "loading")
        assert client.get("/livez").status_code == 200
        wait_for(lambda: health(cluster) == 200, cluster)
        assert post(client).status_code == 200
    assert not set(lost) & set(cluster.replicas())


@needs_ray
def test_no_patient_data_is_logged_or_written(cluster: Cluster) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("PatientName", CANARY)
    noise = np.random.default_rng(0).integers(0, 256, (700, 700), np.uint8)
    image = encode(Image.fromarray(noise), pnginfo=about)
    assert len(image) > 300_000  # too large for a message, so it uses shared memory
    headers = {"X-Request-ID": CANARY, "X-Patient": CANARY, "User-Agent": CANARY}
    with cluster.client(**headers) as client:
        for path, name, body in (
            ("/report", "frontal", image),
            ("/report", "frontal", image[:-500]),
            (f"/report?{CANARY}=1", "frontal", image),
            ("/report", CANARY, image),
            (f"/{CANARY}", "frontal", image),
        ):
            client.post(path, files={name: (f"{CANARY}.png", body)})
        with pytest.raises(httpx.ReadTimeout), stopped(cluster.replicas()):  # the client disconnects
            client.post("/report", files={"frontal": (f"{CANARY}.png", image)}, timeout=1)
    time.sleep(2)  # logs are buffered
    written = [file for file in cluster.session.rglob("*") if file.is_file()]
    assert len(written) > 10
    for file in [*written, cluster.output]:
        content = file.read_bytes()
        assert CANARY.encode() not in content, file.name
        assert image[1000:1100] not in content, file.name


@needs_ray
def test_ray_keeps_requests_in_memory_and_sends_no_usage_data(cluster: Cluster) -> None:
    (raylet,) = (name for name in cluster.descendants().values() if "/raylet/raylet " in name)
    assert "--plasma_directory=/dev/shm " in raylet
    assert f"--fallback_directory=/dev/shm/cxr-report-{cluster.process.pid} " in raylet
    assert '"automatic_object_spilling_enabled": false' in unpacked_configuration(cluster)
    assert any("Usage reporting is disabled" in path.read_text() for path in cluster.session.rglob("dashboard.log"))


def unpacked_configuration(cluster: Cluster) -> str:
    """Configuration that the cluster was started with."""
    (server,) = (name for name in cluster.descendants().values() if "/gcs_server " in name)
    packed = re.search(r"--config_list=(\S+)", server)
    assert packed
    return base64.b64decode(packed[1]).decode()


@needs_ray
def test_sigterm_drains_in_flight_requests(cluster: Cluster) -> None:
    """Runs last: it stops the cluster."""
    with cluster.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        with stopped(cluster.replicas()):
            waiting = [pool.submit(post, client) for _ in range(4)]
            wait_for(lambda: client.get("/health").json()["queue"]["depth"] == 4, cluster)
            cluster.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").json().get("code") == "stopping", cluster)
        assert [one.result().status_code for one in waiting] == [200] * 4
    assert cluster.process.wait(START_S) == 0
    assert not Path(f"/dev/shm/cxr-report-{cluster.process.pid}").exists()
