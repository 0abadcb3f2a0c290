"""A hash of a net or a transform where all of it is known; `probe` keeps features under it.

Known are: classes of installed libraries and of this package, by name and version; plain values; tensors, by their
bytes; torch's and torchvision's functions on tensors, by name; and what is made of these. Nothing that the reader wrote
is known: what a function, a class, a hook reads (a global, a file, the clock) shows nowhere. It raises `Hidden`, and
the caller computes anew.

Code put into a library from outside is noticed where it stands in the class of something that is hashed, in the
class's module or in a module used there. Other changes within a library are not seen.
"""

import enum
import functools
import hashlib
import importlib.metadata
import random
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

VALUES = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
VALUES += (torch.dtype, torch.device, torch.layout, torch.memory_format)
# Whose objects hold nothing but their attributes; of other libraries only layers are known, which keep theirs in sight.
PACKAGE_NAME = __name__.partition(".")[0]
PLAIN = ("torchvision", "timm", "einops", PACKAGE_NAME)
PURE = ("torch.nn.functional", "torch._C._nn", "torchvision.transforms.")  # functions that reach for nothing outside
UNUSED = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
AS_IMPORTED = {place: {k: v for k, v in vars(place).items() if callable(v)} for place in (torch, F)}


class Hidden(ValueError):
    """Something that the result may depend on is not known; the message says what."""


def _package() -> str:
    files = sorted(Path(sys.modules[PACKAGE_NAME].__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


PACKAGE = _package()  # this package as it was imported


@functools.cache
def version(top: str) -> str | None:
    """The version of an installed package and a hash of its list of files; None where there is no such package."""
    if top == PACKAGE_NAME:
        return PACKAGE
    if top in sys.stdlib_module_names:
        return None
    try:
        names = [top] if top != "PIL" else ["pillow", "pillow-simd"]
        found = next(importlib.metadata.distributions(name=names[0]), None)
        found = found or importlib.metadata.distribution(importlib.metadata.packages_distributions()[top][0])
        files, file = found.read_text("RECORD"), Path(sys.modules[top].__file__ or "none").resolve()
        # A package that is only linked to, as a reader's own is while he works on it, has its files elsewhere.
        if files and file in [Path(found.locate_file(name)).resolve() for name in (f"{top}/__init__.py", f"{top}.py")]:
            return f"{found.version} {hashlib.sha256(files.encode()).hexdigest()}"
    except (LookupError, ImportError, AttributeError, OSError):
        pass
    return None


def surroundings(device: torch.device) -> str:
    """What changes numbers without being in a net: versions, number formats, autocast. Raises Hidden."""
    kind, backends = device.type, torch.backends
    if _package() != PACKAGE:
        raise Hidden(f"{PACKAGE_NAME} has changed since it was imported: restart")
    if function_modes() or dispatch_modes():
        raise Hidden("a mode of torch is on, as torch.set_default_device sets one")
    versions = [f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "PIL", PACKAGE_NAME)]
    formats = [torch.get_default_dtype(), torch.get_float32_matmul_precision()]
    formats += [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
    cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    reading = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    return f"python {sys.version_info[:3]}, {versions}, {formats}, autocast {cast}, pictures {reading}"


class Fingerprint:
    """`of(thing)` is its hash, in hex. what: the thing's name in messages.

    apart: tensors whose shape and dtype count here and whose values are hashed elsewhere, as a net's weights.
    """

    def __init__(self, what: str, apart: tuple[Tensor, ...] = ()):
        self.what, self.apart = what, {id(tensor) for tensor in apart}
        self.done: dict[int, tuple[object, bytes]] = {}  # things are kept alive, or another could get the address
        self.checked: set[int] = set()

    def of(self, thing: object) -> str:
        """The hash of a thing. Raises Hidden."""
        try:
            return self._hash(thing).hex()
        except RecursionError:
            raise Hidden(f"{self.what} is nested too deeply") from None

    def _join(self, *parts: object) -> bytes:
        """One hash of several: hashes as they are, anything else by its letters."""
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()

    def _hash(self, thing: object) -> bytes:
        if type(thing) in VALUES:
            return self._join(type(thing).__name__, repr(thing))
        if id(thing) not in self.done:
            self.done[id(thing)] = thing, b"holds itself"
            self.done[id(thing)] = thing, self._look(thing)
        return self.done[id(thing)][1]

    def _each(self, kind: str, *things: object) -> bytes:
        return self._join(kind, *map(self._hash, things))

    def _look(self, thing: object) -> bytes:
        kind = type(thing)
        if isinstance(thing, type):
            top = thing.__module__.partition(".")[0]
            if version(top) and top not in (*PLAIN, "torch", "PIL") and not issubclass(thing, nn.Module):
                raise Hidden(f"{self.what} holds the class {thing.__name__}: what it reads is not known")
            return self._class(thing)
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if kind in (list, tuple, torch.Size):
            return self._each(kind.__name__, *thing)
        if kind in (dict, OrderedDict):
            return self._each("dict", *[part for pair in thing.items() for part in pair])
        if kind in (set, frozenset):
            return self._join("set", *sorted(map(self._hash, thing)))
        if kind is np.ndarray and not thing.dtype.hasobject or isinstance(thing, np.generic) and kind is not np.void:
            return self._join(kind.__name__, thing.dtype, thing.shape, np.ascontiguousarray(thing).tobytes())
        if kind is functools.partial:
            return self._each("partial", thing.func, thing.args, thing.keywords, vars(thing))
        if isinstance(thing, types.FunctionType | types.BuiltinFunctionType):
            return self._function(thing)
        if isinstance(thing, enum.Enum):
            return self._join("enum", self._hash(kind), thing.name, self._hash(thing.value))
        if isinstance(thing, nn.Module):
            return self._net(thing)
        if kind.__module__.partition(".")[0] in PLAIN and not isinstance(thing, types.ModuleType):
            slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ()) if hasattr(thing, name)]
            slots = {name: getattr(thing, name) for name in slots}
            return self._join("object", self._hash(kind), self._each("held", getattr(thing, "__dict__", {}), slots))
        if kind.__module__ not in sys.stdlib_module_names:
            self._hash(kind)  # says so where it is the reader's
        raise Hidden(f"{self.what} holds a {kind.__name__}, whose contents are not known")

    def _tensor(self, tensor: Tensor) -> bytes:
        about = self._hash(type(tensor)), tuple(tensor.shape), tensor.dtype, self._hash(vars(tensor))
        if id(tensor) in self.apart:
            return self._join(*about)
        try:
            flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            raw = flat.as_subclass(Tensor).view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise Hidden(f"{self.what} holds a tensor that cannot be read: {str(error).splitlines()[0]}") from None
        return self._join(*about, raw)

    def _function(self, thing: types.FunctionType) -> bytes:
        module, name = thing.__module__ or "", thing.__qualname__
        if not module.startswith(PURE) or getattr(sys.modules.get(module), name, None) is not thing:
            top = module.partition(".")[0]
            whose = "the" if not top or top in sys.stdlib_module_names or version(top) else "your own"
            raise Hidden(f"{self.what} holds {whose} function {name}: what it reads is not known")
        self._untouched(sys.modules[module])
        return self._join("function", module, name, version(module.partition(".")[0]))

    def _class(self, kind: type) -> bytes:
        """A library's class: its name and version. Raises Hidden for any other, and for one that was changed."""
        top, found = kind.__module__.partition(".")[0], sys.modules.get(kind.__module__)
        for name in kind.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is not kind or not (top == "builtins" or version(top)):
            raise Hidden(f"{self.what} holds your own class {kind.__name__}: what it reads is not known")
        for base in kind.__mro__:
            self._untouched(base)
            home = sys.modules[base.__module__]
            for place in (home, *vars(home).values()):
                if issubclass(type(place), types.ModuleType) and version(place.__name__.partition(".")[0]):
                    self._untouched(place)
        return self._join("class", kind.__module__, kind.__qualname__, version(top))

    def _untouched(self, place: types.ModuleType | type) -> None:
        """Raise Hidden where a reader's function or class stands in a library's module or class."""
        if id(place) in self.checked:
            return
        self.checked.add(id(place))
        held = vars(place)
        changed = [name for name, value in AS_IMPORTED.get(place, {}).items() if held.get(name) is not value]
        layer = isinstance(place, type) and issubclass(place, nn.Module) and place is not nn.Module
        for name, value in list(held.items()):
            value = value.__func__ if type(value) in (staticmethod, classmethod) else value
            value = value.fget if type(value) is property else value
            if type(value) is types.FunctionType:  # isinstance would ask a deprecated one, which warns
                home = value.__globals__.get("__name__")
                if layer and name[:2] != "__" and value.__qualname__ != f"{place.__qualname__}.{value.__name__}":
                    changed.append(name)  # another class's method
            elif type(value) in (type, types.MethodType):
                home = value.__module__
            else:
                continue
            top = str(home).partition(".")[0]
            if home == "__main__" or top in sys.modules and top not in sys.stdlib_module_names and not version(top):
                changed.append(name)
        if changed:
            raise Hidden(f"{changed[0]} of {place.__name__} was replaced")

    def _net(self, net: nn.Module) -> bytes:
        """A layer's class, settings, layers and tensors; its mode does not count. Raises Hidden for hooks."""
        if isinstance(net, torch.jit.ScriptModule):
            raise Hidden(f"{self.what} is compiled")
        held = vars(net)
        if any(table for name, table in held.items() if name.endswith("_hooks") and "state_dict" not in name):
            raise Hidden(f"{self.what} holds a hook: what it reads is not known")
        own = {k: v for k, v in held.items() if k not in UNUSED and not ("_hooks" in k and k.startswith("_"))}
        tables = [dict(held.get(name, {})) for name in ("_parameters", "_buffers", "_modules")]
        return self._join("net", self._hash(type(net)), self._each("held", own, *tables))


def weights_of(net: nn.Module) -> str:
    """SHA-256 over a net's parameters and all its buffers: names, shapes, dtypes, values. Raises Hidden."""
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    return Fingerprint("the net").of(tensors)


def code_of(net: nn.Module) -> str:
    """SHA-256 over all of a net but the values of its parameters and buffers. Raises Hidden."""
    if any(vars(nn.modules.module).get(f"_global_{name}") for name in ("forward_hooks", "forward_pre_hooks")):
        raise Hidden("torch holds a hook for all layers: what it reads is not known")
    return Fingerprint("the net", (*net.parameters(), *net.buffers())).of(net)


def draws() -> str:
    """Where the random numbers stand that torch, NumPy and Python draw: another string after each draw."""
    states = [torch.get_rng_state()] + (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])
    states += [torch.mps.get_rng_state()] if torch.mps.is_available() else []
    return Fingerprint("a state").of([random.getstate(), np.random.get_state(), states])  # noqa: NPY002 - global
