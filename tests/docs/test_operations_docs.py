"""Variables, problems, users, alert rules and metrics that the operator's page names are those that there are."""

import inspect
import json
import re
from typing import Any

import pytest
import yaml
from botocore import configprovider
from prometheus_client import generate_latest

from service.api.errors import PROBLEMS
from service.app import create_app
from service.settings import Settings
from tests.helpers.exposition import Scrape
from tests.helpers.paths import ROOT
from tests.helpers.redis_users import DEPLOY, USERS
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import Place
from worker.queue.registry import ModelInfo, WorkerInfo, announce, publish_metrics
from worker.queue.rq import STATES
from worker.settings import WorkerSettings
from worker.telemetry import WorkerMetrics

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_variables_alerts_problems_and_users_exist() -> None:
    known = {f"SEMPLES_{field.upper()}" for field in Settings.model_fields} | {"SEMPLES_LOG"}
    known |= {f"SEMPLES_{field.upper()}" for field in WorkerSettings.__annotations__}
    known |= set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    known |= set(re.findall(r"AWS_[A-Z_]+", inspect.getsource(configprovider)))
    scripts = (DEPLOY / "from-files").read_text()
    named = set(re.findall(r"\b(?:SEMPLES|AWS|REDIS)_[A-Z_]+\b", PAGE))
    assert {name for name in named if name.removesuffix("_FILE") not in scripts} <= known
    assert set(re.findall(r"\bSemples[A-Z]\w+", PAGE)) <= {rule["alert"] for rule in rules()}
    assert set(re.findall(r"503 `([\w-]+)`", PAGE)) <= PROBLEMS.keys()
    for user in (*USERS, "operator", "health"):
        assert f"`{user}`" in PAGE


SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")


@pytest.fixture
def scrape(place: Place) -> Scrape:
    model = ModelInfo.model_validate(Info().to_json())
    info = WorkerInfo(name="w", model=model.ref, device="cuda", host="h", pid=1)
    announce(place.redis, info, model)
    meters = WorkerMetrics(device_memory=lambda: 2)
    publish_metrics(place.redis, "w", meters.exposition(), lease=15)
    app = create_app(Settings(redis_url=place.url), place.redis, place.blobs)
    return Scrape(generate_latest(app.state.api.metrics).decode())


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names: words that are no functions, keywords or labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    words = re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)
    return set(words) - {"unless", "and", "or", "sum"}


def panels() -> list[dict[str, Any]]:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_every_rule_is_whole_and_named_once() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 5
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_every_metric_of_rules_and_panels_exists(scrape: Scrape) -> None:
    known = {family + suffix for family in scrape.families for suffix in SUFFIXES}
    of_rules = {rule["alert"]: metrics_of(rule["expr"]) for rule in rules()}
    of_panels = {
        panel["title"]: set().union(*(metrics_of(each["expr"]) for each in panel["targets"])) for panel in panels()
    }
    assert len(of_panels) == len(panels()) >= 20
    assert all([*of_rules.values(), *of_panels.values()])
    assert set().union(*of_rules.values()) - known <= {"up"}  # Prometheus's own
    assert set().union(*of_panels.values()) - known == set()
    subjects = {"queue", "worker", "http", "webhooks", "dead", "lease", "redis"}
    assert {name.split("_")[1] for names in of_panels.values() for name in names} >= subjects


def test_panels_stand_side_by_side_and_ask_one_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(cell[0] for cell in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")


def test_every_label_value_of_a_rule_exists() -> None:
    whole = " ".join(rule["expr"] for rule in rules())
    assert set(re.findall(r'outcome="(\w+)"', whole)) == {"failed"}
    assert set(re.findall(r'\bstate="(\w+)"', whole)) == {"ready", "troubled"}


def test_the_table_names_all_metrics_and_no_others(scrape: Scrape) -> None:
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(semples_\w+)`", PAGE, re.M)}
    ours = {family for family in scrape.families if not family.startswith(("process_", "semples_worker_process_"))}
    assert documented == ours
    for state in STATES:
        assert f"`{state}`" in PAGE
    for family in ours:
        kind = scrape.families[family].type
        assert re.search(rf"^\| `{family}(_total)?` \| {kind} \|", PAGE, re.M)
