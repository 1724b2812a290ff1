"""headrace offline on one task.  Settings are those that the peers get: budget 512, 64 sequences."""

from collections.abc import Sequence

from tasks import Request, answer, runner_arguments

from headrace import LLM, SamplingParams


def main() -> None:
    given = runner_arguments()
    chosen = {} if given.quantization is None else {"quantization": given.quantization}
    llm = LLM(
        model=given.model,
        dtype=given.dtype,
        max_model_len=given.max_model_len,
        max_num_batched_tokens=512,
        max_num_seqs=64,
        enable_prefix_caching=given.prefix_caching,
        **chosen,
    )

    def generate(requests: Sequence[Request]) -> int:
        params = [SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True) for _, output in requests]
        answers = llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    answer(given, generate, dtype=llm.config.dtype, threads=llm.config.num_threads)


if __name__ == "__main__":
    main()
