"""OpenAI's chat completions as far as we have them: the fields a client may send, and the answers.

Invariant: what OpenAI has and we have not is accepted only with the value that asks for nothing (`Only`);
what is accepted without any effect says so in its description; anything else is refused by name.
Must not know: the model card, how a completion is made.
Source: OpenAI API reference, "Chat".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from service.errors import UNSUPPORTED
from service.schemas import GenerationFields, ServiceTier, Usage

DEFAULT_MODEL = "default"
# Structure only: how much text there may be is a setting, how many pictures the model card's to say.
MAX_MESSAGES = 1024
MAX_PARTS = 256
EXAMPLE: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in the picture?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo…"}},
            ],
        }
    ],
    "max_completion_tokens": 64,
}


@dataclass(frozen=True, eq=False)  # Only(0) must not equal Only(False): `Annotated` caches by equality
class Only:
    """A field of OpenAI's of which just this value is supported (besides null)."""

    value: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        return {"enum": [self.value, None], "description": "Nothing else is supported."}

    def _check(self, given: Any) -> Any:
        same_kind = isinstance(given, bool) == isinstance(self.value, bool)
        if given is not None and not (given == self.value and same_kind):
            raise PydanticCustomError(UNSUPPORTED, "only {only} is supported", {"only": str(self.value)})
        return given


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str = Field(
        description="A data URL (base64), or a URL of a host that the service is set up to fetch from."
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Has no effect: the model has one picture size. See `quality`."
    )


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Parts = Annotated[
    list[Part],
    FailFast(),
    Field(max_length=MAX_PARTS),
    BeforeValidator(as_parts, json_schema_input_type=str | list[Part]),
]


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Parts
    name: str | None = Field(None, description="Has no effect.")

    # An assistant's message that is sent back as it came has these.
    refusal: Annotated[Any, Only(None)] = None
    annotations: Annotated[Any, Only([])] = None
    audio: Annotated[Any, Only(None)] = None
    tool_calls: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only(None)] = None


class StreamOptions(_Strict):
    include_usage: bool | None = Field(None, description="One chunk more, with the usage and no choices.")
    include_obfuscation: Annotated[Any, Only(False)] = None


class ChatBody(GenerationFields):
    """`POST /v1/chat/completions`. `quality`, `retained_tokens`, `speculation`, `top_k` are not OpenAI's.

    Unlike OpenAI's, an answer without `temperature` is greedy. Pictures stand before the text whatever their
    order, and a system message is put before the user's own text.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    messages: Annotated[list[ChatMessage], FailFast()] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="After at most one system message, user messages with text and pictures and the"
        " assistant's text in turn; the last is the user's. Models without a chat template take one turn.",
    )
    model: str = Field(DEFAULT_MODEL, max_length=256, description="A served model, or `default`.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of `max_tokens`.")
    stream_options: StreamOptions | None = None

    n: Annotated[Any, Only(1)] = None
    logprobs: Annotated[Any, Only(False)] = None
    top_logprobs: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    modalities: Annotated[Any, Only(["text"])] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none")] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none")] = None
    audio: Annotated[Any, Only(None)] = None
    prediction: Annotated[Any, Only(None)] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    verbosity: Annotated[Any, Only(None)] = None
    web_search_options: Annotated[Any, Only(None)] = None

    user: str | None = Field(None, description="Has no effect.")
    metadata: dict[str, str] | None = Field(None, description="Has no effect.")
    store: bool | None = Field(None, description="Has no effect: nothing is stored beyond its result's time.")
    parallel_tool_calls: bool | None = Field(None, description="Has no effect: there are no tools.")
    safety_identifier: str | None = Field(None, description="Has no effect.")
    prompt_cache_key: str | None = Field(None, description="Has no effect.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        """As OpenAI has it; `messages: null` is then a missing field."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


FinishReason = Literal["stop", "length"]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str = Field(examples=["A large red apple at the top left."])
    refusal: None = None


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str = Field(examples=["chatcmpl-3f1c2a9be07d4c55a1d0b6f2f7f0c9ab"])
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(examples=[1767225600])
    model: str = Field(examples=["twigvlm-embedded"])
    choices: list[Choice]
    usage: Usage
    service_tier: ServiceTier = Field(examples=["default"])


class Delta(BaseModel):
    """What is unset is not sent."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChunkChoice(BaseModel):
    index: Literal[0] = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """usage: null in all but the last, and there only with `stream_options.include_usage`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
