"""The alert rules for Prometheus: valid, tested, and based on existing metrics."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.paths import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
PROMTOOL = shutil.which("promtool", path=f"{os.environ.get('PROMTOOL_DIR', '')}:{os.environ['PATH']}")


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    listed: list[dict[str, str]] = group["rules"]
    return listed


@pytest.mark.skipif(
    PROMTOOL is None,
    reason="no promtool on this machine (Debian: apt install prometheus; or PROMTOOL_DIR names its folder)",
)
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts.test.yml"]
)
def test_promtool_agrees(command: str) -> None:
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *command.split()], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_rules_use_existing_metrics() -> None:
    metrics = pytest.importorskip("service.metrics", reason="this version of the service has no /metrics")
    families = {family.name for family in metrics.Metrics().registry.collect()}
    read = {name for rule in rules() for name in re.findall(r"\breport_[a-z_]+", rule["expr"])}
    assert read
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in read} <= families


def test_every_rule_is_tested_and_described() -> None:
    names = {rule["alert"] for rule in rules()}
    tried = set(re.findall(r"alertname: (\w+)", (DEPLOY / "alerts.test.yml").read_text()))
    described = (REPOSITORY / "docs" / "deployment.md").read_text()
    assert tried == names
    assert all(f"`{name}`" in described for name in names)
