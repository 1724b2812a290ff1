"""From declared flags to one resolved, frozen configuration that is stored with every result."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from headrace.core.scheduler import SchedulerConfig, Speculation
from headrace.engine import kernels, machine
from headrace.engine.demo import DEMO_NAME, DEMO_SEED
from headrace.engine.dtypes import DTYPE_BYTES, kv_bytes_per_token, resolve_dtype, resolve_kv_dtype
from headrace.engine.flag_values import parse_tokens
from headrace.engine.model_files import ModelFacts, check_weights, locate, read_facts
from headrace.engine.profiler import ProfilerConfig, read_profiler_config
from headrace.engine.quant.int4_choice import choose_int4
from headrace.engine.quant.layout import EXPANDED, W4A8
from headrace.engine.speculative_config import describe, read_speculative_config
from headrace.engine.step_log import StepLogConfig, read_step_log_config
from headrace.errors import ConfigError
from headrace.sizing import memory as sizing
from headrace.sizing import rules
from headrace.sizing.context import fit_max_model_len
from headrace.sizing.settings import MemoryFacts, ServeSettings, Violation

GIB = 1 << 30
TO_INT8 = "int8"

DEFAULT_BUDGET = 2048
DEFAULT_SEATS = 128
DEFAULT_BLOCK_SIZE = 16
DEFAULT_UTILIZATION = 0.9
DEFAULT_KV_BYTES = 2 * GIB
"""A server nobody asked to be large should not take the machine: more KV cache than this is taken only when one
sequence needs it, or when --gpu-memory-utilization is given."""
DEFAULT_QUEUE = 8192
DEFAULT_QUEUE_TOKENS = 4 << 20
"""Token ids of waiting prompts take about 36 bytes each in Python: this many take 150 MB."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything resolved: "auto" never survives into this object.

    model            the model's name as the user gave it, or "demo" for the built-in one
    model_path       directory with its config.json
    tokenizer        directory with tokenizer.json
    served_model_names   names that the API accepts (the first is the one it answers with)
    scheduler_version    "v1" or "v0"; with `enable_chunked_prefill` it names the scheduler's policy
    num_kv_blocks    usable blocks of `block_size` tokens
    dtype            "float32" or "bfloat16"
    kv_cache_dtype   "float32", "bfloat16" or "int8"; left empty, the dtype
    load_format      "safetensors" or "dummy" (random weights from `seed`)
    generation_config  "auto" applies the model's own sampling defaults, "vllm" ignores them
    chat_template    Jinja text that replaces the tokenizer's own template, or None
    max_num_queued_reqs  requests that may wait for their first step; one more is refused
    quantization     "int8": linear layers and the head are quantised when they are loaded (W8A8); else the checkpoint's
                     method, or "none"
    int4             int4 weights: "w4a8" stay packed and are multiplied by int8 tokens (native kernel), "packed" by
                     tokens as they are (torch's kernel), "expanded" to `dtype` when they are loaded
    max_num_queued_tokens  tokens that the prompts of waiting requests may have together
    step_log         where each step is noted, or None
    profiler         where traces go, or None: there is no profiler
    speculation      how tokens are guessed ahead of the model, or None: not at all
    """

    model: str
    served_model_names: tuple[str, ...]
    tokenizer: str
    dtype: str
    load_format: str
    seed: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    num_kv_blocks: int
    enable_chunked_prefill: bool
    scheduler_version: str
    scheduling_policy: str
    enable_prefix_caching: bool
    long_prefill_token_threshold: int
    num_threads: int
    generation_config: str
    chat_template: str | None
    model_path: Path | None
    max_num_queued_reqs: int = DEFAULT_QUEUE
    max_num_queued_tokens: int = DEFAULT_QUEUE_TOKENS
    int4: str = W4A8
    step_log: StepLogConfig | None = None
    profiler: ProfilerConfig | None = None
    speculation: Speculation | None = None
    kv_cache_dtype: str = ""
    quantization: str = "none"

    def __post_init__(self) -> None:
        if not self.kv_cache_dtype:
            object.__setattr__(self, "kv_cache_dtype", self.dtype)

    @property
    def to_int8(self) -> bool:
        """Whether plain weights are quantised when they are loaded."""
        return self.quantization == TO_INT8

    @property
    def policy(self) -> str:
        """v1, v1-whole, v0-chunked or v0."""
        if self.scheduler_version == "v1":
            return "v1" if self.enable_chunked_prefill else "v1-whole"
        return "v0-chunked" if self.enable_chunked_prefill else "v0"

    @property
    def kv_tokens(self) -> int:
        """Capacity of the KV cache in tokens."""
        return self.num_kv_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """Declared options; None means "not given".  Names and meanings are vLLM's, `--max-model-len` is
    `max_model_len`.  Ours are `scheduler_version`, `num_threads` and `step_log*`."""

    model: str | None = None
    served_model_name: tuple[str, ...] = ()
    tokenizer: str | None = None
    revision: str | None = None
    download_dir: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    load_format: str | None = None
    quantization: str | None = None
    seed: int | None = None
    max_model_len: str | int | None = None
    max_num_batched_tokens: str | int | None = None
    max_num_seqs: int | None = None
    block_size: int | None = None
    enable_chunked_prefill: bool | None = None
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: str | int | None = None
    num_gpu_blocks_override: int | None = None
    swap_space: float | None = None
    long_prefill_token_threshold: int | None = None
    scheduling_policy: str | None = None
    scheduler_version: str | None = None
    generation_config: str | None = None
    chat_template: str | None = None
    num_threads: int | None = None
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: str | int | None = None
    step_log: str | None = None
    step_log_max_bytes: str | int | None = None
    step_log_requests: bool | None = None
    profiler_config: str | None = None
    speculative_config: str | Mapping[str, Any] | None = None


def scheduler_config(config: EngineConfig) -> SchedulerConfig:
    """The scheduler's part of a configuration."""
    return SchedulerConfig(
        policy=config.policy,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        num_blocks=config.num_kv_blocks,
        enable_prefix_caching=config.enable_prefix_caching,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        scheduling_policy=config.scheduling_policy,
        speculation=config.speculation,
    )


def resolve(
    args: EngineArgs,
    *,
    environ: Mapping[str, str] | None = None,
    free_memory_bytes: int | None = None,
    native_bf16: bool | None = None,
) -> tuple[EngineConfig, list[str]]:
    """Turn options into a legal configuration, and say why each setting has its value ("setting = value: why").

    Reads the model's config.json and the machine's limits, loads no weights and imports no torch.  Raises ConfigError
    with rule, value, bound and fix for anything illegal.  `environ`, `free_memory_bytes` and `native_bf16`
    replace this process's and this processor's own (tests do).
    """
    if native_bf16 is None:
        native_bf16 = machine.has_native_bf16() or kernels.native() is not None
    return _Resolver(args, os.environ if environ is None else environ, free_memory_bytes, native_bf16).resolve()


class _Resolver:
    """Resolves one setting after the other; the later ones may look at the earlier ones."""

    def __init__(
        self, args: EngineArgs, environ: Mapping[str, str], free_memory_bytes: int | None, native_bf16: bool
    ) -> None:
        self.args = args
        self.environ = environ
        self.native_bf16 = native_bf16
        self.free = machine.free_memory_bytes() if free_memory_bytes is None else free_memory_bytes
        self.lines: list[str] = []
        self.said: set[str] = set()
        self.int4 = W4A8

    def say(self, setting: str, value: object, why: str) -> None:
        self.said.add(setting)
        self.lines.append(f"{setting} = {value}: {why}")

    def say_the_rest(self, config: EngineConfig) -> None:
        """No setting is silent: what nobody has explained yet was given, or is the default."""
        for field in fields(EngineArgs):
            value = getattr(config, field.name, None)
            if value is not None and field.name not in self.said:
                shown = f"{len(value)} characters" if field.name == "chat_template" else value
                self.say(field.name, shown, "default" if getattr(self.args, field.name) is None else "given")

    def one_of(self, flag: str, given: str | None, default: str, known: tuple[str, ...]) -> str:
        if given is not None and given not in known:
            raise ConfigError(f"{flag} {given!r} is not known; use one of {', '.join(known)}")
        return default if given is None else given

    def resolve(self) -> tuple[EngineConfig, list[str]]:
        args = self.args
        name, path = locate(
            args.model,
            revision=args.revision,
            download_dir=args.download_dir,
            weights=args.load_format != "dummy",
        )
        facts = read_facts(path)
        why = "no --model given: the built-in demonstration model" if args.model is None else str(path)
        self.say("model", name, f"{why}; {facts.shape.architecture}, {facts.num_parameters / 1e6:,.0f} M parameters")
        load_format = self.load_format(name, path)
        self.quantization = self.check_quantization(facts, load_format)
        dtype, why = resolve_dtype(args.dtype, facts.dtype, native_bf16=self.native_bf16)
        self.say("dtype", dtype, why)
        kv_dtype, why = resolve_kv_dtype(args.kv_cache_dtype, dtype)
        self.say("kv_cache_dtype", kv_dtype, why)
        settings = self.scheduler_settings(facts)
        speculation = self.speculation(settings)
        settings = self.with_memory(settings, facts, dtype, kv_dtype, speculation)
        assert settings.kv_tokens is not None
        tokenizer = self.tokenizer(path)
        config = EngineConfig(
            model=name,
            served_model_names=tuple(args.served_model_name) or (name,),
            tokenizer=tokenizer,
            dtype=dtype,
            load_format=load_format,
            seed=self.seed(),
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
            block_size=settings.block_size,
            num_kv_blocks=settings.kv_tokens // settings.block_size,
            enable_chunked_prefill=settings.enable_chunked_prefill,
            scheduler_version=settings.scheduler_version,
            scheduling_policy=settings.scheduling_policy,
            enable_prefix_caching=settings.enable_prefix_caching,
            long_prefill_token_threshold=settings.long_prefill_token_threshold,
            num_threads=self.num_threads(),
            generation_config=self.one_of("--generation-config", args.generation_config, "auto", ("auto", "vllm")),
            chat_template=self.chat_template(),
            model_path=path,
            max_num_queued_reqs=self.queue(),
            int4=self.int4,
            max_num_queued_tokens=self.queued_tokens(),
            step_log=self.step_log(),
            profiler=self.profiler(),
            speculation=speculation,
            kv_cache_dtype=kv_dtype,
            quantization=self.quantization,
        )
        self.say_the_rest(config)
        scheduler_config(config)  # what only the scheduler itself knows to refuse
        return config, self.lines

    # -- the model ------------------------------------------------------------------------------------------------

    def load_format(self, name: str, path: Path) -> str:
        given = self.one_of("--load-format", self.args.load_format, "auto", ("auto", "safetensors", "dummy"))
        if name == DEMO_NAME and given != "dummy":
            if given == "safetensors":
                raise ConfigError(
                    "--load-format safetensors: the built-in model has no weight files; use dummy or auto"
                )
            self.say("load_format", "dummy", "the built-in model's weights are generated from the seed")
            return "dummy"
        if given == "dummy":
            self.say("load_format", "dummy", "given; random weights, so the answers mean nothing")
            return "dummy"
        check_weights(name, path)
        return "safetensors"

    def check_quantization(self, facts: ModelFacts, load_format: str) -> str:
        """The checkpoint says how its weights are stored; --quantization may agree, or quantise plain ones to int8."""
        given, stored = (self.args.quantization or "none").lower(), facts.shape.quantization
        if stored is not None and load_format == "dummy":
            raise ConfigError(
                f"--load-format dummy: random weights are not quantised, and this model is ({stored}); "
                "remove quantization_config from its config.json, or load its own weights"
            )
        # vLLM has kernels by name for some formats; which one computes changes no setting here.
        if given == "none" or (stored is not None and given.partition("_")[0] == stored.method):
            return stored.method if stored is not None else "none"
        if stored is None:
            if given == TO_INT8:
                return TO_INT8
            raise ConfigError(
                f"--quantization {given}: the model's weights are not quantised; use int8, which quantises them when "
                "they are loaded, leave it out, or give a quantised model"
            )
        if given == TO_INT8:
            raise ConfigError(
                f"--quantization int8: the model's weights are quantised already ({stored}); leave it out, or give the "
                "model that it was made from"
            )
        raise ConfigError(
            f"--quantization {given}: Quantization method specified in the model config ({stored.method}) does not "
            f"match the quantization method specified in the `quantization` argument ({given}); leave it out"
        )

    def seed(self) -> int:
        if self.args.seed is None:
            return DEMO_SEED
        if not 0 <= self.args.seed < 1 << 63:
            raise ConfigError(f"--seed {self.args.seed} must be between 0 and 2**63 - 1")
        return self.args.seed

    def tokenizer(self, model_path: Path) -> str:
        if self.args.tokenizer is None:
            path = model_path
        else:
            _, path = locate(self.args.tokenizer, download_dir=self.args.download_dir, weights=False)
        if not (path / "tokenizer.json").is_file():
            raise ConfigError(
                f"{path} has no tokenizer.json; name a directory or model that has one with --tokenizer "
                "(SentencePiece files must be converted first)"
            )
        return str(path)

    def chat_template(self) -> str | None:
        given = self.args.chat_template
        if given is None:
            return None
        if any(mark in given for mark in ("{{", "{%", "{#")):
            return given  # the template itself, as vLLM accepts it
        try:
            return Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"--chat-template {given} cannot be read ({reason}); name a Jinja file") from None

    # -- scheduling -----------------------------------------------------------------------------------------------

    def scheduler_settings(self, facts: ModelFacts) -> ServeSettings:
        """The scheduler's settings, with `max_model_len` -1 where it is to be fitted to the KV cache."""
        args = self.args
        version = args.scheduler_version or "v1"
        chunked = True if args.enable_chunked_prefill is None else args.enable_chunked_prefill
        if args.enable_chunked_prefill is None:
            self.say("enable_chunked_prefill", True, "default")
        prefix = args.enable_prefix_caching
        if prefix is None:
            prefix = version == "v1"
            self.say("enable_prefix_caching", prefix, f"default of scheduler {version}")
        length = self.max_model_len(facts)
        budget = args.max_num_batched_tokens
        seats = args.max_num_seqs
        if budget is not None:
            budget = parse_tokens("--max-num-batched-tokens", budget)
        else:
            budget, why = DEFAULT_BUDGET, "default"
            if not chunked and length > budget:
                budget, why = length, "max_model_len, since prompts are not chunked"
            if seats is not None and seats > budget:
                budget, why = seats, "max_num_seqs, one token for each sequence"
            usable = (seats or DEFAULT_SEATS) * length
            if 0 < usable < budget:
                budget, why = usable, "max_num_seqs * max_model_len, more is of no use"
            self.say("max_num_batched_tokens", budget, why)
        if seats is None:
            seats = min(DEFAULT_SEATS, max(1, budget))
            self.say(
                "max_num_seqs", seats, "default" if seats == DEFAULT_SEATS else "default, clamped to the token budget"
            )
        settings = ServeSettings(
            max_num_batched_tokens=budget,
            max_num_seqs=seats,
            max_model_len=length,
            enable_chunked_prefill=chunked,
            scheduler_version=version,
            block_size=DEFAULT_BLOCK_SIZE if args.block_size is None else args.block_size,
            enable_prefix_caching=prefix,
            scheduling_policy=args.scheduling_policy or "fcfs",
            long_prefill_token_threshold=args.long_prefill_token_threshold or 0,
        )
        # What is wrong on every machine is said before memory is looked at; a length still to be fitted breaks no rule.
        broken = rules.errors(rules.violations(settings if length > 0 else replace(settings, max_model_len=budget)))
        if broken:
            raise ConfigError(_refusal(broken[0]))
        return settings

    def speculation(self, settings: ServeSettings) -> Speculation | None:
        longest = settings.max_model_len if settings.max_model_len > 0 else sys.maxsize
        speculation = read_speculative_config(
            self.args.speculative_config,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=longest,
        )
        if speculation is not None:
            self.say("speculative_config", describe(speculation), "given")
        return speculation

    def max_model_len(self, facts: ModelFacts) -> int:
        given, limit = self.args.max_model_len, facts.shape.max_position_embeddings
        if given is None:
            return facts.shape.max_position_embeddings
        if given == "auto":
            return -1
        length = parse_tokens("--max-model-len", given)
        if length == -1:
            return -1
        if length < 1:
            raise ConfigError(f"R7: --max-model-len is {length} but must be at least 1 (or auto)")
        if length > limit:
            if self.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
                raise ConfigError(
                    f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
                    f"(max_position_embeddings={limit} in the model's config.json); lower --max-model-len to at most "
                    f"{limit}, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 when the model is known to bear it"
                )
            self.say("max_model_len", length, f"given, beyond the model's {limit} (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1)")
        return length

    def check(self, settings: ServeSettings, memory: MemoryFacts) -> None:
        """Raise ConfigError for the first broken rule; say the warnings."""
        for violation in rules.violations(settings, memory):
            if violation.severity == "error":
                raise ConfigError(_refusal(violation))
            self.lines.append(f"warning: {rules.explain(violation)}")

    # -- memory ---------------------------------------------------------------------------------------------------

    def with_memory(
        self, settings: ServeSettings, facts: ModelFacts, dtype: str, kv_dtype: str, speculation: Speculation | None
    ) -> ServeSettings:
        """Fill in `kv_tokens`, and `max_model_len` where it was left open; check everything."""
        args, size = self.args, DTYPE_BYTES[dtype]
        token_bytes = kv_bytes_per_token(facts.shape, kv_dtype)
        block_bytes = token_bytes * settings.block_size
        # Drafts are sampled as well: that many rows of logits at once, but no more than a step has tokens.
        rows = settings.max_num_seqs * (1 + (speculation.num_speculative_tokens if speculation else 0))
        rows = min(rows, settings.max_num_batched_tokens)
        activations = sizing.activation_bytes(facts.shape, settings.max_num_batched_tokens, rows)
        self.int4 = self.int4_weights(settings, facts, size)
        weights = facts.weight_bytes(size, int4=self.int4, to_int8=self.quantization == TO_INT8)
        utilization = self.utilization()
        memory = MemoryFacts(
            free_bytes=self.free,
            total_bytes=self.free,  # on a CPU the device is what is really free: others' memory was never ours
            utilization=utilization,
            kv_bytes_per_token=token_bytes,
            budget=(("weights", weights), ("activations", activations)),
        )
        longest = settings.max_model_len if settings.max_model_len > 0 else facts.shape.max_position_embeddings
        one = -(-longest // settings.block_size)
        room = int(self.free * utilization) - weights - activations
        if weights + activations + block_bytes > self.free:
            tokens, seats = sizing.step_that_fits(facts.shape, self.free - weights - block_bytes)
            fix = "take a smaller model"
            if seats:
                fix = f"lower --max-num-batched-tokens to at most {tokens} and --max-num-seqs to at most {seats}"
            raise ConfigError(
                f"weights of {_gib(weights)}, {_gib(activations)} for a step of {settings.max_num_batched_tokens} "
                f"tokens and {settings.max_num_seqs} sequences, and one block of KV cache do not fit the "
                f"{_gib(self.free)} of memory that are free; {fix} (--gpu-memory-utilization 1 takes all of it)"
            )
        affordable = sizing.kv_blocks_that_fit(self.free, utilization, weights, activations, block_bytes)
        blocks, why = self.kv_blocks(settings, block_bytes, one, affordable)
        bytes_ = blocks * block_bytes
        if bytes_ + weights > self.free and bytes_ > room:
            most = max(self.free - weights, room) // block_bytes
            fix = f"lower --kv-cache-memory-bytes to at most {most * block_bytes}"
            if args.num_gpu_blocks_override:
                fix = f"lower --num-gpu-blocks-override to at most {most}"
            raise ConfigError(
                f"a KV cache of {_gib(bytes_)} and weights of {_gib(weights)} do not fit the {_gib(self.free)} of "
                f"memory that are free; {fix if most > 0 else 'take a smaller model'}"
            )
        self.say("num_kv_blocks", f"{blocks:,}", f"{why}; {_gib(bytes_)}, {blocks * settings.block_size:,} tokens")
        self.lines.append(
            f"memory: {_gib(self.free)} free * {utilization:g} = weights {_gib(weights)} + activations "
            f"{_gib(activations)} + KV cache {_gib(bytes_)} + {_gib(max(0, room - bytes_))} unused"
        )
        settings = replace(settings, kv_tokens=blocks * settings.block_size)
        settings = self.fit_length(settings, facts)
        self.check(settings, memory)
        if args.swap_space:
            self.say(
                "swap_space", f"{args.swap_space:g}", "accepted, no effect: preempted sequences are computed again"
            )
        return settings

    def int4_weights(self, settings: ServeSettings, facts: ModelFacts, size: int) -> str:
        """How int4 weights are kept: as the native kernel wants them, or as is faster with torch's (decision 6)."""
        quantization, experts = facts.shape.quantization, facts.shape.experts
        if quantization is None:
            if self.quantization == TO_INT8:
                plain, held = facts.weight_bytes(size), facts.weight_bytes(size, to_int8=True)
                own = " (a tied head is a matrix of its own)" if facts.shape.tie_word_embeddings else ""
                what = f"int8, tokens as well; {_gib(held)} instead of {_gib(plain)} of weights{own}"
                self.say("quantization", what, "given; linear layers and head are quantised when they are loaded")
            return W4A8
        self.say("quantization", quantization, "config.json")
        if quantization.bits != 4:
            return W4A8
        choice, what, why = choose_int4(
            lambda kind: facts.weight_bytes(size, int4=kind),
            rows=settings.max_num_seqs * (experts.per_token / experts.count if experts else 1),
            budget_bytes=self.free * self.utilization(),
            environ=self.environ,
            has_native=kernels.native() is not None,
            has_avx512=machine.has_avx512(),
        )
        self.say("int4 weights", what, why)
        if choice != EXPANDED and (unfit := facts.num_unfit_int4(choice)):
            self.say(f"int4 weights of {unfit} modules", "expanded when loaded", "their sizes do not fit that kernel")
        return choice

    def utilization(self) -> float:
        given = self.args.gpu_memory_utilization
        if given is None:
            return DEFAULT_UTILIZATION
        if not 0 < given <= 1:
            raise ConfigError(f"--gpu-memory-utilization {given:g} must be above 0 and at most 1")
        return given

    def kv_blocks(self, settings: ServeSettings, block_bytes: int, one: int, affordable: int) -> tuple[int, str]:
        """(blocks, why): `one` is what a sequence of full length needs, `affordable` what the budget has room for."""
        args = self.args
        if args.num_gpu_blocks_override is not None:
            if args.num_gpu_blocks_override < 1:
                raise ConfigError(f"--num-gpu-blocks-override {args.num_gpu_blocks_override} must be at least 1")
            return args.num_gpu_blocks_override, "given by --num-gpu-blocks-override"
        given = args.kv_cache_memory_bytes
        if given is None and (gib := self.environ.get("VLLM_CPU_KVCACHE_SPACE")):
            if not gib.isdecimal():
                raise ConfigError(f"VLLM_CPU_KVCACHE_SPACE={gib} is not a whole number of GiB")
            if int(gib):
                return int(gib) * GIB // block_bytes, "VLLM_CPU_KVCACHE_SPACE"
        if given is not None:
            wanted = parse_tokens("--kv-cache-memory-bytes", given)
            if wanted < block_bytes:
                raise ConfigError(f"--kv-cache-memory-bytes {given} must be at least {block_bytes} (one block)")
            return wanted // block_bytes, "given by --kv-cache-memory-bytes"
        useful = settings.max_num_seqs * one
        if args.gpu_memory_utilization is None:
            modest = max(one, DEFAULT_KV_BYTES // block_bytes)
            if modest < min(affordable, useful):
                return modest, "default size; --gpu-memory-utilization takes more"
        if useful <= affordable:
            return useful, "all that max_num_seqs sequences of max_model_len can use"
        return affordable, "what the memory budget leaves"

    def fit_length(self, settings: ServeSettings, facts: ModelFacts) -> ServeSettings:
        """A length that was left open becomes the longest that fits; a given one is kept, and judged by the rules."""
        assert settings.kv_tokens is not None
        if self.args.max_model_len is not None and settings.max_model_len > 0:
            return settings
        limit = facts.shape.max_position_embeddings
        fitted = fit_max_model_len(limit, settings.kv_tokens, block_size=settings.block_size)
        if fitted == 0:
            return replace(settings, max_model_len=1)  # R11 says it better
        if fitted < limit:
            why = f"what the KV cache holds; the model would allow {limit}"
        else:
            why = "the model's max_position_embeddings"
        if not settings.enable_chunked_prefill and self.args.max_num_batched_tokens is None:
            settings = replace(settings, max_num_batched_tokens=max(fitted, settings.max_num_seqs, DEFAULT_BUDGET))
        self.say("max_model_len", fitted, why)
        return replace(settings, max_model_len=fitted)

    # -- the process ----------------------------------------------------------------------------------------------

    def num_threads(self) -> int:
        given = self.args.num_threads
        if given is not None:
            if not 1 <= given <= 1024:
                raise ConfigError(f"--num-threads {given} must be between 1 and 1024")
            self.say("num_threads", given, "given")
            return given
        declared = self.environ.get("OMP_NUM_THREADS", "")
        if declared.isdecimal() and int(declared) > 0:
            self.say("num_threads", int(declared), "OMP_NUM_THREADS")
            return int(declared)
        cores, why = machine.usable_cores()
        self.say("num_threads", cores, why)
        return cores

    def queue(self) -> int:
        given = self.args.max_num_queued_reqs
        if given is None:
            return DEFAULT_QUEUE
        if given < 1:
            raise ConfigError(f"--max-num-queued-reqs {given} must be at least 1")
        return given

    def queued_tokens(self) -> int:
        given = self.args.max_num_queued_tokens
        if given is None:
            return DEFAULT_QUEUE_TOKENS
        most = parse_tokens("--max-num-queued-tokens", given)
        if most < 1:
            raise ConfigError(f"--max-num-queued-tokens {most} must be at least 1")
        return most

    def profiler(self) -> ProfilerConfig | None:
        config, why = read_profiler_config(self.args.profiler_config, self.environ)
        if config is not None:
            self.say("profiler", f"torch, at most {config.max_steps} steps into {config.directory}", why)
        return config

    def step_log(self) -> StepLogConfig | None:
        args = self.args
        config = read_step_log_config(args.step_log, args.step_log_max_bytes, bool(args.step_log_requests))
        if config is not None:
            most = f"at most {config.max_bytes >> 20} MiB with {config.path.name}.1, the older half"
            self.say("step_log", config.path, f"given; {most}")
        return config


def _refusal(violation: Violation) -> str:
    """Rule, value, bound and fix in our words, then vLLM's, which people search for."""
    return f"{rules.explain(violation)} (vLLM: {violation.message})"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
