"""``semples submit``: send a photo, or a folder of them, to a running service."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from models.data.classes import split_labels
from models.data.mask_files import OVERLAY, check_results, result_paths
from models.data.mask_folder import SUMMARY
from models.data.photo_files import naming, read_photo
from models.data.photos import describe_rules
from models.io import write_atomically, write_json
from models.messages import accept_any_output, one_line, printable
from service.client import (
    Client,
    NotFound,
    Outcome,
    Result,
    SemplesError,
    Unauthorized,
    Unavailable,
)
from service.client.client import RETRIES, TIMEOUT_SECONDS
from service.client.folder import job_record

_KEY_VARIABLE = "SEMPLES_KEY"
_MOST_REASONS = 20
_EXIT_FAILED, _EXIT_WRONG, _EXIT_INTERRUPTED = 1, 2, 130


def main(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, or one photo.")],
    labels: Annotated[
        list[str],
        typer.Option(
            "--labels",
            help="Of a folder: labels.csv, or what else make-pseudo-masks takes. Of one photo: a class that it shows; "
            "repeat for more, or separate by commas or semicolons.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="URL of the service.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the API key alone. Without it: the variable {_KEY_VARIABLE}."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the service's.")] = None,
    refine: Annotated[str | None, typer.Option(help="Chain of refiners. Default: the model's.")] = None,
    background_threshold: Annotated[
        float | None, typer.Option(help="Score that a class must exceed. Default: the model's.")
    ] = None,
    background_power: Annotated[
        float | None, typer.Option(help="Background (1 - best score)^p instead of a constant.")
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Pixels less sure become 255. Default: the model's.")
    ] = None,
    save_scores: Annotated[bool, typer.Option("--save-scores", help="Of a folder: keep soft scores too.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in the output that semples did not make.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Photos in flight.")] = 4,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a request.")] = RETRIES,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that the service may stay silent.")] = TIMEOUT_SECONDS,
) -> None:
    """Send a photo or a folder of photos to a service, and write the masks that it makes.

    A folder gets what make-pseudo-masks writes: masks/STEM.png, classes.txt, results.jsonl, summary.json; where it was
    interrupted, it continues. One photo gets STEM.png, STEM_overlay.png and STEM.json.
    """
    options = {
        "model": model,
        "refine": refine,
        "background_threshold": background_threshold,
        "background_power": background_power,
        "min_confidence": min_confidence,
    }
    of_folder = {"concurrency": concurrency, "save_scores": save_scores}
    with (
        _one_line(photos, to),
        Client(to, key=_read_key(key_file), timeout=timeout, retries=retries) as client,
    ):
        if photos.is_dir():
            _submit_folder(client, photos, labels, output, options, **of_folder, overwrite=overwrite)
        else:
            _submit_photo(client, photos, labels, output, options, overwrite=overwrite)


def _read_key(file: Path | None) -> str | None:
    """Return the key in a file, else that of the environment, or None; no error quotes the file's content."""
    if file is None:
        return os.environ.get(_KEY_VARIABLE) or None
    try:
        words = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a key in {file}, got no text") from error
    if len(words) != 1:
        raise ValueError(f"expected a key alone in {file}, got {len(words)} words")
    return words[0]


def _submit_folder(
    client: Client,
    photos: Path,
    labels: list[str],
    output: Path,
    options: dict[str, Any],
    **of_folder: Any,
) -> None:
    if len(labels) != 1:
        raise ValueError(f"expected one file of labels for a folder, got {len(labels)}")
    started = time.monotonic()
    with _bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("pseudo masks", total=None, note="")

        def on_photo(done: int, failed: int, total: int) -> None:
            note = f"{failed} failed" if failed else ""
            bar.update(task, completed=done + failed, total=total, note=note)

        outcome = client.batch(
            photos,
            labels[0],
            output,
            on_photo=on_photo,
            **of_folder,
            **options,
        )
    _report(outcome, output, time.monotonic() - started)


def _report(outcome: Outcome, output: Path, seconds: float) -> None:
    typer.echo(
        f"{outcome.made} masks made, {outcome.kept} kept ({outcome.empty} of all empty), "
        f"{len(outcome.failed)} failed in {seconds:.1f} s: {printable(output)}"
    )
    if found := describe_rules(outcome.matched):
        typer.echo(found)
    if outcome.unlabeled:
        typer.echo(f"{outcome.unlabeled} photos have a row without a label and were passed over")
    if outcome.others:
        typer.echo(
            f"{outcome.others} masks in {printable(output)} are of photos that are not among these labels now; export "
            "and train-segmenter would take them too"
        )
    for name, reason in outcome.failed[:_MOST_REASONS]:
        typer.echo(one_line(f"semples submit: {printable(name)}: {reason}"), err=True)
    more = len(outcome.failed) - _MOST_REASONS
    if more > 0:
        typer.echo(f"semples submit: … and {more} more, see {printable(output / SUMMARY)}", err=True)
    if outcome.failed:
        raise typer.Exit(_EXIT_FAILED)


def _submit_photo(
    client: Client, photo: Path, labels: list[str], output: Path, options: dict[str, Any], *, overwrite: bool
) -> None:
    with naming(photo):
        content = read_photo(photo)
    check_results(output, [photo], overwrite=overwrite)
    names = split_labels(labels)
    with _bar(SpinnerColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(printable(photo.name), total=1.0, note="")

        def on_progress(stage: str, fraction: float) -> None:
            bar.update(task, completed=fraction, note=stage)

        result = client.pseudo_mask(content, names, on_progress=on_progress, **options)
        _write(result, photo, output)
    for each in result.classes:
        typer.echo(each)
    stem = printable(output / photo.stem)
    typer.echo(f"written to {stem}.png, {stem}{OVERLAY}.png and {stem}.json")


def _write(result: Result, photo: Path, output: Path) -> None:
    """Write the files that ``semples predict`` writes."""
    mask, overlay, path = result_paths(output, photo)
    result.save(mask)
    write_atomically(overlay, result.overlay_png)
    image = result.job.document["image"]
    as_read = {"exif_orientation": image["exif_orientation"], "value_range": image.get("value_range")}
    write_json(path, {**job_record(result.job, image=photo.name), **as_read})


def _bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar on standard error; standard output is for results."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )


@contextmanager
def _one_line(photos: Path, url: str) -> Iterator[None]:
    """Turn errors into one line and an exit code, without a traceback."""
    try:
        yield
    except KeyboardInterrupt as error:
        more = "; the same command continues" if photos.is_dir() else ""
        _fail(f"interrupted{more}", _EXIT_INTERRUPTED, error)
    except OSError as error:
        _fail(
            f"{error.strerror}: {error.filename}" if error.filename else str(error),
            _EXIT_WRONG,
            error,
        )
    except Unauthorized as error:
        _fail(f"{error} (the key is read from {_KEY_VARIABLE}, or --key-file)", _EXIT_WRONG, error)
    except (NotFound, Unavailable) as error:
        _fail(f"{url}: {error}", _EXIT_WRONG, error)
    except (SemplesError, ValueError) as error:
        _fail(str(error), _EXIT_WRONG, error)


def _fail(message: str, code: int, cause: BaseException) -> None:
    typer.echo(one_line(f"semples submit: {message}"), err=True)
    raise typer.Exit(code) from cause


if __name__ == "__main__":
    accept_any_output()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="semples submit")
