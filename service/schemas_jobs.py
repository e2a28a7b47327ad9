"""The job as the HTTP API shows it.

Invariant: `result` is there exactly when the job is completed, `error` exactly when it failed or was
cancelled.
Must not know: where a job is kept.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.schemas import Description, ErrorDetail

JobStatusName = Literal["queued", "running", "completed", "failed", "cancelled"]


class JobObject(BaseModel):
    id: str = Field(examples=["desc-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])
    object: Literal["job"] = "job"
    status: JobStatusName = Field(
        description="A job that was cancelled while it ran is `running` until its worker has let go of it.",
        examples=["completed"],
    )
    created: int = Field(description="Unix seconds.", examples=[1767225600])
    result: Description | None = Field(None, description="Only of a completed job.")
    error: ErrorDetail | None = Field(None, description="Only of a failed or cancelled job.")
