"""`GET /v1/models`: what the live workers serve, as OpenAI lists it, with the model card beside.

Invariant: exactly the models that could take a job now; with no worker the list is empty, not an error.
Must not know: how heartbeats are stored, or what a card's numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.errors import NotFound
from service.gateway import Gateway
from service.protocol import ModelCard, WorkerInfo
from service.schemas import ErrorBody, error_responses

router = APIRouter(tags=["models"])
OWNER = "twigserve"
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "No such model is served."}
}


class Model(BaseModel):
    """OpenAI's fields and, beside them, `card`: picture size, R-bar tiers and range, grid, speculation."""

    id: str = Field(examples=["twigvlm-embedded"])
    object: Literal["model"] = "model"
    created: int = Field(description="Since when it is served, unix seconds.", examples=[1767225600])
    owned_by: str = OWNER
    card: ModelCard


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def served(workers: Sequence[WorkerInfo]) -> list[Model]:
    """One entry a model id. Where cards differ, the one that `fleet.open_card` checks requests against."""
    by_id: dict[str, list[WorkerInfo]] = {}
    for worker in sorted(workers, key=lambda worker: worker.worker_id):
        by_id.setdefault(worker.card.model_id, []).append(worker)
    return [
        Model(id=model_id, created=int(min(w.started_at for w in group)), card=group[0].card)
        for model_id, group in sorted(by_id.items())
    ]


@router.get("/v1/models", summary="The models that are served", responses=error_responses(401, 503))
async def list_models(request: Request) -> ModelList:
    gateway: Gateway = request.app.state.gateway
    _, workers = await gateway.look()
    return ModelList(data=served(workers))


@router.get("/v1/models/{model_id:path}", summary="One model", responses=UNKNOWN | error_responses(401, 503))
async def get_model(model_id: str, request: Request) -> Model:
    gateway: Gateway = request.app.state.gateway
    _, workers = await gateway.look()
    for model in served(workers):
        if model.id == model_id:
            return model
    raise NotFound(f"No model '{model_id[:80]}' is served.", param="model", code="model_not_found")
