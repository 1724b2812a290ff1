"""What Schemathesis cannot know of this server: the form of a stream, and which refusals a valid body may meet."""

from __future__ import annotations

import json

import schemathesis
from pydantic import BaseModel
from schemathesis import Case, CheckContext, Response
from schemathesis.generation import GenerationMode

from headrace.server import answers

CHUNKS: dict[str, type[BaseModel]] = {
    "/v1/completions": answers.CompletionChunk,
    "/v1/chat/completions": answers.ChatChunk,
}
# A valid body may still contradict itself or ask for more than there is; these say that a field is wrong.
NEVER_FOR_A_VALID_BODY = {"invalid_value", "unknown_parameter"}


@schemathesis.check
def streams_have_their_form(context: CheckContext, response: Response, case: Case) -> None:
    """Events are chunks or one error, and the last is [DONE]."""
    if not "".join(response.headers.get("content-type", [])).startswith("text/event-stream"):
        return
    *frames, end = response.content.decode().split("\n\n")
    assert end == "" and frames and frames[-1] == "data: [DONE]", f"the stream ends with {frames[-1:]}"
    for frame in frames[:-1]:
        event = json.loads(frame.removeprefix("data: "))
        kind = answers.ErrorAnswer if "error" in event else CHUNKS[case.path]
        kind.model_validate_json(json.dumps(event))


@schemathesis.check
def a_body_that_fits_its_schema_is_not_called_wrong(context: CheckContext, response: Response, case: Case) -> None:
    """A 400 for a valid body is about its meaning (too long for the context, two fields that exclude each other)."""
    if response.status_code != 400 or case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    code = response.json()["error"]["code"]
    assert code not in NEVER_FOR_A_VALID_BODY, f"{code}: {response.json()['error']['message']}"
