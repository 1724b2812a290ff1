"""Planted bugs: each one mutates a copy of one core module by replacing text that occurs exactly once."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import headrace.core

MODULES = (
    "repetition",
    "thinking",
    "request",
    "sequence",
    "batch",
    "speculation",
    "blocks",
    "queues",
    "state",
    "policy",
    "scheduler",
    "invariants",
)
_copies = itertools.count()


@dataclass(frozen=True)
class Bug:
    """`old` becomes `new` in `module`; `settings` narrow the worlds to those where that code runs."""

    name: str
    module: str
    old: str
    new: str
    settings: dict[str, object] = field(default_factory=dict)


def load_core(bug: Bug | None = None) -> SimpleNamespace:
    """A separate set of the core's modules, with the bug in it; the invariants are never mutated."""
    source = Path(headrace.core.__file__).parent
    package = f"planted_core_{next(_copies)}"
    sys.modules[package] = ModuleType(package)
    loaded = {}
    for name in MODULES:
        text = (source / f"{name}.py").read_text()
        if bug is not None and bug.module == name:
            if text.count(bug.old) != 1:
                raise LookupError(f"{bug.name}: {bug.old!r} occurs {text.count(bug.old)} times in core/{name}.py")
            text = text.replace(bug.old, bug.new)
        module = ModuleType(f"{package}.{name}")
        sys.modules[module.__name__] = module
        text = text.replace("headrace.core", package)
        exec(compile(text, f"<{package}.{name}>", "exec"), module.__dict__)  # noqa: S102 - our own source
        loaded[name] = module
    return SimpleNamespace(**loaded)


# Several long prompts advance together, the least important first in line, in a pool too small for them.
THRASHING: dict[str, object] = {
    "policy": "v1",
    "scheduling_policy": "priority",
    "long_prefill_token_threshold": 6,
    "max_num_batched_tokens": 24,
    "block_size": 1,
    "num_blocks": 24,
    "max_model_len": 24,
    "enable_prefix_caching": True,
    "hash_at": "plan",
    "reserve_full": False,
}

# Many short sequences of mixed importance that all grow at once.
CROWDED: dict[str, object] = {
    "policy": "v1",
    "scheduling_policy": "priority",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "block_size": 1,
    "num_blocks": 24,
    "max_model_len": 24,
}

BUGS = (
    Bug(
        "free forgets the last block",
        "blocks",
        "in reversed(sequence.block_table):",
        "in sequence.block_table[-2::-1]:",
    ),
    Bug("free ignores other owners", "blocks", "if refs == 0:", "if True:"),
    Bug("free releases the head first", "blocks", "in reversed(sequence.block_table):", "in sequence.block_table:"),
    Bug("a revived block stays free", "blocks", "del self._findable[block]", "pass"),
    Bug(
        "an evicted block keeps its key",
        "blocks",
        "            self._forget(block)\n        self._refs",
        "        self._refs",
    ),
    Bug("growth takes one block too many", "blocks", "for _ in range(need):", "for _ in range(need + 1):"),
    Bug("growth is granted one block too far", "blocks", "+ keep > self.num_free:", "+ keep > self.num_free + 1:"),
    Bug(
        "hits on free blocks cost nothing", "blocks", "refs[block] == 0 for block in reuse", "False for block in reuse"
    ),
    Bug("the last block of a full hit is not recomputed", "blocks", "(0 if whole else 1)", "0"),
    Bug("the key ignores the salt", "blocks", "sequence.request.cache_salt.encode()", 'b""'),
    Bug("the key ignores what stands before", "blocks", "_digest(*keys[-1]) if keys", '_digest(b"", b"") if keys'),
    Bug(
        "an unfinished chunk is published whole",
        "policy",
        "publish(sequence, end)",
        "publish(sequence, sequence.num_tokens)",
    ),
    Bug("a withdrawn chunk stays findable", "policy", "blocks.retract(victim, chunk.start)", "pass", THRASHING),
    Bug("the index drifts after an eviction", "policy", "            index -= 1\n", "", CROWDED),
    Bug(
        "one token above the budget",
        "scheduler",
        "NextStep(left=config.max_num_batched_tokens)",
        "NextStep(left=config.max_num_batched_tokens + 1)",
    ),
    Bug(
        "one seat too many",
        "policy",
        "len(running) < config.max_num_seqs and",
        "len(running) <= config.max_num_seqs and",
    ),
    Bug(
        "V1 admits after an eviction",
        "policy",
        "    if not step.preempted:\n        _admit_v1(state, step, whole=False)",
        "    if True:\n        _admit_v1(state, step, whole=False)",
        {"policy": "v1"},
    ),
    Bug(
        "a blocked head of line is overtaken",
        "policy",
        "        if not fits:\n            return",
        "        if not fits:\n            return waiting.add(waiting.pop())",
    ),
    Bug(
        "whole prompts are cut", "policy", "            if whole:\n                return\n", "", {"policy": "v1-whole"}
    ),
    Bug(
        "the head waits with room for it",
        "policy",
        "cached + length,\n            reuse",
        "cached + length + config.block_size,\n            reuse",
    ),
    Bug("V0 mixes prefill and decode", "policy", "    if step.chunks:\n        return\n", "", {"policy": "v0"}),
    Bug(
        "V0 loses the evicted",
        "policy",
        "afterwards.\n    _give_back(state, evicted)",
        "afterwards.",
        {"policy": "v0-chunked"},
    ),
    Bug("V0 admits without seats", "policy", " or seats < 1:", ":"),
    Bug(
        "V0 ignores the watermark", "blocks", "self.num_free - need < self.watermark_blocks", "self.num_free - need < 0"
    ),
    Bug("the watermark is ignored", "policy", "blocks.watermark_blocks if running else 0", "0"),
    Bug(
        "a resumed sequence skips a token",
        "state",
        "sequence.computed = cached",
        "sequence.computed = cached + min(1, sequence.num_preemptions)",
    ),
    Bug("a preempted sequence keeps what it computed", "state", "        sequence.computed = 0\n", ""),
    Bug("hits of preempted sequences count as new", "state", "if sequence.num_preemptions:", "if False:"),
    Bug("an aborted request stays in the queue", "scheduler", "            self.state.waiting.remove(sequence)\n", ""),
    Bug(
        "an abort frees blocks in flight",
        "scheduler",
        "if self.in_flight is None:\n            self",
        "if True:\n            self",
    ),
    Bug(
        "aborted blocks are never given back",
        "scheduler",
        "            for sequence in self.retiring:\n                self.state.blocks.free(sequence)\n",
        "",
    ),
    Bug(
        "the result of an aborted row counts",
        "scheduler",
        "if sequence.phase is not running:",
        "if sequence.phase is Phase.WAITING:",
    ),
    Bug("failed rows stay findable", "scheduler", "state.blocks.retract(sequence)\n", "pass\n"),
    Bug(
        "who shares a failed row's block goes on",
        "scheduler",
        "not ruined.isdisjoint(sequence.block_table)",
        "False",
        {"enable_prefix_caching": True, "hash_at": "plan"},
    ),
    Bug("min_tokens is off by one", "scheduler", "ids and length >= sequence", "ids and length > sequence"),
    Bug(
        "the length limit is off by one",
        "scheduler",
        "length >= sequence.length_limit",
        "length > sequence.length_limit",
    ),
    Bug("ignore_eos is ignored", "sequence", "frozenset() if params.ignore_eos else", ""),
    Bug(
        "wrong drafts count as computed",
        "scheduler",
        "min(chunk.start + 1 + accepted,",
        "min(chunk.start + chunk.length,",
    ),
    Bug("a draft is computed twice", "scheduler", "chunk.start + 1 + accepted", "chunk.start + max(1, accepted)"),
    Bug("blocks of wrong drafts are kept", "scheduler", "        blocks.shrink(sequence, computed)\n", ""),
    Bug("blocks of wrong drafts are lost", "blocks", "            self._blank.append(block)\n\n", "\n"),
    Bug(
        "wrong drafts are findable",
        "scheduler",
        "blocks.publish(sequence, computed)",
        "blocks.publish(sequence, chunk.start + chunk.length)",
    ),
    Bug(
        "drafts are findable before they are right",
        "scheduler",
        "end = start + length - len(drafts)",
        "end = start + length",
    ),
    Bug("one draft too many is accepted", "scheduler", "in drafts[:accepted]]", "in drafts[: accepted + 1]]"),
    Bug(
        "the sampled token of drafts is lost",
        "scheduler",
        "if chunk.samples:\n                pairs",
        "if chunk.samples and not drafts:\n                pairs",
    ),
    Bug("drafts of a failed row count", "scheduler", "if drafts and sequence.phase is Phase.RUNNING:", "if drafts:"),
    Bug("drafts above the budget", "speculation", "min(most, step.left, sequence", "min(most, most, sequence"),
    Bug("drafts are not taken off the budget", "speculation", "            step.left -= len(drafts)\n", ""),
    Bug("drafts beyond the limit", "speculation", "sequence.num_tokens - 1)\n", "sequence.num_tokens)\n"),
    Bug(
        "drafts without blocks",
        "speculation",
        "            blocks.grow(sequence, sequence.num_tokens + len(drafts))\n",
        "",
    ),
    Bug("drafts behind prompts", "speculation", "if chunk.start < sequence.prefill_length:", "if not chunk.samples:"),
    Bug(
        "the threshold does not hold for drafts", "speculation", "if config.long_prefill_token_threshold:", "if False:"
    ),
    Bug("a later match wins", "speculation", "if match >= length:\n", "if False:\n"),
    Bug("a match has no beginning", "speculation", "self._match + 1 : self._match", "self._match : self._match"),
    Bug("removal from the priority queue is not counted", "queues", "        self._dead += 1\n", ""),
    Bug("the evicted go to the back", "queues", "        self._items.move_to_end(sequence, last=False)\n", ""),
)
