"""The helper package of the book *Vision Transformers in PyTorch*.

`vitutils.setup()` opens every chapter. Everything else is imported by name: `from vitutils import data, plot`.
"""

from vitutils.runtime import Environment, setup

__all__ = ["Environment", "setup"]
