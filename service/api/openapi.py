"""The API's schema, told as it is: errors are problems. ``python -m service.api.openapi PATH`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from redis import Redis

from service.api.errors import MEDIA_TYPE, PROBLEMS, ProblemDocument

VERSION: Final = "1"
"""Of the API, not of the software: it changes when a client must."""

_REFERENCE: Final = {"$ref": "#/components/schemas/ProblemDocument"}
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_FRAMEWORKS_OWN: Final = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have an app show its schema with problems as they are sent.

    FastAPI lists models of errors as application/json, and an error body for wrong parameters that is not ours.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_problems(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    separate_input_output_schemas=app.separate_input_output_schemas,
                )
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose responses from 400 on are problems, each with an example."""
    for operations in schema["paths"].values():
        for method in _METHODS:
            if method in operations:
                _mend(operations[method]["responses"])
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in _FRAMEWORKS_OWN:
        schemas.pop(name, None)
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    return schema


def _mend(responses: dict[str, Any]) -> None:
    for code, response in responses.items():
        if code.isdecimal() and int(code) >= 400:
            response["content"] = {
                MEDIA_TYPE: {"schema": _REFERENCE, "examples": _examples(int(code))}
            }
            response["description"] = " · ".join(
                kind.title for kind in PROBLEMS.values() if kind.status == int(code)
            )


def _examples(status: int) -> dict[str, Any]:
    return {
        kind.name: {
            "value": {
                "type": f"/problems/{kind.name}",
                "title": kind.title,
                "status": kind.status,
                "detail": kind.advice,
            }
        }
        for kind in PROBLEMS.values()
        if kind.status == status
    }


def schema_text() -> str:
    """Return the schema as it is committed: of an API without keys, which has every path."""
    # Only now, for the app imports this module.
    from service.app import create_app  # noqa: PLC0415
    from service.settings import Settings  # noqa: PLC0415
    from worker.storage import BlobStore  # noqa: PLC0415

    # Nothing is asked of either store.
    app = create_app(Settings(keys="", keys_file=""), Redis(), BlobStore.open("memory://openapi"))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def main(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("docs/openapi.json"),
) -> None:
    """Write the API's schema."""
    path.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
