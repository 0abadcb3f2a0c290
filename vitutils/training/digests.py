"""Fingerprints of functions, networks and tensors: a name and digits that a checkpoint keeps and a later run compares.

For a function they cover its name, code, defaults and closure; for an object its class and attributes. Of the values in
these, only numbers, words, tuples, tensors, functions and further objects count, because lists and dicts often change
during a run. A wrapper made with `functools.wraps` counts as what it wraps. Another version of Python compiles to
different code.
"""

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Mapping
from numbers import Number

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = Number | str | bytes | None | torch.dtype | torch.device | torch.Size


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that stand for tensors: their names, shapes, dtypes and every single value."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):  # a module may keep other things in its state
            found.update(f"{name} {tensor!r};".encode())
            continue
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def digest_net(net: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for a net: its classes, settings, activations, and every weight."""
    return digest({"net": _seen(net, ())})


def told_of(thing: object) -> str:
    """A function's or object's name, and sixteen digits that stand for what it computes with."""
    inner = inspect.unwrap(thing)
    inner = inner.func if isinstance(inner, functools.partial) else inner
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{name} {digest({'thing': _seen(thing, ())})}"


def _seen(thing: object, above: tuple[int, ...]) -> str:
    """What counts of a thing, as one string. above: what it is part of, which is not looked at twice."""
    if isinstance(thing, Tensor | np.ndarray):
        return digest({"tensor": torch.as_tensor(thing)})
    if isinstance(thing, PLAIN):
        return repr(thing)
    if id(thing) in above or isinstance(thing, list | dict | set | types.ModuleType):
        return type(thing).__qualname__
    if wrapped := getattr(thing, "__wrapped__", None):
        return _seen(wrapped, (*above, id(thing)))
    return " ".join([_name(thing), *(_seen(part, (*above, id(thing))) for part in _parts(thing))])


def _name(thing: object) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return named.__qualname__


def _parts(thing: object) -> list:
    """The parts of a thing that count."""
    if isinstance(thing, tuple | frozenset):
        return [*thing]
    if isinstance(thing, type):
        return []
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, tuple(sorted(thing.keywords.items()))]
    if isinstance(thing, types.CodeType):
        return [thing.co_code, thing.co_names, thing.co_consts]
    if isinstance(thing, types.FunctionType):
        closure = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
        return [thing.__code__, thing.__defaults__, tuple((thing.__kwdefaults__ or {}).items()), *closure]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, types.BuiltinFunctionType | types.MethodWrapperType):
        return [thing.__self__]
    if isinstance(thing, nn.Module):
        inside = [_own(module) for module in thing.modules()]
        return [re.sub("0x[0-9a-f]+", "", repr(thing)), *inside, digest(thing.state_dict())]
    return [_own(thing)]


def _own(thing: object) -> tuple:
    """The attributes of an object that are its own, but for a net's mode."""
    own = {name: value for name, value in getattr(thing, "__dict__", {}).items() if name[0] != "_"}
    return tuple(pair for pair in sorted(own.items()) if pair[0] != "training")
