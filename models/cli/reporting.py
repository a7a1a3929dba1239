"""The command that writes a run's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from models.cli.options import (
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    ThreadsOption,
    WorkArgument,
    pick_device,
    progress,
)

if TYPE_CHECKING:
    from models.run import Run


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("report")(report)


def report(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    output: Annotated[Path, typer.Option("--output", help="The HTML file.")],
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="Output of make-pseudo-masks. Default: WORK/pseudo-masks."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Of this run. Default: WORK/bundle, else packed anew."),
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option("--ground-truth", help="Folder of STEM.png label maps.")
    ] = None,
    photos: Annotated[
        int, typer.Option(min=0, max=100, help="Of how many photos to show pictures.")
    ] = 6,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Write one HTML file about a run, however far it came: curves, tables, pictures, what the prompts learned."""
    from models.data.folder import read_folder
    from models.report import Sources, write_report
    from models.run import open_run

    if masks is not None and not masks.is_dir():
        raise ValueError(f"expected the output folder of make-pseudo-masks, got {masks}")
    run = open_run(work, device=pick_device(device, threads))
    samples = read_folder(images, labels, run.classes)
    with _bundle_of(run, bundle) as found, progress("report (percent)", 100) as (bar, task):
        sources = Sources(samples, masks or work / "pseudo-masks", found, ground_truth)
        path = write_report(
            run,
            sources,
            output,
            photos=photos,
            on_share=lambda share: bar.update(task, completed=round(100 * share)),
        )
        bar.update(task, completed=100)
    print(f"written to {path}")


@contextmanager
def _bundle_of(run: Run, given: str | None) -> Iterator[Path | None]:
    """Find the run's bundle, or pack what it has trained into one for the time being; None if that cannot be done."""
    from models.bundle_info import MANIFEST, find_bundle

    own = run.work / "bundle"
    if given is not None or (own / MANIFEST).is_file():
        yield find_bundle(given or str(own))
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) if _pack(run, Path(folder)) else None


def _pack(run: Run, folder: Path) -> bool:
    from models.export import STAGES, export_bundle

    trained = [each for each in STAGES if (run.work / each / "generator.safetensors").is_file()]
    stage = [STAGES[0], *trained][-1]
    try:
        export_bundle(run, folder, stage=stage, licence="", trained_on="", parts=())
    except ValueError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(
            f"semples: no pictures, for the bundle cannot be packed: {error}", markup=False
        )
        return False
    return True
