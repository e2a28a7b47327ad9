"""Fields of another kind than theirs: each is refused by its name when it is added, with no other error."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.engine import Engine, RequestError
from model.request import Request, SamplingParams, Turn
from tests.model.harness import IMAGE, World, ask

HALF_A_PAIR = "\ud800"
PICTURE = Image.new("RGB", (9, 9))


class Convertible:
    """Looks like a picture of PIL's to whoever asks for one method alone."""

    def convert(self, _mode: str) -> Image.Image:
        return PICTURE


@pytest.fixture(scope="module")
def engine(wild: World) -> Engine:
    return wild.engine()


def refused(engine: Engine, request: Request) -> RequestError:
    with pytest.raises(RequestError) as raised:
        engine.add(request)
    assert not engine.has_work()
    return raised.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", HALF_A_PAIR),
        ("images", [Image.new("RGB", (0, 5))]),
        ("images", [Convertible()]),
        ("images", None),
        ("sampling", None),
        ("retained_share", "half"),
        ("retained_share", True),
        ("request_id", 5),
        ("request_id", ""),
        ("request_id", HALF_A_PAIR),
        ("request_id", ["x"]),
        ("history", None),
        ("history", ("Hello",)),
        ("history", (Turn("user", HALF_A_PAIR),)),
        ("history", (Turn("user", "Hello", images=-1),)),
        ("history", (Turn("system", "Hello"),)),  # type: ignore[arg-type]
    ],
)
def test_a_field_that_is_not_of_its_kind(engine: Engine, field: str, value: Any) -> None:
    """These were a TypeError, a UnicodeEncodeError, an AttributeError; a ZeroDivisionError of the picture of
    nothing; another field's name; or they passed."""
    request = Request("hi", [PICTURE], SamplingParams(max_tokens=2, temperature=1.0), request_id="r")
    error = refused(engine, replace(request, **{field: value}))
    assert error.param == field
    assert field.removesuffix("s") in str(error)


def test_a_stop_string_that_no_text_can_hold(engine: Engine) -> None:
    sampling = SamplingParams(stop=(HALF_A_PAIR,))
    assert refused(engine, Request("hi", sampling=sampling)).param == "stop"


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32), np.float32)[:, ::-1],
        np.zeros((1, 3, 32, 32), object),
        torch.zeros(1, 3, 32, 32, dtype=torch.complex64),
    ],
    ids=["negative stride", "objects", "complex"],
)
def test_pixel_values_that_are_no_tensor(engine: Engine, wild: World, pixels: Any) -> None:
    """torch's own errors came out, and of complex numbers half was left out."""
    request = replace(ask(wild.prompt(0, 5, IMAGE)), pixel_values=pixels)
    assert refused(engine, request).param == "pixel_values"


def test_history_beside_token_ids(engine: Engine, wild: World) -> None:
    """It was left out of the prompt without a word."""
    request = replace(ask(wild.prompt(0, 5, IMAGE)), history=(Turn("user", "Hello"),))
    assert refused(engine, request).param == "history"


def test_a_placeholder_in_the_history(engine: Engine) -> None:
    """The prompt was named, in which there was nothing wrong."""
    request = Request("hi", [PICTURE], history=(Turn("user", "<image>"), Turn("assistant", "A dog.")))
    assert refused(engine, request).param == "history"


@pytest.mark.parametrize("history", [(), (Turn("user", "Hello"), Turn("user", "Hello?"))])
def test_a_template_that_refuses(wild: World, tmp_path: Path, history: tuple[Turn, ...]) -> None:
    """Some insist on turns that alternate: jinja's own error came out."""
    base = tmp_path / "base"
    shutil.copytree(wild.base_path, base)
    (base / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    engine = Engine.from_pretrained(base, dtype="float32")
    error = refused(engine, Request("hi", history=history))
    assert error.param == ("history" if history else "prompt")
    assert "roles must alternate" in str(error)
