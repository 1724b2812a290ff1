"""vLLM offline on one task; run by the Python of vLLM's own environment."""

from collections.abc import Sequence

from tasks import Request, answer, runner_arguments


def main() -> None:
    from vllm import LLM, SamplingParams

    given = runner_arguments()
    llm = LLM(
        model=given.model,
        dtype=given.dtype,
        max_model_len=given.max_model_len,
        max_num_batched_tokens=512,
        max_num_seqs=64,
        enable_prefix_caching=given.prefix_caching,
        disable_log_stats=True,
    )

    def generate(requests: Sequence[Request]) -> int:
        params = [SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True) for _, output in requests]
        answers = llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    answer(given, generate, dtype=given.dtype)


if __name__ == "__main__":
    main()
