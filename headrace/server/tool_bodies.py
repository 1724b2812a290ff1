"""Tools in request bodies: functions that the model may call, and calls that it made before."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from headrace.server.base_body import StrictBody

MAX_TOOLS = 128
MAX_CALLS = 128
MAX_DESCRIPTION = 65_536
NO_JSON = "no_json"  # type of the error for a text that should be JSON

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Function(StrictBody):
    name: FunctionName
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(StrictBody):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it, without what was not given."""
        fields = (("description", self.function.description), ("parameters", self.function.parameters))
        given = {name: value for name, value in fields if value is not None}
        return {"type": "function", "function": {"name": self.function.name, **given}}


class NamedFunction(StrictBody):
    name: FunctionName


class NamedChoice(StrictBody):
    type: Literal["function"] = "function"
    function: NamedFunction


class CalledFunction(StrictBody):
    name: FunctionName
    arguments: Annotated[str, Field(max_length=MAX_DESCRIPTION)] = "{}"

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, text: str) -> str:
        try:
            value = json.loads(text or "{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PydanticCustomError(NO_JSON, "the arguments of a tool call must be a JSON object")
        return text or "{}"


class ToolCall(StrictBody):
    """A call in an earlier answer."""

    id: Annotated[str, Field(max_length=512)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int, Field(ge=0, le=MAX_CALLS)] | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the arguments as an object, not as its JSON text."""
        arguments = json.loads(self.function.arguments)
        call: dict[str, Any] = {"type": "function", "function": {"name": self.function.name, "arguments": arguments}}
        return call if self.id is None else {"id": self.id, **call}
