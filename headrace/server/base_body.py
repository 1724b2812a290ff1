"""What all request bodies have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictBody(BaseModel):
    # Strict: "16" is no number and true is no integer; a silent conversion would hide the caller's mistake.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
