"""The HTTP API's data: the fields a client may send and the answer it gets, with their static limits.

Invariant: an unknown field is refused, never ignored; what `/openapi.json` says is what is checked.
Must not know: the model card and the settings (what depends on them is checked in `params`), the queue.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

DEFAULT_PROMPT = "Describe the image."
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1
MAX_TOP_K = 2**31 - 1
# Structure only: how many pictures the model takes is the model card's to say.
MAX_IMAGES = 64


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# A lone string stands for a list of one, as in OpenAI's `stop`.
LoneOrList = BeforeValidator(as_list, json_schema_input_type=str | list[str])


ServiceTier = Literal["auto", "default", "flex"]


class GenerationFields(BaseModel):
    """How the answer is generated: the fields that every route has."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(None, ge=1, description="Default and limit are the service's settings.")
    temperature: float = Field(
        0.0, ge=0, le=2, allow_inf_nan=False, description="0 is greedy; above it tokens are drawn."
    )
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=MAX_TOP_K, description="0 switches the filter off.")
    seed: int | None = Field(
        None,
        ge=MIN_SEED,
        le=MAX_SEED,
        description="The same seed gives the same text. Default: one of its own.",
    )
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]], LoneOrList] = Field(
        default_factory=list,
        max_length=MAX_STOPS,
        description="The text ends before the first of these strings.",
    )
    stream: bool = Field(False, description="Answer as server-sent events, one a decode round.")
    quality: str | None = Field(
        None, max_length=32, description="fast, balanced, best or exact: a tier of the model card."
    )
    retained_tokens: int | None = Field(
        None, ge=0, description="Visual tokens kept on average over all layers. Excludes `quality`."
    )
    speculation: bool | None = Field(
        None, description="Draft with the twig. Default: where the model has one."
    )
    service_tier: ServiceTier = Field(
        "auto",
        description="`default`: interactive work. `flex`: batch work, which gets a bounded share while"
        " interactive work waits. `auto`: what the API key is for, interactive without keys.",
    )


class DescribeFields(GenerationFields):
    """The fields of `POST /v1/describe` besides the picture."""

    prompt: str = Field(DEFAULT_PROMPT, min_length=1)
    include: Annotated[list[Literal["token_map"]], LoneOrList] = Field(
        default_factory=list,
        max_length=1,
        description="`token_map`: which patches were kept, with their scores.",
    )


class DescribeBody(DescribeFields):
    """`POST /v1/describe` as JSON."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"image": "data:image/png;base64,iVBORw0KGgo…", "max_tokens": 64, "quality": "balanced"}
            ]
        },
    )

    image: Annotated[list[str], FailFast(), LoneOrList] = Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description="Base64, a data URL, or a URL of a host that the service is set up to fetch from;"
        " a list where the model takes several pictures.",
    )


class PromptTokensDetails(BaseModel):
    """retained: kept on average over all layers; pruned: the rest."""

    image_tokens: int = Field(examples=[576])
    retained_image_tokens: int = Field(examples=[64])
    pruned_image_tokens: int = Field(examples=[512])


class Usage(BaseModel):
    prompt_tokens: int = Field(examples=[590])
    completion_tokens: int = Field(examples=[42])
    total_tokens: int = Field(examples=[632])
    prompt_tokens_details: PromptTokensDetails


class SpeculativeDecoding(BaseModel):
    """mean_acceptance_length: tokens a verify round gave, the base's own included (1.0 without drafts)."""

    num_draft_tokens: int = Field(examples=[35])
    num_accepted_draft_tokens: int = Field(examples=[31])
    draft_acceptance_rate: float = Field(examples=[0.886])
    mean_acceptance_length: float = Field(examples=[4.1])


class Metrics(BaseModel):
    """time_to_first_token_ms: from the request's arrival; tokens_per_second: of the decode phase."""

    queue_ms: float = Field(examples=[1.2])
    encode_ms: float = Field(examples=[18.0])
    prefill_ms: float = Field(examples=[25.0])
    decode_ms: float = Field(examples=[210.0])
    time_to_first_token_ms: float = Field(examples=[48.0])
    tokens_per_second: float = Field(examples=[195.2])
    batch_size: int = Field(examples=[1])
    attempt: int = Field(examples=[1])
    speculative_decoding: SpeculativeDecoding


class TokenMap(BaseModel):
    """grid: [rows, columns]; kept: row-major indices, ascending; scores: one a patch, null if unpruned.

    There is none where the visual tokens are not one grid (llava_next, or images of several shapes).
    """

    grid: tuple[int, int] = Field(examples=[(24, 24)])
    kept: list[int] = Field(examples=[[3, 27, 51]])
    scores: list[float] | None = Field(None, examples=[[0.001, 0.0004]])


class Description(BaseModel):
    id: str = Field(examples=["desc-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])
    object: Literal["description"] = "description"
    created: int = Field(examples=[1767225600])
    model: str = Field(examples=["twigvlm-embedded"])
    text: str = Field(examples=["A large red apple at the top left and a small dog in the centre."])
    finish_reason: str = Field(examples=["stop"])
    usage: Usage
    metrics: Metrics
    token_map: TokenMap | None = None


class TokenEvent(BaseModel):
    """`event: token`. drafted[i]: token i was an accepted draft of the twig.

    pieces[i]: what token i completed of the text, "" where no character; together they are the text. Empty
    where the worker does not tell, or where the end set text free without another token.
    """

    text: str = Field(examples=[" red apple"])
    token_ids: list[int] = Field(examples=[[311, 902]])
    drafted: list[bool] = Field(examples=[[True, False]])
    pieces: list[str] = Field(default_factory=list, examples=[[" red", " apple"]])


class ErrorDetail(BaseModel):
    message: str = Field(examples=["Unknown field: 'colour'."])
    type: str = Field(examples=["invalid_request_error"])
    code: str = Field(examples=["unknown_field"])
    param: str | None = Field(None, examples=["colour"])


class ErrorBody(BaseModel):
    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route: each status in the one error shape."""
    why = {
        400: "A field is bad or unknown; `param` names it.",
        401: "No API key, or one that is not known. (Where the service uses keys.)",
        403: "The API key may not ask for this `service_tier`.",
        404: "No such thing, or not any more, or another API key's.",
        408: "The body did not arrive in time.",
        409: "The idempotency key was used for a different request, or the job was cancelled.",
        413: "The body, the file or its pixel count is too large.",
        415: "Not an image format, or not a content type, that is read.",
        422: "The image cannot be decoded, or `retained_tokens` is impossible.",
        429: "Too much work is queued, or too much of this API key; see `Retry-After`.",
        500: "The worker failed at this request.",
        503: "No worker, or the queue is down; see `Retry-After`.",
        504: "The deadline passed.",
    }
    return {status: {"model": ErrorBody, "description": why[status]} for status in statuses}
