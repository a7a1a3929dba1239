"""The command line: ``semples <command>``. The only room that prints results."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import typer
from rich.console import Console
from typer.exceptions import TyperException

from models.cli import bundle, data, evaluate, predict, train

# Options of the commands that hand over to the service and the worker; the library itself knows neither.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def serve(context: typer.Context) -> None:
    """Serve over HTTP: queue, worker, janitor and API in one process tree (see serve --help)."""
    _become("service.local.serve", context.args, needs="semples[all]")


def worker(context: typer.Context) -> None:
    """Work for a queue: load a bundle once, then take jobs (see worker --help)."""
    _become("worker", ["run", *context.args], needs="semples[worker]")


def api_key(context: typer.Context) -> None:
    """Make a key for the HTTP API (see api-key --help)."""
    _become("service.middleware.auth", context.args, needs="semples[api]")


def janitor(context: typer.Context) -> None:
    """Keep a service clean and deliver its webhooks (see janitor --help)."""
    _become(
        "worker", ["janitor", *context.args], needs="semples[janitor]", packages=("rq", "httpx")
    )


def dead(context: typer.Context) -> None:
    """List the jobs that took every worker down, or queue one again (see dead --help)."""
    _become("worker", ["dead", *context.args], needs="semples[queue]")


def submit(context: typer.Context) -> None:
    """Have a service elsewhere make the masks of a photo or a folder (see submit --help)."""
    _become("service.client.cli", context.args, needs="semples[client]", packages=("httpx",))


def _become(
    module: str, arguments: list[str], *, needs: str, packages: Sequence[str] = ("rq",)
) -> None:
    """Replace this process, so that signals reach the server itself.

    -P: a models.py or worker.py in the user's directory must not stand in for ours.
    """
    if any(find_spec(name) is None for name in (module, *packages)):
        raise ValueError(f"expected the packages of {needs}, got an installation without them")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


app = typer.Typer(
    name="semples",
    help="Pixel masks from image-level labels: make masks, train, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PREPARE = typer.Typer(no_args_is_help=True)
_PREPARE.command("voc")(data.voc)
_PREPARE.command("coco")(data.coco)

# Panels and commands in the order of `semples --help`: what a newcomer needs comes first.
_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Masks": {
        "predict": predict.predict,
        "make-pseudo-masks": predict.make_masks,
        "segment": predict.segment,
        "submit": submit,
        "rethreshold": predict.rethreshold,
        "export": data.export,
    },
    "Data": {
        "import-checkpoint": data.import_checkpoint,
    },
    "Train": {
        "run-all": train.run_all,
        "pretrain-generator": train.pretrain_generator,
        "train-generator": train.train_generator,
        "learn-prompts": train.learn_prompts,
        "refine-generator": train.refine_generator,
        "train-segmenter": predict.train_segmenter,
        "export-bundle": bundle.export,
        "explain-prompts": bundle.explain_prompts,
        "evaluate": evaluate.evaluate,
        "report": evaluate.report,
    },
    "Serve": {"serve": serve, "api-key": api_key},
    "Operate": {"worker": worker, "janitor": janitor, "dead": dead},
}
_HANDED_OVER = (submit, serve, api_key, worker, janitor, dead)

app.add_typer(
    _PREPARE,
    name="prepare",
    help="Check a downloaded data set and write what the commands take.",
    rich_help_panel="Data",
)
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        _settings = _FORWARD if _command in _HANDED_OVER else None
        app.command(_name, rich_help_panel=_panel, context_settings=_settings)(_command)


def main() -> None:
    """Run a command. Wrong input ends in one line on standard error and exit code 2, never in a traceback."""
    # Before torch is imported: idle OpenMP threads that spin stall the other processes of a small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = app(standalone_mode=False)
    except TyperException as error:  # a wrong option or argument
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        _fail(message, 2)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    else:
        sys.exit(code)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    if line:  # without any command typer has shown the help already
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"semples: {line}", markup=False, highlight=False)
    sys.exit(code)


__all__ = ["main"]
