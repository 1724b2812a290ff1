"""OpenVINO GenAI's continuous batching on one task; run by the Python of its own environment.

`--dtype` is its precision hint (bf16 or f32); the KV cache has the same precision unless `--quantization u8` asks for
its 8-bit cache, which is its default on a CPU.
"""

from collections.abc import Sequence

from tasks import Request, answer, runner_arguments


def main() -> None:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    given = runner_arguments()
    settings = genai.SchedulerConfig()
    settings.max_num_batched_tokens = 512
    settings.max_num_seqs = 64
    settings.dynamic_split_fuse = True
    settings.enable_prefix_caching = given.prefix_caching
    settings.cache_size = 2  # GiB
    hints = {"INFERENCE_PRECISION_HINT": given.dtype, "KV_CACHE_PRECISION": given.quantization or given.dtype}
    pipe = genai.ContinuousBatchingPipeline(given.model, settings, "CPU", hints)

    def generate(requests: Sequence[Request]) -> int:
        configs = []
        for _, output in requests:
            config = genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = output, True, False
            configs.append(config)
        prompts = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids, _ in requests]
        return sum(len(answer.m_generation_ids[0]) for answer in pipe.generate(prompts, configs))

    answer(given, generate, dtype=given.dtype)


if __name__ == "__main__":
    main()
