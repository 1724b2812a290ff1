"""`headrace size` for people: the same value that `--json` writes, in lines that fit a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GIB = 1 << 30


def render(found: Mapping[str, Any]) -> str:
    """All sections, each only when there is something to say."""
    return "\n".join(
        line
        for section in (_model, _cache, _memory, _fits, _rules, _prices, _roofline, _notes)
        for line in section(found)
    )


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f} "


def _gib(value: float) -> str:
    return f"{value / GIB:,.2f} GiB"


def _bytes(value: float) -> str:
    return f"{value / 1024:,.1f} KiB" if value >= 1024 else f"{value:,.0f} B"


def _model(found: Mapping[str, Any]) -> Iterator[str]:
    layers = found["layers"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in layers.items() if kind != "total")
    yield f"{found['model']}: {found['architecture']}, {layers['total']} layers ({kinds})"
    active = found["active_parameters"]
    idle = "" if active == found["parameters"] else f", of which a token uses {_count(active).strip()}"
    yield f"  parameters    {found['parameters']:,} ({_count(found['parameters']).strip()}){idle}"
    weights = f"  weights       {_gib(found['weight_bytes'])} as {found['weight_format']}"
    each = found["settings"]["tensor_parallel_size"]
    if each > 1:
        weights += f"; {_gib(found['weight_bytes_per_device'])} on each of {each} devices"
    yield weights
    if found["checkpoint_bytes"] is not None:
        yield f"                {_gib(found['checkpoint_bytes'])} in the checkpoint's files"


def _cache(found: Mapping[str, Any]) -> Iterator[str]:
    formula = found["published_formula"]
    token = found["kv_bytes_per_token"]
    line = f"  KV cache      {token:,} B a token ({_bytes(token)})"
    if found["kv_bytes_per_token_per_device"] != token:
        line += f"; {found['kv_bytes_per_token_per_device']:,} B on each device"
    yield line
    if found["kv_bytes_per_token_beyond_windows"] < token:
        yield f"                {found['kv_bytes_per_token_beyond_windows']:,} B a token beyond the windows"
    if found["indexer_bytes_per_token"]:
        yield f"                and {found['indexer_bytes_per_token']:,} B a token for the indexer's keys"
    if found["state_bytes_per_sequence"]:
        yield f"                and {_gib(found['state_bytes_per_sequence'])} of state a sequence"
    claimed = formula["bytes_per_token"]
    factor = formula["overstates"]
    verdict = "which is right here" if abs(factor - 1) < 1e-9 else f"{factor:.3g} times the truth"
    yield f"  published     {formula['formula']}"
    yield (
        f"                = 2 * {formula['layers']} * {formula['heads']} * {formula['head_dim']} numbers = "
        f"{claimed:,} B a token: {verdict}"
    )
    hidden = formula["overstates_with_hidden_over_heads"]
    if abs(hidden - factor) > 0.01 * factor:
        yield f"                {hidden:.3g} times where head_dim is taken as hidden size / heads"


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    if found["kv_tokens"] is None:
        yield ""
        yield "Give --gpu NAME or --memory GiB for the size of the KV cache, and what fits."
        return
    yield ""
    total = found["device_bytes"]
    share = found["settings"]["gpu_memory_utilization"]
    if total is not None:
        yield f"Memory of one device: {_gib(total)} * {share:g} = {_gib(total * share)}"
        for term in found["memory"]:
            spread = ""
            if term["high"] - term["low"] > 0.005 * GIB:
                spread = f" ({term['low'] / GIB:.2f} to {term['high'] / GIB:.2f})"
            yield f"  - {term['what']:<14}{_gib(term['bytes']):>12}{spread}  {term['why']}"
    low, high = found["kv_tokens_range"]
    spread = f" ({low:,} to {high:,})" if low != high else ""
    yield (
        f"  = KV cache    {_gib(found['kv_bytes']):>14}  {found['kv_blocks']:,} blocks, "
        f"{found['kv_tokens']:,} tokens{spread}"
    )
    if total is not None:
        yield f"  evidence: {found['evidence']}"


def _fits(found: Mapping[str, Any]) -> Iterator[str]:
    if found["kv_tokens"] is None:
        return
    longest = found["settings"]["max_model_len"]
    yield f"  fits          {found['max_concurrency']:.2f} sequences at max_model_len ({longest:,} tokens)"
    others = [
        f"{number:,.0f} of {int(length):,}"
        for length, number in found["sequences_at"].items()
        if int(length) != longest
    ]
    if others:
        yield f"                {', '.join(others)} tokens"
    if traffic := found.get("traffic"):
        yield (
            f"                {traffic['sequences_that_fit']:,.0f} at your lengths (prompt {traffic['prompt_tokens']}, "
            f"answer {traffic['output_tokens']}: {traffic['held_tokens']} tokens held on average); "
            f"{traffic['sequences_that_run']:,.0f} run"
        )


def _rules(found: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    errors = [each for each in found["violations"] if each["severity"] == "error"]
    yield "The server would start." if found["starts"] else "The server would not start:"
    for each in errors:
        yield f"  {each['sentence']}"
    for each in found["violations"]:
        if each["severity"] == "warning":
            yield f"  warning: {each['sentence']}"
    yield "Legal while the others stay:"
    for each in found["rules"]:
        if each["least"] is None:
            yield f"  {each['flag']:<32} no legal value: {each['below']['rule']}: {each['below']['why']}"
            continue
        least, most = _plain(each["least"]), _plain(each["most"])
        if each["above"] is None and each["most"] >= 1 << 24:
            most = "any"
        yield f"  {each['flag']:<32} {_plain(each['value'])} in {least} .. {most}"
        for word, bound in (("below", each["below"]), ("above", each["above"])):
            if bound is not None and bound["rule"] != "R7":  # "at least 1" needs no words
                yield f"      {word}: {bound['rule']}, {bound['why']}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _prices(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["prices"]:
        return
    yield ""
    yield "What each knob costs:"
    for each in found["prices"]:
        yield f"  {each['change']:<42} {each['kv_tokens']:>+12,} KV tokens  {each['effect']}"


def _roofline(found: Mapping[str, Any]) -> Iterator[str]:
    roof = found["roofline"]
    if roof is None:
        return
    yield ""
    if "missing" in roof:
        yield roof["missing"]
        return
    band, peak = roof["bandwidth_bytes_per_s"], roof["peak_flops_per_s"]
    yield (
        f"Ceilings of {roof['device']}: {band['value'] / 1e12:.3g} TB/s, {peak['value'] / 1e12:,.0f} TFLOP/s "
        f"{roof['peak_of']} (dense)"
    )
    yield f"  sources: {band['source']}" + ("" if peak["source"] == band["source"] else f"; {peak['source']}")
    for each in roof["ceilings"]:
        yield (
            f"  {each['step']:<38} at least {1000 * each['seconds']:8.2f} ms, at most {each['tokens_per_s']:>10,.0f} "
            f"tokens/s  ({each['bound']})"
        )
    yield f"  products take as long as reading the weights at {roof['balance_tokens']:,.0f} tokens a step"


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if found["notes"]:
        yield ""
    for each in found["notes"]:
        yield f"note: {each}"
