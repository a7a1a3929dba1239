"""The real thing: photos through a service of a real bundle are what the command line makes of them, file by file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.bundle.bundle import load_bundle
from models.data.labels import read_folder
from models.data.mask_folder import read_results
from models.inference.folder import MaskJob, make_here, make_pseudo_masks
from models.inference.predictor import Predictor
from service.client import Client
from tests.service.local.test_bundle import serving_bundle


def test_a_folder_through_a_service_is_the_command_lines(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path
) -> None:
    predictor = Predictor(load_bundle(tiny_bundle, device=torch.device("cpu")))
    samples = read_folder(tiny_data / "images", tiny_data / "labels.csv", predictor.info.classes)
    here, there = tmp_path / "here", tmp_path / "there"
    job = MaskJob(here, predictor.options(refine="pamr", min_confidence=0.1), save_scores=True)
    make = partial(make_here, predictor, job)
    make_pseudo_masks(predictor.info, samples, job, make, on_image=lambda: None)

    where = (tiny_data / "images", tiny_data / "labels.csv", there)
    with serving_bundle(tiny_bundle, tmp_path / "data") as stack, Client(stack.url) as client:
        send = partial(client.batch, *where, save_scores=True, refine="pamr", min_confidence=0.1)
        assert send().made == len(samples)
        # The command line goes on with what the service made, and the other way round.
        outcome = make_pseudo_masks(
            predictor.info,
            samples,
            MaskJob(there, job.options, save_scores=True),
            lambda rest: iter(()),
            on_image=lambda: None,
        )
        assert (outcome.made, outcome.kept) == (0, len(samples))
        assert client.batch(
            *where[:2], here, save_scores=True, refine="pamr", min_confidence=0.1
        ).kept == len(samples)

    for name in ("settings.json", "classes.txt"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    for sample in samples:
        mask = f"masks/{sample.stem}.png"
        assert (there / mask).read_bytes() == (here / mask).read_bytes()
        assert (there / "scores" / f"{sample.stem}.npz").is_file()
    made, known = (read_results(each / "results.jsonl") for each in (there, here))
    assert close(made) == close(known)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (there, here)]
    assert close(summaries[0]) == close(summaries[1])


def close(value: Any) -> Any:
    """The same with room for rounding."""
    if isinstance(value, dict):
        return {key: close(each) for key, each in value.items()}
    if isinstance(value, list):
        return [close(each) for each in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
