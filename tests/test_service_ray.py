"""Scale-out: two replicas of the tiny bundle under a real Ray Serve, one of them killed under load."""

from __future__ import annotations

import ast
import base64
import concurrent.futures
import contextlib
import importlib.util
import io
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.raw_http import events
from service.ray_app import __main__ as ray_app
from service.ray_app import cluster as ray_cluster
from service.settings import MIB
from tests.support.paths import REPOSITORY
from tests.support.service import PROBLEM, free_port, png, ready_client

RAY = importlib.util.find_spec("ray") is not None and sys.platform == "linux"
needs_ray = pytest.mark.skipif(not RAY, reason="needs Linux and pip install 'cxr-report[ray]'")
START_S = 400.0  # processes that each import torch, which takes minutes where all cores are taken
ANSWER_S = 100.0  # no answer by then: it hangs
KEY = "a-key-that-only-tests-know"
DEADLINE_S = 10.0
CANARY = "Canary-Patient-4711"


# --- settings: no cluster ---------------------------------------------------------------------------------------


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_images_never_go_to_a_disk_for_want_of_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, scale = ray_cluster.read_settings({"object_store_bytes": 2**60})
    with pytest.raises(ValueError, match="REPORT_RAY_OBJECT_STORE_BYTES"):
        ray_cluster._store_bytes(settings, scale)
    monkeypatch.setattr(ray_cluster, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(ValueError, match="files on the disk"):
        ray_cluster._store_bytes(settings, scale)


def test_replicas_that_cannot_fit_are_refused_before_anybody_waits_for_them() -> None:
    _, scale = ray_cluster.read_settings({"replicas": 3, "gpus_per_replica": 0.5})
    ray_cluster._check_resources({"CPU": 3.0, "GPU": 1.5}, scale)
    with pytest.raises(ValueError, match=r"need 1\.5, but the cluster has 1"):
        ray_cluster._check_resources({"CPU": 3.0, "GPU": 1.0}, scale)
    with pytest.raises(ValueError, match="REPORT_RAY_CPUS_PER_REPLICA"):
        ray_cluster._check_resources({"CPU": 2.0, "GPU": 2.0}, scale)


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


def test_the_service_needs_no_ray_and_the_module_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import service.app, service.__main__\n"
        "from service.ray_app.__main__ import main\n"
        f"sys.exit(main(['--port', '{free_port()}']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=START_S)
    assert done.returncode == ray_app.EXIT_SETTINGS, done.stderr
    assert "pip install 'cxr-report[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


@needs_ray
def test_a_taken_port_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert ray_app.main(["--port", str(port)]) == ray_app.EXIT_ADDRESS
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err


@needs_ray
def test_a_missing_bundle_is_told_before_a_cluster_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert ray_app.main(["--port", str(free_port()), "--bundle", missing]) == ray_app.EXIT_BUNDLE
    assert missing in capsys.readouterr().err


# --- two replicas -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A running `python -m service.ray_app`."""

    process: subprocess.Popen[bytes]
    url: str
    session: Path
    output: Path

    def client(self, **headers: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}", **headers}
        return httpx.Client(base_url=self.url, timeout=ANSWER_S, headers=headers)

    def descendants(self) -> dict[int, str]:
        """Processes that came of this one, by id, and their command lines."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                names[int(entry.name)] = name.replace(b"\0", b" ").decode(errors="replace")
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: names[pid] for pid in found if pid in names}

    def replicas(self) -> list[int]:
        """Processes that hold a model."""
        return sorted(pid for pid, name in self.descendants().items() if ":ModelReplica" in name)

    def retries(self) -> int:
        with self.client() as client:
            found = re.search(r"^report_retries_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert found
        return int(float(found[1]))

    def log(self) -> str:
        return self.output.read_text(errors="replace")


@pytest.fixture(scope="module")
def cluster(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: the paths of Unix sockets are bounded
    output = tmp_path_factory.mktemp("ray") / "output"
    port = free_port()
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(session),
        "HOME": str(session),  # where Ray keeps its cluster's token
        "REPORT_BUNDLE": str(bundle),
        "REPORT_PORT": str(port),
        "REPORT_DEVICE": "cpu",
        "REPORT_API_KEY": KEY,
        "REPORT_REQUEST_TIMEOUT_S": str(DEADLINE_S),
        "REPORT_RAY_OBJECT_STORE_BYTES": str(128 * MIB),
        "REPORT_RAY_CPUS_PER_REPLICA": "0.5",  # two fit on any machine
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
        shutil.rmtree(f"/dev/shm/cxr-report-{process.pid}", ignore_errors=True)  # what is left where it was killed


def wait_for(condition: Callable[[], bool], running: Cluster, within_s: float = START_S) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert running.process.poll() is None, running.log()
        assert time.monotonic() < until, running.log()
        time.sleep(0.1)


def health(running: Cluster) -> int:
    try:
        with running.client() as client:
            return client.get("/health").status_code
    except httpx.TransportError:
        return 0


def post(client: httpx.Client, image: bytes | None = None, **fields: str) -> httpx.Response:
    return client.post("/report", files={"frontal": ("f", png() if image is None else image)}, data=fields)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that are there and do nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@needs_ray
def test_it_answers_as_the_service_in_one_process_does(cluster: Cluster, bundle: Path) -> None:
    studies = [{"frontal": png(90, 120)}, {"lateral": png(100, 80)}, {"frontal": png(64, 64), "lateral": png(70, 90)}]
    with ready_client(bundle) as single, cluster.client() as scaled:
        for study in studies:
            files = {view: ("f", image) for view, image in study.items()}
            mine, theirs = (c.post("/report", files=files, data={"top_k": "4"}).json() for c in (scaled, single))
            for name in ("findings", "labels", "warnings", "model", "disclaimer"):
                assert mine[name] == theirs[name], name
            assert [case["case_id"] for case in mine["reference_cases"]] == [
                case["case_id"] for case in theirs["reference_cases"]
            ]
            assert {"upload", "images", "queue", "encode", "decode", "total"} <= set(mine["timings_ms"])
        mine, theirs = scaled.get("/health").json(), single.get("/health").json()
        assert mine.pop("queue") == {"depth": 0, "waiting": 0, "capacity": 32}
        theirs.pop("queue")
        assert mine == theirs
        for wrong in (b"nonsense", png()[:200], b""):
            mine, theirs = post(scaled, wrong), post(single, wrong)
            assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json())
            assert mine.headers["content-type"] == PROBLEM


@needs_ray
def test_a_stream_tells_all_at_the_end(cluster: Cluster) -> None:
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
def test_it_asks_for_the_key_and_gives_one_request_id(cluster: Cluster) -> None:
    mine = "0f8fad5bd9cb469fa16570867728950e"
    with cluster.client(Authorization="Bearer of bad news") as client:
        assert post(client).status_code == 401
    with cluster.client(**{"X-Request-ID": mine}) as client:
        assert client.get("/livez").headers.get_list("x-request-id") == [mine]


@needs_ray
def test_a_swap_in_place_is_refused_with_what_to_do_instead(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = client.post("/reload")
    assert (answer.status_code, answer.json()["code"]) == (409, "reload_refused")
    assert "serve deploy" in answer.json()["detail"]


@needs_ray
def test_cases_are_not_looked_up_in_replicas(cluster: Cluster) -> None:
    with cluster.client() as client:
        for answer in (client.get("/cases/CXR9001_IM-0001"), client.post("/cases")):
            assert (answer.status_code, answer.json()["code"]) == (403, "cases_off")


@needs_ray
def test_a_deadline_is_kept_when_all_replicas_hang(cluster: Cluster) -> None:
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
def test_a_replica_killed_under_load_costs_no_answer(cluster: Cluster) -> None:
    threads, each = 8, 6
    image = png(3000, 3000)  # decoded for longer than it takes to hand a request over: the victim will be at work
    with cluster.client() as client:
        right = post(client, image).json()["findings"]
    before = cluster.retries()
    victim, other = cluster.replicas()
    answers: list[httpx.Response] = []
    under_way = threading.Event()

    def work() -> None:
        with cluster.client() as client:
            client.headers["X-Request-ID"] = CANARY  # looked for in the logs by a test below
            for _ in range(each):
                answers.append(post(client, image))
                if len(answers) > 2 * threads:
                    under_way.set()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        assert under_way.wait(START_S)
        time.sleep(0.3)  # answers come a batch at a time: not at the moment when the victim has handed out its own
        os.kill(victim, signal.SIGKILL)
        for one in working:
            one.result()  # raises where a request got no answer
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
def test_without_any_replica_it_says_so_until_they_are_back(cluster: Cluster) -> None:
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
def test_nothing_of_a_patient_is_logged_or_written(cluster: Cluster) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("PatientName", CANARY)
    noise = np.random.default_rng(0).integers(
        0, 256, (700, 700), np.uint8
    )  # too large for a message: goes to the store
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG", pnginfo=about)
    image = encoded.getvalue()
    assert len(image) > 300_000
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
        with pytest.raises(httpx.ReadTimeout), stopped(cluster.replicas()):  # a client that leaves
            client.post("/report", files={"frontal": (f"{CANARY}.png", image)}, timeout=1)
    time.sleep(2)  # logs are written late
    written = [file for file in cluster.session.rglob("*") if file.is_file()]
    assert len(written) > 10
    for file in [*written, cluster.output]:
        content = file.read_bytes()
        assert CANARY.encode() not in content, file.name
        assert image[1000:1100] not in content, file.name


@needs_ray
def test_ray_keeps_requests_in_memory_and_reports_nothing(cluster: Cluster) -> None:
    (raylet,) = (name for name in cluster.descendants().values() if "/raylet/raylet " in name)
    assert "--plasma_directory=/dev/shm " in raylet
    assert f"--fallback_directory=/dev/shm/cxr-report-{cluster.process.pid} " in raylet
    assert '"automatic_object_spilling_enabled": false' in unpacked_configuration(cluster)
    assert any("Usage reporting is disabled" in path.read_text() for path in cluster.session.rglob("dashboard.log"))


def unpacked_configuration(cluster: Cluster) -> str:
    """What the cluster's own store of settings was started with."""
    (server,) = (name for name in cluster.descendants().values() if "/gcs_server " in name)
    packed = re.search(r"--config_list=(\S+)", server)
    assert packed
    return base64.b64decode(packed[1]).decode()


@needs_ray
def test_sigterm_answers_what_is_in_the_house(cluster: Cluster) -> None:
    """The last one: nothing runs afterwards."""
    with cluster.client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        with stopped(cluster.replicas()):
            waiting = [pool.submit(post, client) for _ in range(4)]
            wait_for(lambda: client.get("/health").json()["queue"]["depth"] == 4, cluster)
            cluster.process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/health").json().get("code") == "stopping", cluster)
        assert [one.result().status_code for one in waiting] == [200] * 4
    assert cluster.process.wait(START_S) == 0
    assert not Path(f"/dev/shm/cxr-report-{cluster.process.pid}").exists()
