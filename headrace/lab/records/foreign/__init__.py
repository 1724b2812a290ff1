"""Other tools' result files -> the types of `headrace.lab.records.results`.

console, commands   console logs: result blocks, and what the text around them says about the configuration
vllm_json           result files of `vllm bench serve` and SGLang's client
read                files and directories, with a reason for everything that was not read
own                 headrace's own runs and tables, which are read too
places, repeats     what a result's place says; which runs are repeats of one cell
study, names        runs -> cells of a study, and their names
export              runs -> objects with vLLM's keys
"""

from headrace.lab.records.foreign.export import to_vllm_object
from headrace.lab.records.foreign.read import Imported, read_file, read_paths
from headrace.lab.records.foreign.study import study_from_runs

__all__ = ["Imported", "read_file", "read_paths", "study_from_runs", "to_vllm_object"]
