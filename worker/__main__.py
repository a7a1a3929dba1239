"""``python -m worker``: load a bundle once, then work on its queue until told to stop."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from models.data.images import MAX_PIXELS
from worker import telemetry
from worker.inference.batcher import Sizes
from worker.inference.pipeline import PredictorLike
from worker.inference.worker import Load, WorkerStartError, run
from worker.queue.schema import LEASE_SECONDS
from worker.settings import CANARY_PATIENCE_SECONDS, CANARY_SECONDS, WorkerSettings, default_name

EXIT_CANNOT_START = 3
EXIT_LOST = 1


def load_predictor(settings: WorkerSettings) -> PredictorLike:
    """Load the bundle onto its device.

    Raises:
        BundleError: if there is no such bundle, or it is damaged.
        RuntimeError: if torch does not know the device.
        ValueError: if the precision is unknown.
    """
    # torch takes seconds to import, which --help and a wrong option should not.
    import torch  # noqa: PLC0415

    from models.bundle.bundle import find_bundle, load_bundle  # noqa: PLC0415
    from models.inference.predictor import Predictor  # noqa: PLC0415

    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bundle = load_bundle(find_bundle(settings.bundle), device=torch.device(device))
    return Predictor(bundle, precision=settings.precision)


def make_app(load: Load) -> typer.Typer:
    """Return the command line.

    Args:
        load: makes the predictor; a seam for tests, whose predictors misbehave.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def worker(  # noqa: PLR0913, PLR0917 - one argument an option
        redis_url: Annotated[str, typer.Option(envvar="REDIS_URL", help="redis:// or unix://")],
        blobs: Annotated[
            str, typer.Option(envvar="SEMPLES_BLOBS", help="Blob store: a folder or a URL.")
        ],
        bundle: Annotated[
            str, typer.Option(envvar="SEMPLES_BUNDLE", help="Name or folder of the bundle.")
        ] = "coco-demo",
        device: Annotated[
            str, typer.Option(envvar="SEMPLES_DEVICE", help="cpu, cuda, cuda:1 or auto.")
        ] = "auto",
        precision: Annotated[
            str,
            typer.Option(envvar="SEMPLES_PRECISION", help="float32, bfloat16 or float16."),
        ] = "float32",
        threads: Annotated[
            int,
            typer.Option(envvar="SEMPLES_THREADS", min=0, help="CPU threads; 0: torch decides."),
        ] = 0,
        max_pixels: Annotated[
            int, typer.Option(envvar="SEMPLES_MAX_PIXELS", min=1, help="Largest image.")
        ] = MAX_PIXELS,
        name: Annotated[
            str | None, typer.Option(envvar="SEMPLES_NAME", help="Unique among workers.")
        ] = None,
        lease: Annotated[
            int, typer.Option(min=2, help="Seconds of silence after which others take its jobs.")
        ] = LEASE_SECONDS,
        batch: Annotated[
            int,
            typer.Option(
                envvar="SEMPLES_BATCH",
                min=0,
                help="Most images at once; 0: eight on a GPU, one on a CPU.",
            ),
        ] = 0,
        job_threads: Annotated[
            int,
            typer.Option(
                envvar="SEMPLES_JOB_THREADS", min=1, help="Threads that decode, refine and store."
            ),
        ] = Sizes.threads,
        canary: Annotated[
            float,
            typer.Option(
                envvar="SEMPLES_CANARY", min=0, help="Seconds between two canary images; 0: none."
            ),
        ] = CANARY_SECONDS,
        canary_patience: Annotated[
            float, typer.Option(min=1, help="Seconds that a canary image may take.")
        ] = CANARY_PATIENCE_SECONDS,
        log: Annotated[
            telemetry.LogFormat,
            typer.Option(envvar="SEMPLES_LOG", help="Log as text or JSON lines."),
        ] = "text",
    ) -> None:
        """Take jobs from Redis and make masks; one worker for each device."""
        telemetry.configure_logging(log)
        telemetry.configure_tracing("semples-worker", os.environ)
        settings = WorkerSettings(
            redis_url=redis_url,
            blobs=blobs,
            bundle=bundle,
            device=device,
            precision=precision,
            threads=threads,
            name=name or default_name(),
            lease=lease,
            max_pixels=max_pixels,
            batch=batch,
            job_threads=job_threads,
            canary=canary,
            canary_patience=canary_patience,
        )
        try:
            stopped_on_request = run(settings, load=load)
        except WorkerStartError as error:
            typer.echo(f"semples worker: {error}", err=True)
            raise typer.Exit(EXIT_CANNOT_START) from error
        if not stopped_on_request:
            raise typer.Exit(EXIT_LOST)

    return app


if __name__ == "__main__":
    make_app(load_predictor)(prog_name="semples worker")
