"""`/v1/files` and `/v1/batches`: many requests as one file, as OpenAI's Batch API has it.

Must not know: how lines are run, where files are kept.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from service.batches import Batches
from service.callers import caller_of
from service.errors import BadField, UnsupportedMedia
from service.exchange import body_of
from service.form import Part, read_form
from service.intake import content_type, json_body
from service.openapi import inlined
from service.schemas import error_responses
from service.schemas_batch import BatchBody, BatchObject, DeletedFile, FileObject

router = APIRouter(tags=["batches"])
PURPOSE = "batch"
FIELDS = ("file", "purpose")
FileId = Annotated[str, Path(examples=["file-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])]
BatchId = Annotated[str, Path(examples=["batch-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])]

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSONL."},
                        "purpose": {"enum": [PURPOSE]},
                    },
                    "required": list(FIELDS),
                    "additionalProperties": False,
                }
            }
        },
    }
}
CREATE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inlined(BatchBody.model_json_schema())}},
    }
}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSONL. A result is `{id, custom_id, line, response, error}`, where `response` holds"
        " `{status_code, request_id, body}`.",
        "content": {"application/jsonl": {"schema": {"type": "string"}}},
    },
    **error_responses(401, 404, 503),
}


def batches_of(request: Request) -> Batches:
    batches: Batches = request.app.state.batches
    return batches


@router.post(
    "/v1/files",
    summary="Upload the requests of a batch",
    responses=error_responses(400, 401, 408, 413, 415, 429, 503),
    openapi_extra=UPLOAD,
)
async def upload_file(request: Request) -> FileObject:
    async with body_of(request, _upload) as (name, content):
        return await batches_of(request).take_file(caller_of(request).name, name, content)


async def _upload(request: Request) -> tuple[str, bytes]:
    if content_type(request) != "multipart/form-data":
        raise UnsupportedMedia("Send multipart/form-data.")
    form: dict[str, Part] = {}
    for part in await read_form(request, max_files=2, max_fields=8):
        if part.name not in FIELDS:
            raise BadField(part.name, f"Unknown field: '{part.name}'.", code="unknown_field")
        if part.name in form:
            raise BadField(part.name, f"'{part.name}' is given more than once.")
        form[part.name] = part
    purpose, file = form.get("purpose"), form.get("file")
    if purpose is None or purpose.filename is not None or purpose.text != PURPOSE:
        raise BadField("purpose", f"'purpose' must be '{PURPOSE}'.")
    if file is None or file.filename is None:
        raise BadField("file", "'file' is required, as a file.", code="missing_field")
    return file.filename or "requests.jsonl", file.data


@router.get("/v1/files/{file_id}", summary="A file of a batch", responses=error_responses(401, 404, 503))
async def get_file(file_id: FileId, request: Request) -> FileObject:
    return await batches_of(request).file(caller_of(request).name, file_id)


@router.get(
    "/v1/files/{file_id}/content",
    summary="A file's content",
    responses=CONTENT,
    response_class=Response,
)
async def get_content(file_id: FileId, request: Request) -> Response:
    return Response(
        await batches_of(request).content(caller_of(request).name, file_id), media_type="application/jsonl"
    )


@router.delete(
    "/v1/files/{file_id}", summary="Delete an input file", responses=error_responses(401, 404, 503)
)
async def delete_file(file_id: FileId, request: Request) -> DeletedFile:
    await batches_of(request).delete_file(caller_of(request).name, file_id)
    return DeletedFile(id=file_id)


@router.post(
    "/v1/batches",
    summary="Run a file of requests",
    responses=error_responses(400, 401, 403, 404, 408, 413, 415, 429, 503),
    openapi_extra=CREATE,
)
async def create_batch(request: Request) -> BatchObject:
    """A file with unreadable lines is not run: the batch is `failed`, and `errors` names the lines."""
    async with body_of(request, json_body) as raw:
        body = BatchBody.model_validate_json(raw, strict=True)
        return await batches_of(request).create(caller_of(request), body)


@router.get("/v1/batches/{batch_id}", summary="A batch's progress", responses=error_responses(401, 404, 503))
async def get_batch(batch_id: BatchId, request: Request) -> BatchObject:
    return await batches_of(request).batch(caller_of(request).name, batch_id)


@router.post(
    "/v1/batches/{batch_id}/cancel", summary="Cancel a batch", responses=error_responses(401, 404, 429, 503)
)
async def cancel_batch(batch_id: BatchId, request: Request) -> BatchObject:
    """What has been answered stays; idempotent."""
    return await batches_of(request).cancel(caller_of(request).name, batch_id)
