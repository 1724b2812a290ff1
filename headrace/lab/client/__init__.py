"""The load client: sends a workload to any OpenAI-compatible server and writes down what happened."""

from headrace.lab.client.load import Progress
from headrace.lab.client.run import MeasuredRun, conduct, measure

__all__ = ["MeasuredRun", "Progress", "conduct", "measure"]
