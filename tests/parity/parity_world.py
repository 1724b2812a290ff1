"""Tiny models made with transformers, and a loop of scheduler and runner without server or threads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from headrace.core.request import Request, SamplingParams
from headrace.core.scheduler import Scheduler
from headrace.engine.config import EngineConfig, scheduler_config
from headrace.engine.model_runner import ModelRunner
from headrace.engine.outputs import TokenLogprob

VOCAB = 256
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 16,
    "initializer_range": 0.12,  # six times the usual: margins between the best tokens are far above rounding
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_CONFIGS = {"Gemma3ForCausalLM": "Gemma3TextConfig"}  # the shorter name is that of the multimodal model


def save_tiny_model(
    architecture: str, directory: Path, *, seed: int = 3, **overrides: object
) -> transformers.PreTrainedModel:
    """A random model of that architecture in fp32, saved in the Hugging Face layout; returned as the oracle."""
    name = _CONFIGS.get(architecture, architecture.replace("ForCausalLM", "Config"))
    config_class = getattr(transformers, name)
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config_class(**(COMMON | overrides))).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start as ones and zeros, which would hide a swapped one
                parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" in name else 0.5))
    model.save_pretrained(directory)
    return model


def oracle_greedy(
    oracle: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[list[list[int]], torch.Tensor]:
    """(greedy tokens, fp32 logits `[prompts, new_tokens, vocabulary]`) of transformers, in one left-padded batch.

    Fails when any choice was a near tie: a difference in rounding would then decide.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attended = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generated = oracle.generate(
        ids,
        attention_mask=attended,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(generated.logits, dim=1).float()
    best = logits.topk(2, dim=-1).values
    assert (best[..., 0] - best[..., 1]).min() > 1e-4, "the oracle itself is undecided: choose other weights"
    return generated.sequences[:, width:].tolist(), logits


def engine_config(directory: Path, **overrides: object) -> EngineConfig:
    values: dict[str, object] = {
        "model": "tiny",
        "served_model_names": ("tiny",),
        "tokenizer": str(directory),
        "dtype": "float32",
        "load_format": "safetensors",
        "seed": 0,
        "max_model_len": 512,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 32,
        "block_size": 16,
        "num_kv_blocks": 400,
        "enable_chunked_prefill": True,
        "scheduler_version": "v1",
        "scheduling_policy": "fcfs",
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 0,
        "num_threads": 1,
        "generation_config": "vllm",
        "chat_template": None,
        "model_path": directory,
    }
    return EngineConfig(**(values | overrides))  # type: ignore[arg-type]


def prompts_of_mixed_length(count: int, longest: int, seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [1, longest, *(rng.randint(2, longest) for _ in range(count - 2))]
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def greedy_requests(prompts: Sequence[Sequence[int]], max_tokens: int, logprobs: int | None = None) -> list[Request]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, logprobs=logprobs)
    return [Request(f"r{index}", tuple(prompt), params) for index, prompt in enumerate(prompts)]


class Loop:
    """schedule -> run -> commit, until nothing is left."""

    def __init__(self, config: EngineConfig, runner: ModelRunner | None = None) -> None:
        self.runner = runner or ModelRunner(config)
        self.scheduler = Scheduler(scheduler_config(config))
        self.num_steps = 0
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.errors: dict[str, str] = {}

    def generate(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        """Output tokens by request id; `logprobs` and `errors` are filled on the way."""
        for request in requests:
            self.scheduler.add(request)
        outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
        while self.scheduler.has_work:
            batch = self.scheduler.schedule()
            self.num_steps += 1
            step = self.runner.run(batch)
            for request_id, logprobs in step.logprobs.items():
                self.logprobs.setdefault(request_id, []).extend(logprobs)
            for event in self.scheduler.commit(batch, step.result):
                if event.error is not None:
                    self.errors[event.request_id] = event.error
                if event.token_id is not None:
                    outputs[event.request_id].append(event.token_id)
        return outputs


def first_token_error(loop: Loop, twin: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]]) -> float:
    """How far the log-probabilities of each prompt's next token are from the twin's: mean error over their spread.

    One token each, so that one flipped token does not spread.
    """
    loop.generate(greedy_requests(prompts, 1, logprobs=VOCAB))
    _, logits = oracle_greedy(twin, prompts, 1)
    exact = torch.log_softmax(logits[:, 0], dim=-1)
    tops = [dict(loop.logprobs[f"r{index}"][0].top) for index in range(len(prompts))]
    found = torch.tensor([[row[token] for token in range(VOCAB)] for row in tops])
    return float((found - exact).abs().mean() / exact.std())
