"""Training: the recipe, its schedule, the loop, checkpoints, and a teacher's part in the loss.

A name is looked up in its module when it is first asked for: the recipe's limits are read without torch.
"""

from importlib import import_module

_MODULES = {
    "checkpoint": ("save_checkpoint",),
    "digests": ("digest_net",),
    "distill": ("Distillation", "hard_loss", "soft_loss"),
    "evaluation": ("Evaluation", "History", "autocast", "evaluate", "make_scaler"),
    "finetune": ("add_lora", "fine_tune", "layer_groups", "photo_augmentation"),
    "loop": ("fit",),
    "muon": ("Muon", "inside", "make_optimizers", "orthogonalise"),
    "objective": ("labels_alone", "make_mixing"),
    "recipe": ("Recipe",),
    "schedule": ("make_schedule", "parameter_groups"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
