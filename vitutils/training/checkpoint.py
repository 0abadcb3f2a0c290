"""A run's checkpoint: what it holds, how it is written and read, and what must not change before a run resumes."""

import copy
import pickle
import zipfile
from collections.abc import Callable
from numbers import Real
from pathlib import Path

import torch
from torch import nn

from vitutils import distributed
from vitutils.arguments import plain
from vitutils.data.sets import Dataset
from vitutils.files import whole_file
from vitutils.training.digests import digest, told_of
from vitutils.training.evaluation import History
from vitutils.training.objective import labels_alone
from vitutils.training.recipe import Recipe


def save_checkpoint(path: Path, **parts) -> None:
    """Write a checkpoint in one piece, so that no half-written file is left behind."""
    with whole_file(path) as temporary:
        torch.save(parts, temporary)


def described(recipe: Recipe, objective: Callable) -> dict:
    """What a checkpoint keeps of how it was trained: recipe, augmentation, objective and its own numbers.

    A function is kept as `digests.told_of` sees it: name, code, and the numbers, words and functions it was made with.

    Raises ValueError for numbers of the objective that a checkpoint cannot hold: anything but numbers, words and None.
    """
    own = {name: plain(value) for name, value in getattr(objective, "numbers", dict)().items()}
    odd = [f"{name}: {value!r}" for name, value in own.items() if not isinstance(value, Real | str | None)]
    if odd:
        raise ValueError(f"{type(objective).__name__}.numbers() may hold numbers and words, got {'; '.join(odd)}")
    if recipe.augment is not None:
        own["augment"] = told_of(recipe.augment)
    if objective is not labels_alone:
        own["objective"] = type(objective).__qualname__ if hasattr(objective, "numbers") else told_of(objective)
    return recipe.numbers() | own


def described_net(net: nn.Module) -> dict:
    """What a checkpoint keeps of a net besides its weights: the names of what is frozen, if anything is."""
    names = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    few = ", ".join(names) if len(names) <= 3 else f"{len(names)} parameters, {digest({'names': names})}"
    return {"frozen": few} if names else {}


def described_data(dataset: Dataset) -> dict:
    """What a checkpoint keeps of the images, labels and classes that it was trained and judged on."""
    names = ("train_images", "train_labels", "test_images", "test_labels", "mean", "std")
    return {
        "images to train on": len(dataset.train_labels),
        "held out": len(dataset.test_labels),
        "digest": digest({name: getattr(dataset, name) for name in names} | {"classes": tuple(dataset.classes)}),
    }


def _read_checkpoint(path: Path, device: torch.device) -> dict:
    """Read a checkpoint written by `fit` (no pickle is executed).

    Raises ValueError for a damaged file, or one that isn't such a checkpoint; OSError and MemoryError are passed on.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not _whole(path):
            told = f"{path} is not a checkpoint of this loop, or was cut off ({type(error).__name__})"
            raise ValueError(f"{told}: delete it, or name another file") from None
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to execute what stands in it
            raise ValueError(f"{path} is not a checkpoint of this loop: it holds objects, not only numbers") from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is whole, but torch {torch.__version__} cannot read it ({reason})") from None
    parts = ("recipe", "history", "model")
    if not isinstance(state, dict) or not all(isinstance(state.get(name), dict) for name in parts):
        raise ValueError(f"{path} is not a checkpoint of this loop, but another file of torch's: name another file")
    if "data" not in state:
        raise ValueError(
            f"{path} was written by an older version of this loop and does not say which images it was trained on: "
            f"delete it, or continue with that version"
        )
    if not all(isinstance(state.get(name, {}), dict) for name in ("data", "net")):
        raise ValueError(f"{path} is not a checkpoint of this loop, but another file of torch's: name another file")
    return state


def _whole(path: Path) -> bool:
    """Whether a file is an archive of which nothing is missing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _changed(one: dict, other: dict, first: str = "then", second: str = "now") -> str:
    """The fields that differ, in words; empty where none does."""
    differ = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    return "; ".join(f"{key}: {one.get(key)} {first}, {other.get(key)} {second}" for key in differ)


def check_alike(about: dict) -> None:
    """Raise ValueError where some process was given another recipe, teacher or other images than this one."""
    for rank, theirs in enumerate(distributed.gather(about)):
        for part in about:
            if changed := _changed(theirs[part], about[part], f"rank {rank}", f"rank {distributed.here().rank}"):
                raise ValueError(f"the processes were not given the same ({changed})")


def restore(path: Path, about: dict, device: torch.device, stateful: dict, steps_per_epoch: int) -> History:
    """Give every part its state in the checkpoint and return the history, or an empty one if there is no file.

    If the checkpoint doesn't fit, the model stays as it was.
    """
    if not path.exists():
        return History()
    saved = _read_checkpoint(path, device)
    if changed := _changed(saved["recipe"], about["recipe"]):
        raise ValueError(f"{path} was written under another recipe ({changed}): delete it or change back")
    if changed := _changed(saved["data"], about["data"]):
        raise ValueError(f"{path} was written with other images or labels ({changed}): delete it or change back")
    if changed := _changed(saved.get("net", {}), about["net"]):
        raise ValueError(f"{path} was written for a net with other frozen parameters ({changed}): delete it")
    model, before = stateful["model"], copy.deepcopy(stateful["model"].state_dict())
    try:
        for name, part in stateful.items():
            if name != "scaler" or saved[name]:  # empty where it was written without float16: begin anew
                part.load_state_dict(saved[name])
        history = History(**saved["history"])
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        model.load_state_dict(before)
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":")
        raise ValueError(f"{path} was written for another net ({reason}): delete it or change back") from None
    if len(history.losses) != len(history.epochs) * steps_per_epoch:
        told = f"{len(history.losses)} steps in {len(history.epochs)} epochs, now {steps_per_epoch} an epoch"
        raise ValueError(f"{path} was written by another version of this loop ({told}): delete it")
    return history
