"""What the operator's page names is there."""

from __future__ import annotations

import inspect
import re

import pytest
import yaml
from botocore import configprovider

from service.api.errors import PROBLEMS
from service.settings import Settings
from tests.helpers.paths import ROOT
from tests.helpers.redis_users import DEPLOY, USERS
from worker.settings import WorkerSettings

PAGE = (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", PAGE))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / "docs" / target).exists()


def test_variables_alerts_problems_and_users_exist() -> None:
    known = {f"SEMPLES_{field.upper()}" for field in Settings.model_fields} | {"SEMPLES_LOG"}
    known |= {f"SEMPLES_{field.upper()}" for field in WorkerSettings.__annotations__}
    known |= set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    known |= set(re.findall(r"AWS_[A-Z_]+", inspect.getsource(configprovider)))
    scripts = (DEPLOY / "from-files").read_text()
    named = set(re.findall(r"\b(?:SEMPLES|AWS|REDIS)_[A-Z_]+\b", PAGE))
    assert {name for name in named if name.removesuffix("_FILE") not in scripts} <= known
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"\bSemples[A-Z]\w+", PAGE)) <= alerts
    assert set(re.findall(r"503 `([\w-]+)`", PAGE)) <= PROBLEMS.keys()
    for user in (*USERS, "operator", "health"):
        assert f"`{user}`" in PAGE
