"""vLLM's console logs -> runs: every result block in any text, of every generation of the client.

A block is found by its frame (`==== Serving Benchmark Result ====`) or, in the layouts before it existed, by its
first label.  Text around and between the lines of a block (server logs, progress bars drawn with carriage returns,
colours, indentation, quotation marks of Markdown) is skipped; what a block prints and this module does not know is
named in a warning, never dropped in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from headrace.lab.records.foreign.commands import Context, read_context
from headrace.lab.records.foreign.values import figure, setting
from headrace.lab.records.results import Json, RunResult

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_HEADER = re.compile(r"={4,} *Serving Benchmark Result *={4,}")
_CLOSING = re.compile(r"^\W*={20,}\s*$")
_RULE = re.compile(r"-{3,}[^-]+-{3,}|^\W*[-=]{10,}\W*$")  # `-----Time to First Token-----`
_FENCE = re.compile(r"^\s*(?:```|~~~)")
# A block without its closing line ends where this many lines in a row are not part of it.
_MAX_FOREIGN_LINES = 25
# A frameless block needs this many figures: one "Successful requests: 3" in prose is not a result.
_MIN_FRAMELESS_FIGURES = 3

# Label -> vLLM's JSON key.  SGLang's client prints the same block with some labels of its own; where the meaning is
# the same, the key is vLLM's, otherwise it is SGLang's.
_LABELS: dict[str, str] = {
    "Successful requests": "completed",
    "Failed requests": "failed",
    "Benchmark duration (s)": "duration",
    "Benchmark duration": "duration",  # early 2024: "294.10 s"
    "Total time": "duration",  # 2023
    "Total input tokens": "total_input_tokens",
    "Total input text tokens": "total_input_text_tokens",
    "Total input vision tokens": "total_input_vision_tokens",
    "Total generated tokens": "total_output_tokens",
    "Total generated tokens (retokenized)": "total_output_tokens_retokenized",
    "Request throughput (req/s)": "request_throughput",
    "Request throughput": "request_throughput",
    "Throughput": "request_throughput",  # 2023
    "Request goodput (req/s)": "request_goodput",
    "Input token throughput (tok/s)": "input_throughput",
    "Input token throughput": "input_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Output token throughput": "output_throughput",
    "Peak output token throughput (tok/s)": "max_output_tokens_per_s",
    "Peak concurrent requests": "max_concurrent_requests",
    "RTFx (Inverse Real-Time Factor)": "rtfx",
    "Total token throughput (tok/s)": "total_token_throughput",
    "Total throughput (tok/s)": "total_token_throughput",
    "Concurrency": "concurrency",
    "Accept length": "accept_length",
    "Acceptance rate (%)": "spec_decode_acceptance_rate",
    "Acceptance length": "spec_decode_acceptance_length",
    "Drafts": "spec_decode_num_drafts",
    "Draft tokens": "spec_decode_draft_tokens",
    "Accepted tokens": "spec_decode_accepted_tokens",
}
_SETTING_LABELS: dict[str, str] = {
    "Maximum request concurrency": "max_concurrency",
    "Max request concurrency": "max_concurrency",
    "Request rate configured (RPS)": "request_rate",
    "Traffic request rate": "request_rate",
    "Backend": "backend",
}
_LATENCIES: dict[str, str] = {
    "TTFT": "ttft",
    "TPOT": "tpot",
    "ITL": "itl",
    "E2EL": "e2el",
    "E2E Latency": "e2el",
    "Client Queue Time": "client_queue_time",
    "E2EL incl. Client Queue": "e2el_including_client_queue",
}
_BY_LOWER = {label.lower(): key for label, key in _LABELS.items()}
_SETTING_BY_LOWER = {label.lower(): key for label, key in _SETTING_LABELS.items()}
_LATENCY = re.compile(
    rf"(?P<stat>Mean|Median|Max|Std|P\d+(?:\.\d+)?) (?P<what>{'|'.join(map(re.escape, _LATENCIES))})(?: \(ms\))?$",
    re.IGNORECASE,
)
_LATENCY_BY_LOWER = {label.lower(): key for label, key in _LATENCIES.items()}
_POSITION = re.compile(r"Position (\d+)$", re.IGNORECASE)
_ALL_LABELS = "|".join(re.escape(label) for label in sorted([*_LABELS, *_SETTING_LABELS], key=len, reverse=True))
# The label may follow a prefix (`> `, `(client) `, a time stamp); the value ends the line.
_FIELD = re.compile(
    rf"(?:^|[\s>|\])*])(?P<label>{_ALL_LABELS}|(?:Mean|Median|Max|Std|P\d+(?:\.\d+)?) "
    rf"(?:{'|'.join(map(re.escape, sorted(_LATENCIES, key=len, reverse=True)))})(?: \(ms\))?|Position \d+)"
    r" *: *(?P<value>\S.*?)?[\s|]*$",
    re.IGNORECASE,
)
_UNKNOWN_FIELD = re.compile(r"^\W*(?P<label>[A-Z][\w .()%/'-]{2,58}):\s+(?P<value>[-+]?[\d.]+)\s*$")
_NUMBER = re.compile(
    r"(?P<number>[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)(?: *(?:s|ms|req/s|requests/s|tokens/s))?$"
)
_FRAMELESS_START = re.compile(r"^\W*(?:Successful requests|Total time): *[\d.]+(?: s)?\s*$")
# The 2023 layout's own averages: the first is the mean end-to-end latency, the others have no vLLM key today.
_AVERAGE = re.compile(r"^\W*Average latency(?P<per> per (?:output )?token)?: *(?P<seconds>[\d.]+) s\s*$")


@dataclass(slots=True)
class Block:
    """One result block: its figures, and the half-open range of lines that it covers."""

    start: int
    end: int
    framed: bool
    closed: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Json] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConsoleLog:
    """What a log holds: runs, and one sentence for each block (or the whole log) that gave none."""

    runs: tuple[RunResult, ...]
    problems: tuple[str, ...]


def clean_lines(text: str) -> list[str]:
    """The text as lines: colours removed, and each redraw of a progress bar a line of its own."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_console(text: str, source: str) -> ConsoleLog:
    """Every run in the text of one console log.  The n-th of several blocks has the source `source#n`."""
    lines = clean_lines(text)
    blocks = find_blocks(lines)
    problems: list[str] = []
    usable: list[tuple[int, Block, Context]] = []
    previous_end = 0
    context = Context()
    for number, block in enumerate(blocks, start=1):
        context = read_context(lines[previous_end : block.start], context)
        previous_end = block.end
        if block.metrics:
            usable.append((number, block, context))
        else:
            problems.append(f"the result block at line {block.start + 1} holds no figures (placeholders)")
    if not blocks:
        tail = read_context(lines, Context())
        problems.append(_no_block(tail))
    runs = tuple(
        _run(block, context, source if len(blocks) == 1 else f"{source}#{number}") for number, block, context in usable
    )
    return ConsoleLog(runs, tuple(problems))


def find_blocks(lines: list[str]) -> list[Block]:
    """The result blocks, in order."""
    blocks: list[Block] = []
    index = 0
    while index < len(lines):
        framed = _HEADER.search(lines[index]) is not None
        if framed or _FRAMELESS_START.match(lines[index]):
            block = _read_block(lines, index, framed)
            index = max(block.end, index + 1)
            if framed or len(block.metrics) >= _MIN_FRAMELESS_FIGURES:
                blocks.append(block)
        else:
            index += 1
    return blocks


def _read_block(lines: list[str], start: int, framed: bool) -> Block:
    block = Block(start, start + 1, framed)
    index = start + 1 if framed else start
    foreign = 0
    while index < len(lines) and foreign < _MAX_FOREIGN_LINES:
        line = lines[index]
        if _CLOSING.match(line) and framed:
            block.end, block.closed = index + 1, True
            break
        if _HEADER.search(line) or _FENCE.match(line):
            break
        seen = _read_line(line, block)
        if seen is None:  # a label that the block already has: the next block, without a frame
            break
        foreign = 0 if seen or _RULE.search(line) else foreign + (1 if line.strip() else 0)
        if seen:
            block.end = index + 1
        index += 1
    if framed and not block.closed:
        block.warnings.append("the block has no closing line: it may be cut short")
    return block


def _read_line(line: str, block: Block) -> bool | None:
    """Take one line into the block; False when it is not a field, None when it repeats one."""
    average = _AVERAGE.match(line)
    if average and not block.framed:
        if average["per"]:
            block.warnings.append(f"not carried over: {line.strip()} (vLLM has no such figure any more)")
        elif (seconds := figure(average["seconds"])) is not None:
            block.metrics["mean_e2el_ms"] = seconds * 1000
        return True
    match = _FIELD.search(line)
    if match is None:
        unknown = _UNKNOWN_FIELD.match(line)
        if unknown and block.framed:
            block.warnings.append(f"not understood: {' '.join(line.split())}")
        return unknown is not None and block.framed
    label, value = " ".join(match["label"].split()), (match["value"] or "").strip()
    name = _SETTING_BY_LOWER.get(label.lower())
    if name is not None:
        block.settings.setdefault(name, setting(name, value))
        return True
    key = _metric_key(label)
    if key in block.metrics:
        return None
    written = _NUMBER.match(value)
    number = figure(written["number"]) if written else None
    if number is None:
        block.warnings.append(f"{label}: {value[:60]!r} is not a finite number")
    else:
        block.metrics[key] = number
    return True


def _metric_key(label: str) -> str:
    latency = _LATENCY.match(label)
    if latency:
        return f"{latency['stat'].lower()}_{_LATENCY_BY_LOWER[latency['what'].lower()]}_ms"
    position = _POSITION.match(label)
    if position:
        # per cent, as printed and as spec_decode_acceptance_rate; vLLM's JSON has one list of fractions instead
        return f"spec_decode_position_{position[1]}_acceptance_rate"
    return _BY_LOWER[label.lower()]


def _run(block: Block, context: Context, source: str) -> RunResult:
    # A finite rate is printed rounded in the block; the client's own arguments are exact, so they win.
    settings = {**block.settings, **context.settings()}
    for key in [key for key, value in settings.items() if value is None]:
        del settings[key]
    return RunResult(source, settings, block.metrics, (*block.warnings, *context.warnings()))


def _no_block(context: Context) -> str:
    if context.progress is None:
        return "no result block of `vllm bench serve` in it"
    done, total, _ = context.progress
    if done < total:
        return f"no result block: the log stops when {done} of {total} requests were done"
    return f"no result block, although all {total} requests of the progress bar are done"
