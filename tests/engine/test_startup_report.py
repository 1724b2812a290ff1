"""What the engine says at start: no setting is silent, and the machine's rates with what they allow."""

from __future__ import annotations

import dataclasses
import re

import pytest

from headrace.engine import kernels, probe, startup_report
from headrace.engine.config import EngineArgs, EngineConfig, resolve
from headrace.engine.model_files import read_facts
from headrace.engine.probe import Probe
from headrace.sizing.memory import parameters

GIB = 1 << 30


class Loaded:
    """An engine as the report sees it."""

    sampling_defaults = {"temperature": 0.6}  # noqa: RUF012

    class tokenizer:  # noqa: N801
        eos_token_ids = frozenset({2, 0})
        has_chat_template = True

    def __init__(self, config: EngineConfig) -> None:
        assert config.model_path is not None
        self.config = config
        self.count = parameters(read_facts(config.model_path).shape)
        self.held = self.count.total * 2  # a tied head is the embedding as well
        self.step_weight_bytes = self.held

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": self.held, "kv_cache": 2 * GIB}


def test_every_setting_has_a_line_with_its_reason() -> None:
    args = EngineArgs(max_model_len=4096, max_num_seqs=8, chat_template="{{ messages }}")
    _, lines = resolve(args, environ={}, free_memory_bytes=8 * GIB)
    said = {line.split(" = ")[0] for line in lines if " = " in line and not line.startswith("memory")}
    # Inputs of the KV cache's size are in its own line; what is not given and has no value needs none.
    elsewhere = {"gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "served_model_name"}
    silent = {"quantization", "revision", "download_dir", "swap_space", "profiler_config", "speculative_config"}
    settings = {field.name for field in dataclasses.fields(EngineArgs)} - elsewhere - silent
    assert {name for name in settings - said if not name.startswith("step_log")} == set()
    assert "max_model_len = 4096: given" in lines and "max_num_seqs = 8: given" in lines
    assert "chat_template = 14 characters: given" in lines and "seed = 0: default" in lines


def test_the_rates_of_the_machine_bound_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    config, _ = resolve(EngineArgs(max_model_len=4096, num_threads=2), environ={}, free_memory_bytes=8 * GIB)
    engine = Loaded(config)
    asked: list[object] = []

    def measure(*what: object) -> Probe:
        asked.extend(what)
        return Probe(bytes_per_s=50e9, flops_per_s=400e9, seconds=0.1)

    monkeypatch.setattr(startup_report, "measure", measure)
    text = "\n".join(startup_report.after_loading(engine, 1.0))  # type: ignore[arg-type]
    assert asked == [config.dtype, 2, engine.step_weight_bytes]
    assert "machine: reads 50.0 GB/s, computes 400 GFLOP/s in bfloat16 with 2 threads (measured in 0.10 s)" in text
    step = engine.count.total * 2
    assert f"at most {50e9 / step:,.0f} tokens/s to one sequence" in text
    flops = 2 * (engine.count.attention + engine.count.mlp)
    assert f"and {400e9 / flops:,.0f} tokens/s to prompts" in text
    assert re.search(r"Maximum concurrency for 4,096 tokens per request: \d+\.\d\dx", text)
    asked.clear()
    eight = Loaded(dataclasses.replace(config, quantization="int8"))
    text = "\n".join(startup_report.after_loading(eight, 1.0))  # type: ignore[arg-type]
    kind = "int8" if kernels.native() is not None else config.dtype  # torch has no probe of int8
    assert asked[0] == kind and f"in {kind} with 2 threads" in text
    asked.clear()
    quiet = startup_report.after_loading(engine, 1.0, probe=False)  # type: ignore[arg-type]
    assert not asked and not any(line.startswith("machine") for line in quiet)


def test_the_probe_measures_with_the_models_type_and_threads() -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    try:
        found = probe.measure("float32", 1, weight_bytes=0)
        native = kernels.native()
        assert (torch.get_num_threads() if native is None else native.num_threads()) == 1
    finally:
        torch.set_num_threads(threads)
    assert found.bytes_per_s > 1e8 and found.flops_per_s > 1e8 and found.seconds > 0
