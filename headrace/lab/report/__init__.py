"""Studies and findings -> one self-contained HTML file, its JSON twin, and a summary for the terminal."""

from headrace.lab.report.write import ReportPaths, load_study, write_report

__all__ = ["ReportPaths", "load_study", "write_report"]
