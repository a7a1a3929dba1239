"""Reading what a client wishes from its form and headers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fastapi import UploadFile

from models.data.labels import split_labels
from models.inference.masks import MaskOptions
from service.api.forms import PseudoMaskForm, build_request, parse_wait, wants_png
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import png
from worker.queue.registry import ModelInfo


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        (["cat", "bowl"], ("cat", "bowl")),
        (["cat,bowl"], ("cat", "bowl")),
        (["cat; bowl"], ("cat", "bowl")),
        ([" cat , dining table ", "", "bowl,"], ("cat", "dining table", "bowl")),
        ([], ()),
        ([",,"], ()),
    ],
)
def test_split_labels(fields: list[str], labels: tuple[str, ...]) -> None:
    assert split_labels(fields) == labels


@pytest.mark.parametrize(
    ("query", "prefer", "seconds"),
    [
        (None, None, 0),
        (5.5, None, 5.5),
        (5.0, "wait=20", 5),
        (0.0, "wait=20", 0),
        (None, "wait=20", 20),
        (None, "respond-async, wait=20", 20),
        (None, 'handling=lenient; wait="7"', 7),
        (None, "Wait = 3", 3),
        (None, "wait=1000", 60),
        (None, "wait=soon", 0),
        (None, "nowait=3", 0),
        (None, "wait=" + "9" * 500, 60),
    ],
)
def test_parse_wait(query: float | None, prefer: str | None, seconds: float) -> None:
    assert parse_wait(query, prefer) == seconds


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", False),
        ("application/json", False),
        ("image/png", True),
        ("Image/PNG;q=0.9", True),
        ("image/png, */*;q=0.1", True),
        ("application/json, image/png", False),
        ("image/*", False),
    ],
)
def test_wants_png(accept: str, wanted: bool) -> None:
    assert wants_png(accept) is wanted


@pytest.mark.parametrize(
    ("fields", "background"),
    [
        # Of the model's class thresholds, those of the labels alone.
        ({}, {"background_threshold": 0.4, "class_thresholds": {"bowl": 0.6}}),
        ({"labels": ["cat"]}, {"background_threshold": 0.4}),
        # Who names a rule means it for every class.
        ({"background_threshold": 0.4}, {"background_threshold": 0.4}),
        ({"background_power": 2}, {"background_power": 2.0}),
    ],
)
def test_the_background_is_the_models_unless_named(
    fields: dict[str, Any], background: dict[str, Any]
) -> None:
    model = ModelInfo.model_validate(Info().to_json())
    image = UploadFile(io.BytesIO(png()))
    form = PseudoMaskForm.model_validate({"image": image, "labels": ["bowl,cat"], **fields})
    checked = build_request(form, png(), model, max_pixels=10**6)
    assert checked.pixels == 30 * 20
    assert checked.request.options == MaskOptions(refine="none", min_confidence=0.0, **background)
