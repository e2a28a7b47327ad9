"""OpenAI's files and batches as far as we have them.

Invariant: what is not offered is refused by name. Must not know: where files are kept, how lines are run.
Source: OpenAI API reference, "Files" and "Batch".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Endpoint = Literal["/v1/describe", "/v1/chat/completions"]
BatchState = Literal["failed", "in_progress", "cancelling", "cancelled", "completed", "expired"]
MAX_CUSTOM_ID_CHARS = 128
MAX_METADATA = 16
FILE_ID = "file-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"
BATCH_ID = "batch-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"


class FileObject(BaseModel):
    id: str = Field(examples=[FILE_ID])
    object: Literal["file"] = "file"
    bytes: int = Field(examples=[81_234])
    created_at: int = Field(examples=[1767225600])
    expires_at: int = Field(examples=[1767312000])
    filename: str = Field(examples=["requests.jsonl"])
    purpose: Literal["batch", "batch_output"] = "batch"
    status: Literal["processed"] = "processed"


class DeletedFile(BaseModel):
    id: str = Field(examples=[FILE_ID])
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchBody(BaseModel):
    """`POST /v1/batches`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"input_file_id": FILE_ID, "endpoint": "/v1/describe", "completion_window": "24h"},
            ]
        },
    )

    input_file_id: str = Field(description="A file of purpose `batch`: one request a line, see `BatchLine`.")
    endpoint: Endpoint = Field(description="Of every line.")
    completion_window: Literal["24h"] = Field(
        "24h", description="Has no effect: the lines run as soon as there is room."
    )
    metadata: dict[str, str] | None = Field(None, max_length=MAX_METADATA)


class BatchLine(BaseModel):
    """One line of the input file. body: what would be posted to `url`, pictures as data URLs."""

    model_config = ConfigDict(extra="forbid")

    custom_id: str = Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS, examples=["picture-17"])
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


class RequestCounts(BaseModel):
    total: int = Field(examples=[100])
    completed: int = Field(examples=[97])
    failed: int = Field(examples=[1])


class BatchError(BaseModel):
    line: int = Field(description="From 1.", examples=[3])
    code: str = Field(examples=["missing_field"])
    message: str = Field(examples=["Line 3: 'custom_id' is required."])
    param: str | None = Field(None, examples=["custom_id"])


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """request_counts grow while it runs; the files are there once it has ended."""

    id: str = Field(examples=[BATCH_ID])
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchErrors | None = None
    input_file_id: str = Field(examples=[FILE_ID])
    completion_window: Literal["24h"] = "24h"
    status: BatchState = Field(examples=["in_progress"])
    output_file_id: str | None = Field(None, examples=["output-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])
    error_file_id: str | None = None
    created_at: int = Field(examples=[1767225600])
    in_progress_at: int | None = None
    expires_at: int = Field(description="When it and its files are forgotten.", examples=[1767312000])
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None
