"""headrace serves language models and explains its own speed."""

from headrace.version import VERSION as __version__

__all__ = ["__version__"]
