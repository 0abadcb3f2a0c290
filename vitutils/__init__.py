"""The helper package of the book *Vision Transformers in PyTorch*.

`vitutils.setup()` opens every chapter. Everything else is imported by name: `from vitutils import data, plot`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitutils.runtime import Environment, setup

__all__ = ["Environment", "setup"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vitutils import runtime  # torch and matplotlib only now: the command's --help needs neither

    return getattr(runtime, name)
