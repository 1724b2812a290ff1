"""What all request bodies have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class StrictBody(BaseModel):
    # Strict: "16" is no number and true is no integer; a silent conversion would hide the caller's mistake.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def refusal(text: str) -> PydanticCustomError:
    """A value that its field cannot have."""
    return PydanticCustomError("refused", "{text}", {"text": text})


def conflict(text: str, field: str) -> PydanticCustomError:
    """A value that is good by itself, but not beside the others; `field` is to blame."""
    return PydanticCustomError("conflict", "{text}", {"text": text, "field": field})
