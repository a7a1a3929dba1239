"""The schema in docs is the app's, and the app does as it says."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.api.openapi import _schema_text
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png, wait_for

COMMITTED = ROOT / "docs" / "openapi.json"
# The first few of the long run's.
EXAMPLES = pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.slow)])

SCHEMA = schemathesis.openapi.from_dict(json.loads(COMMITTED.read_text(encoding="utf-8")))
OPERATIONS = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations()}


def can_be_wrong(label: str) -> bool:
    """Whether a request has parts that the schema bounds; a path may hold any word."""
    raw = OPERATIONS[label].definition.raw
    places = {each["in"] for each in raw.get("parameters", ())}
    return "query" in places or "requestBody" in raw


def test_the_committed_schema_is_the_apps() -> None:
    committed = COMMITTED.read_text(encoding="utf-8")
    assert committed == _schema_text(), "run: python -m service.api.openapi"


@pytest.fixture(scope="module")
def impatient(place: Place, running_worker: WorkerProcess) -> Iterator[httpx.Client]:
    running_worker.ensure()
    with http_api(place, max_waiting=0) as api:  # whoever would wait is answered at once
        yield api


@pytest.fixture(scope="module")
def finished(impatient: httpx.Client) -> str:
    """Id of a job that has files."""
    posted = impatient.post("/pseudo-mask", files={"image": png()}, data={"labels": "cat"})
    path = posted.headers["Location"]
    wait_for(lambda: impatient.get(path).json()["status"] == "finished")
    return path.rpartition("/")[2]


def hold(cases: Any, check: Callable[[Any], None], examples: int) -> None:
    @given(case=cases)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Any) -> None:
        check(case)

    holds()


@EXAMPLES
@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
        *((label, GenerationMode.NEGATIVE) for label in OPERATIONS if can_be_wrong(label)),
    ],
)
def test_the_app_does_as_its_schema_says(
    label: str, mode: GenerationMode, examples: int, impatient: httpx.Client
) -> None:
    # No schema can say which bytes are an image, which labels a model knows, and the like.
    excluded = [positive_data_acceptance] if label.startswith("POST") else []

    def check(case: Any) -> None:
        base = str(impatient.base_url)
        case.call_and_validate(base_url=base, timeout=20, excluded_checks=excluded)

    hold(OPERATIONS[label].as_strategy(mode), check, examples)


@EXAMPLES
@pytest.mark.parametrize("label", [each for each in OPERATIONS if each.startswith("GET /jobs/{job_id}")])
def test_of_a_finished_job_as_well(label: str, examples: int, impatient: httpx.Client, finished: str) -> None:
    def check(case: Any) -> None:
        case.path_parameters["job_id"] = finished
        case.call_and_validate(
            base_url=str(impatient.base_url),
            timeout=20,
            excluded_checks=[positive_data_acceptance],  # two rules for the background
        )

    hold(OPERATIONS[label].as_strategy(), check, examples)
