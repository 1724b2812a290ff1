"""Studies and findings -> one self-contained HTML file, its JSON twin, and a summary for the terminal."""

from headrace.lab.report.studies import Beside, load_study, studies_beside
from headrace.lab.report.write import ReportPaths, write_report

__all__ = ["Beside", "ReportPaths", "load_study", "studies_beside", "write_report"]
