"""Commands about bundles: new-bundle, export-bundle and explain-prompts."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.cli.options import DeviceOption, OverwriteOption, ThreadsOption, WorkArgument, pick_device

if TYPE_CHECKING:
    from models.bundle.manifest import BundleInfo, Measurement, NearNoun


def new(
    output: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    clip: Annotated[
        str, typer.Option("--clip", help="open_clip's name of a CLIP with a ViT, such as ViT-B-16, or local-dir:PATH.")
    ],
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip's name of its weights, such as openai, or a file.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", help="File of 'index name' lines. Default: the 80 classes of COCO."),
    ] = None,
    method: Annotated[str, typer.Option(help="gradcam (CLIP-ES) or dense (NACLIP).")] = "gradcam",
    name: Annotated[str | None, typer.Option(help="Name of the bundle. Default: after the CLIP.")] = None,
    licence: Annotated[str, typer.Option(help="Under which others may use the weights.")] = "as the CLIP's weights",
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Make a bundle that serves from a CLIP alone, without training: its classes, or any label."""
    from models.bundle.manifest import bundle_paths, find_bundle, read_info
    from models.config import training_free_config
    from models.data.classes import read_class_list
    from models.data.provenance import refuse_foreign
    from models.training.export import export_bundle
    from models.training.run import Run

    if pretrained is None and not clip.startswith(("local-dir:", "bundle:")):
        raise ValueError(f"expected --pretrained with the name or the file of its weights for {clip}, got none")
    refuse_foreign(bundle_paths(output), overwrite=overwrite)
    config = training_free_config(
        name or re.sub("[^a-z0-9]+", "-", Path(clip.rpartition(":")[2]).name.lower()).strip("-"),
        clip,
        pretrained,
        method=method,
    )
    known = read_class_list(classes) if classes else read_info(find_bundle("coco-demo")).classes
    with tempfile.TemporaryDirectory() as nothing:
        info = export_bundle(
            Run(config, known, Path(nothing), pick_device(device, threads)),
            output,
            stage="zero-shot",
            licence=licence,
            trained_on=f"nothing beyond {clip} {pretrained or ''}".strip(),
            parts=["text_tower"],
        )
    _print_size(info, output)


def export(
    work: WorkArgument,
    output: Annotated[Path, typer.Option("--output", help="Folder of the bundle.")],
    licence: Annotated[str, typer.Option(help="Under which others may use the weights.")],
    trained_on: Annotated[str, typer.Option(help="What it was trained on, in words.")],
    stage: Annotated[
        str, typer.Option(help="zero-shot (before training), train-generator or refine-generator.")
    ] = "refine-generator",
    metrics: Annotated[
        Path | None,
        typer.Option(help="JSON list of {name, value, data, rule: fixed|oracle} for the manifest."),
    ] = None,
    class_thresholds: Annotated[
        Path | None,
        typer.Option(help="thresholds.json of 'semples rethreshold --per-class', as defaults."),
    ] = None,
    segmenter: Annotated[bool, typer.Option(help="Include the segmenter, if the run has one.")] = True,
    open_vocabulary: Annotated[
        bool,
        typer.Option(
            "--open-vocabulary",
            help="Include CLIP's text tower, for labels that the bundle was not trained on.",
        ),
    ] = False,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Pack what a run has trained into the one folder that predict and serve load."""
    from models.bundle.manifest import bundle_paths
    from models.data.provenance import refuse_foreign
    from models.io import read_json
    from models.training.export import BundlePart, export_bundle, with_class_thresholds
    from models.training.run import open_run

    refuse_foreign(bundle_paths(output), overwrite=overwrite)
    run = open_run(work, device=pick_device(device, threads))
    if class_thresholds:
        run = with_class_thresholds(run, read_json(class_thresholds))
    parts: dict[BundlePart, bool] = {"segmenter": segmenter, "text_tower": open_vocabulary}
    info = export_bundle(
        run,
        output,
        stage=stage,
        licence=licence,
        trained_on=trained_on,
        metrics=_read_metrics(metrics) if metrics else (),
        parts=[part for part, included in parts.items() if included],
    )
    _print_size(info, output)


def explain_prompts(
    bundle_or_work: Annotated[
        str, typer.Argument(help="A bundle's name or folder, or a run's work directory.")
    ] = "coco-demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Show what each class's background prompt learned: the nouns nearest to it."""
    if (Path(bundle_or_work) / "learn-prompts").is_dir():
        nouns = _prompt_neighbors(Path(bundle_or_work), device, threads)
    else:
        from models.bundle.manifest import find_bundle, read_info

        nouns = read_info(find_bundle(bundle_or_work)).nearest_nouns
    if not nouns:
        raise ValueError(f"expected learned prompts in {bundle_or_work}, got none")
    if as_json:
        rows = {name: [asdict(each) for each in found] for name, found in nouns.items()}
        print(json.dumps(rows, indent=2))
        return
    table = Table("class", "nearest nouns (cosine)")
    for name, found in nouns.items():
        table.add_row(name, ", ".join(f"{each.noun} {each.similarity:.2f}" for each in found))
    Console().print(table)


def _prompt_neighbors(work: Path, device: str, threads: int) -> dict[str, tuple[NearNoun, ...]]:
    from models.training.export import prompt_neighbors
    from models.training.prompts import learned_prompts
    from models.training.run import open_run, supervision

    run = open_run(work, device=pick_device(device, threads))
    embeddings = learned_prompts(run)["embeddings"]
    clip, _ = supervision(run)
    return prompt_neighbors(run, clip, embeddings)


def _print_size(info: BundleInfo, folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{info.name} {info.version}: {size / 1e6:.1f} MB in {folder}")


def _read_metrics(path: Path) -> list[Measurement]:
    from models.bundle.manifest import Measurement

    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError(f"expected a JSON list in {path}, got {type(content).__name__}")
    return [Measurement.model_validate(each) for each in content]
