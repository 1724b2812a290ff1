"""Turn a model directory into what peers read: OpenVINO's form, and llama.cpp's files at bf16 and Q8_0.

    python benchmarks/peers/prepare.py --model DIR --peers DIR [--into DIR]

`--peers` holds an environment per peer, each as its own set-up makes it: `openvino/` with optimum-cli, `llamacpp/` with
the converter under `src/tree/vendor/llama.cpp`.  What is there already is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# The converter knows tokenizers by a hash and refuses others; a home-made byte-level BPE splits as Qwen2's does.
_CONVERT = """
import runpy, sys
sys.path.insert(0, {folder!r}); sys.path.insert(0, {folder!r} + "/gguf-py"); sys.argv = sys.argv[1:]
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_CONVERT_OLD = """
import importlib.util, sys
sys.path.insert(0, {folder!r} + "/gguf-py"); sys.argv = sys.argv[1:]
spec = importlib.util.spec_from_file_location("convert", sys.argv[0]); module = importlib.util.module_from_spec(spec)
sys.modules["convert"] = module
spec.loader.exec_module(module)
module.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
module.main()
"""


def openvino(model: Path, peer: Path, into: Path) -> None:
    if (into / "openvino").exists() or not (peer / "bin/optimum-cli").exists():
        return
    command = [peer / "bin/optimum-cli", "export", "openvino", "--model", model, "--weight-format", "fp16"]
    _run([*command, "--task", "text-generation-with-past", into / "openvino"])


def llamacpp(model: Path, peer: Path, into: Path) -> None:
    source = peer / "src/tree/vendor/llama.cpp"
    if not source.exists():
        return
    code = _CONVERT if (source / "conversion").is_dir() else _CONVERT_OLD
    for kind in ("bf16", "q8_0"):
        target = into / f"{kind}.gguf"
        if not target.exists():
            script = [peer / "bin/python", "-c", code.format(folder=str(source)), source / "convert_hf_to_gguf.py"]
            _run([*script, model, "--outfile", target, "--outtype", kind])


def _run(command: list[object]) -> None:
    print(">", *[str(part) if "\n" not in str(part) else "…" for part in command], flush=True)
    if subprocess.run([str(part) for part in command]).returncode:
        sys.exit("that did not work; the lines above say why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--into", type=Path, help="default: beside the model, its name with -peers")
    given = parser.parse_args()
    into = given.into or given.model.with_name(given.model.name + "-peers")
    into.mkdir(parents=True, exist_ok=True)
    openvino(given.model.resolve(), given.peers / "openvino", into)
    llamacpp(given.model.resolve(), given.peers / "llamacpp", into)
    print(f"in {into}: {', '.join(sorted(path.name for path in into.iterdir())) or 'nothing'}")


if __name__ == "__main__":
    main()
