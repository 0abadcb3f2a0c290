"""Train mode and eval mode: switched for a while, and restored module by module, whatever happens in between."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore every module's own mode at the end of the block, even after an error.

    The modules of a model may be in different modes: a BatchNorm that somebody froze is in eval mode while the rest
    trains, and a plain `model.train()` would unfreeze it.
    """
    modes = own_modes(model)
    try:
        yield
    finally:
        set_modes(modes)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the block with the whole model in eval mode; afterwards every module is back in its own mode."""
    with modes_kept(model):
        model.eval()
        yield


def own_modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Each module's mode: {module: True for train mode}, outer modules before those inside them."""
    return {module: module.training for module in model.modules()}


def set_modes(modes: dict[nn.Module, bool]) -> None:
    """Set each module's mode, as `own_modes` returned it."""
    for module, mode in modes.items():
        if module.training != mode:
            module.train(mode)  # not the flag alone: some modules do something here, as LoRA layers do
    for module, mode in modes.items():
        module.training = mode
