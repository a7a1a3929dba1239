"""The OpenAPI document, with errors as problems. ``python -m service.api.openapi PATH`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from redis import Redis

from service.api.errors import MEDIA_TYPE, PROBLEMS, ProblemDocument
from service.middleware.auth import is_open

VERSION: Final = "1"
"""Of the API, not of the software: it changes when a client must."""

_METHODS: Final = ("get", "post", "put", "patch", "delete")


def install(app: FastAPI) -> None:
    """Replace an app's OpenAPI document; FastAPI's has errors as application/json, and a model of its own."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                separate_input_output_schemas=app.separate_input_output_schemas,
            )
            app.openapi_schema = _with_problems(schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema_text() -> str:
    """Return the document as it is committed: of an API without keys."""
    # The app imports this module.
    from service.app import create_app  # noqa: PLC0415
    from service.settings import Settings  # noqa: PLC0415
    from worker.storage import BlobStore  # noqa: PLC0415

    # Neither store is used.
    app = create_app(Settings(keys="", keys_file=""), Redis(), BlobStore.open("memory://openapi"))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    for path, operations in schema["paths"].items():
        for method in _METHODS:
            if method in operations:
                _describe_problems(operations[method]["responses"])
                if is_open(path):  # KeyCheck asks for no key here
                    operations[method].pop("security", None)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    return schema


def _describe_problems(responses: dict[str, Any]) -> None:
    for code, response in responses.items():
        if not code.isdecimal() or int(code) < 400:
            continue
        kinds = [kind for kind in PROBLEMS.values() if kind.status == int(code)]
        examples = {kind.name: {"value": kind.document(kind.advice)} for kind in kinds}
        reference = {"$ref": "#/components/schemas/ProblemDocument"}
        response["content"] = {MEDIA_TYPE: {"schema": reference, "examples": examples}}
        response["description"] = " · ".join(kind.title for kind in kinds)


def main(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("docs/openapi.json"),
) -> None:
    """Write the OpenAPI document."""
    path.write_text(_schema_text(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
