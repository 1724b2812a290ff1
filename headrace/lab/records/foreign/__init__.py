"""Other tools' result files -> the types of `headrace.lab.records.results`."""

from headrace.lab.records.foreign.read import Imported, read_file, read_paths
from headrace.lab.records.foreign.study import shortfall, study_from_runs

__all__ = ["Imported", "read_file", "read_paths", "shortfall", "study_from_runs"]
