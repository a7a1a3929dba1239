"""The command line, ``semples <command>``. Torch is imported by the commands that need it, so that --help is fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Annotated

import typer
from typer.exceptions import TyperException

from models.cli import bundle, data, evaluate, predict, train
from models.cli.options import print_error
from models.data.mask_files import software_version
from models.messages import accept_any_output

__all__ = ["main"]


def _serve(context: typer.Context) -> None:
    """Serve over HTTP: queue, worker, janitor and API in one process tree (see serve --help)."""
    _exec("service.local.serve", context.args, needs="semples[all]")


def _worker(context: typer.Context) -> None:
    """Work for a queue: load a bundle once, then take jobs (see worker --help)."""
    _exec("worker", ["run", *context.args], needs="semples[worker]")


def _api_key(context: typer.Context) -> None:
    """Make a key for the HTTP API (see api-key --help)."""
    _exec("service.middleware.auth", context.args, needs="semples[api]")


def _janitor(context: typer.Context) -> None:
    """Keep a service clean and deliver its webhooks (see janitor --help)."""
    arguments = ["janitor", *context.args]
    _exec("worker", arguments, needs="semples[janitor]", packages=("rq", "httpx"))


def _dead(context: typer.Context) -> None:
    """List the dead letters, jobs during which workers died, or queue one again (see dead --help)."""
    _exec("worker", ["dead", *context.args], needs="semples[queue]")


def _submit(context: typer.Context) -> None:
    """Send a photo or a folder to a running service and fetch the masks (see submit --help)."""
    _exec("service.client.cli", context.args, needs="semples[client]", packages=("httpx", "httpx_sse"))


app = typer.Typer(
    name="semples",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_prepare = typer.Typer(no_args_is_help=True)
_prepare.command("voc")(data.voc)
_prepare.command("coco")(data.coco)
app.add_typer(
    _prepare,
    name="prepare",
    help="Check a downloaded data set and write what the commands take.",
    rich_help_panel="Data",
)

# Panels and commands in the order of `semples --help`.
_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Masks": {
        "predict": predict.predict,
        "make-pseudo-masks": predict.make_masks,
        "segment": predict.segment,
        "submit": _submit,
        "rethreshold": predict.rethreshold,
        "export": data.export,
    },
    "Data": {
        "new-bundle": bundle.new,
        "import-checkpoint": data.import_checkpoint,
    },
    "Train": {
        "run-all": train.run_all,
        "pretrain-generator": train.pretrain_generator,
        "train-generator": train.train_generator,
        "learn-prompts": train.learn_prompts,
        "refine-generator": train.refine_generator,
        "train-segmenter": train.train_segmenter,
        "export-bundle": bundle.export,
        "explain-prompts": bundle.explain_prompts,
        "evaluate": evaluate.evaluate,
        "report": evaluate.report,
    },
    "Serve": {"serve": _serve, "api-key": _api_key},
    "Operate": {"worker": _worker, "janitor": _janitor, "dead": _dead},
}
# Commands of the service and the worker parse their own options; this package imports neither.
_FORWARDED = (_submit, _serve, _api_key, _worker, _janitor, _dead)
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(software_version())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pixel masks from image-level labels: make masks, train, serve."""


for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        _settings = _FORWARD if _command in _FORWARDED else None
        app.command(_name, rich_help_panel=_panel, context_settings=_settings)(_command)


def main() -> None:
    """Run a command; wrong input ends in one line on standard error and exit code 2."""
    # Set before torch is imported: idle OpenMP threads that spin slow down other processes on small machines.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    accept_any_output()
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
    except ModuleNotFoundError as error:
        _fail(_missing_package(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    else:
        sys.exit(code)


def _exec(module: str, arguments: list[str], *, needs: str, packages: Sequence[str] = ("rq",)) -> None:
    """Replace this process by ``python -m module``, so that signals reach the program itself."""
    # The packages first: finding a module imports the package around it.
    if any(find_spec(name) is None for name in (*packages, module)):
        raise ValueError(f"expected the packages of {needs}, got an installation without them")
    sys.stdout.flush()
    # -P: a models.py or worker.py in the working directory must not be imported instead of ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


def _missing_package(error: ModuleNotFoundError) -> str:
    name = (error.name or "").partition(".")[0]
    if name in {"", "models", "service", "worker"}:  # a bug of ours
        raise error
    return f"expected the packages of semples[all], got an installation without {name}"


def _fail(message: str, code: int) -> None:
    if message.strip():  # empty without a command, when typer has printed the help
        print_error(message)
    sys.exit(code)
