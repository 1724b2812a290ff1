"""Flags of `vllm bench serve` that `headrace bench` does not act upon: accepted where they change nothing, refused
where they do.  A command that was published for vLLM should run here unchanged, or be told what stands in its way."""

from __future__ import annotations

from headrace.cli.spelling import ANY, FALSE, Foreign


def _never(why: str, *, switch: bool = False) -> Foreign:
    return Foreign((FALSE,) if switch else (), why, switch)


_DATASET = _never("there is no such dataset here; see --dataset-name")
_PLOT = "one run is not drawn; `headrace report` draws studies"

FOREIGN: dict[str, Foreign] = {
    # The client.
    "--tokenizer-mode": Foreign(("auto", "hf"), "a tokenizer.json is read, or the server's /tokenize asked"),
    "--skip-tokenizer-init": Foreign(ANY, "without a tokenizer.json the server's /tokenize counts", True),
    "--trust-remote-code": Foreign(ANY, "the client never runs a model's code", True),
    "--request-id-prefix": Foreign(ANY, "requests are told apart by their place in the records"),
    "--insecure": _never("certificates are always checked", switch=True),
    "--no-stream": _never("without a stream there is no time to first token", switch=True),
    "--use-beam-search": _never("beam search is not measured", switch=True),
    "--best-of": Foreign(("1",), "one answer a request is measured"),
    "--lora-modules": _never("requests go to one model; name an adapter with --model"),
    "--lora-assignment": Foreign(ANY, "requests go to one model"),
    "--plot-timeline": _never(_PLOT, switch=True),
    "--timeline-itl-thresholds": _never(_PLOT),
    "--plot-dataset-stats": _never(_PLOT, switch=True),
    # The samples.
    "--skip-chat-template": Foreign(ANY, "the client never applies a chat template", True),
    "--disable-shuffle": _never("sharegpt is shuffled by --seed", switch=True),
    "--no-oversample": _never("sharegpt is drawn from again when too few conversations fit", switch=True),
    "--enable-multimodal-chat": _never("prompts are text", switch=True),
    "--random-batch-size": Foreign(("1",), "a request has one prompt"),
    "--no-reranker": Foreign(ANY, "nothing is reranked", True),
    **dict.fromkeys(
        (
            *("--spec-bench-output-len", "--spec-bench-category", "--blazedit-min-distance", "--blazedit-max-distance"),
            *("--random-mm-base-items-per-request", "--random-mm-num-mm-items-range-ratio"),
            *("--random-mm-limit-mm-per-prompt", "--random-mm-bucket-config"),
        ),
        _DATASET,
    ),
}
