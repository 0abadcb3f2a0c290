"""A hash of a net or a transform: code, settings and tensors, as far as they can be seen. Used by `vitutils.probe`.

Equal hashes mean equal results; so whatever cannot be seen (a file that is read, a lock, a generator) raises `Hidden`,
and the caller computes anew. What an installed library wrote goes by name, version and file; what anybody else wrote,
or put into a library from outside, goes by its code: constants, defaults, closures, and the globals it uses.
"""

import copyreg
import dis
import functools
import hashlib
import inspect
import os
import pickle
import random
import site
import sys
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# What code asks for where its result depends on something outside itself.
OUTSIDE = frozenset(
    "open eval exec compile globals locals vars __dict__ __import__ import_module environ getenv input urlopen "
    "load loadtxt genfromtxt fromfile memmap read_text read_bytes read_image imread decode_image read_file "
    "time time_ns perf_counter monotonic now today urandom uuid4 token_bytes SystemRandom Random default_rng "
    "RandomState fork_rng get_rng_state getstate get_state ops".split()
)
# Modules of which any use does so.
OUTSIDE_MODULES = frozenset(
    "subprocess socket urllib http requests ftplib sqlite3 shelve dbm ctypes gc inspect importlib secrets uuid "
    "tempfile threading multiprocessing mmap".split()
)
ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice)
NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)
NO_CODE = set("__dict__ __weakref__ __doc__ __module__ __annotations__ __annotate_func__ __annotate__".split())
NO_CODE |= set("__firstlineno__ __static_attributes__ __annotations_cache__ _abc_impl".split())
HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # and what says how they are called
UNUSED = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
PLACES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
PLACES = tuple(
    os.path.normcase(os.path.join(place, ""))
    for place in {*PLACES, *site.getsitepackages(), site.getusersitepackages()}
    if place
)


class Hidden(ValueError):
    """Something that the result may depend on cannot be seen; the message says what."""


def surroundings(device: torch.device) -> str:
    """What changes numbers without being in a net: versions, number formats, autocast."""
    kind = device.type
    versions = [f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "PIL", __package__)]
    formats = [torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32]
    cast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return f"python {sys.version_info[:2]}, {versions}, {formats}, autocast {cast}"


def version(module: str) -> str:
    """The version of the package of which `module` is a part; of this one, which changes more often, its files."""
    top = module.partition(".")[0]
    if top != __package__:
        return str(getattr(sys.modules.get(top), "__version__", "none"))
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("".join(_file_hash(file, file.stat().st_mtime_ns) for file in files).encode()).hexdigest()


def _library(name: str | None) -> bool:
    """Whether a module is Python's, an installed package's or this package's."""
    module, top = sys.modules.get(name or ""), (name or "").partition(".")[0]
    if module is None or name == "__main__":
        return False
    if name in sys.builtin_module_names or top == __package__:
        return True
    places = [place for place in (vars(module).get("__file__"), *vars(module).get("__path__", ())) if place]
    if places:
        place = os.path.normcase(places[0])
        return place.startswith(PLACES) or "-packages" + os.sep in place
    return _library(top) if top != name else False


@functools.cache
def _file_hash(file: Path, changed: int) -> str:
    """SHA-256 of a module's file, read again where it has changed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _of_library(thing: object) -> bool:
    """Whether a function or a class is a library's, and is what stands under its name there."""
    if not _library(_home(thing)):
        return False
    found = sys.modules.get(thing.__module__ or "")
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def _home(thing: object) -> str | None:
    """The module in which a function or a class was written; __module__ is what functools.wraps makes of it."""
    if isinstance(thing, types.FunctionType):
        return thing.__globals__.get("__name__")
    return thing.__module__ if isinstance(thing.__module__, str) else None


def _names(code: types.CodeType) -> Iterable[tuple[str, str]]:
    """(operation, name) of each global, attribute and import in code and in the code inside it."""
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD", "IMPORT_", "STORE_GLOBAL")):
            yield step.opname, str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


class Fingerprint:
    """`of(thing)` is its hash, in hex. A thing met twice is hashed once.

    apart: tensors whose shape and dtype count here and whose values are hashed elsewhere, as a net's weights.
    reads: code may reach outside, as to files whose bytes are hashed elsewhere.
    """

    def __init__(self, apart: Iterable[Tensor] = (), reads: bool = False):
        self.apart, self.reads = {id(tensor) for tensor in apart}, reads
        self.done: dict[int, bytes] = {}
        self.open: list[int] = []
        self.alive: list[object] = []  # or another thing could get the address of one that is gone

    def of(self, thing: object) -> str:
        """The hash of a thing. Raises Hidden."""
        try:
            return self._hash(thing).hex()
        except Hidden:
            raise
        except RecursionError:
            raise Hidden(f"a {type(thing).__name__} is nested too deeply to be seen through") from None

    def _hash(self, thing: object) -> bytes:
        if isinstance(thing, ATOMS) and type(thing) in ATOMS or isinstance(thing, NAMED):
            return self._join(type(thing).__name__, repr(thing))
        if id(thing) in self.open:  # it holds itself
            return self._join("inside", len(self.open) - self.open.index(id(thing)))
        if id(thing) not in self.done:
            self.open.append(id(thing))
            self.alive.append(thing)
            try:
                self.done[id(thing)] = self._look(thing)
            finally:
                self.open.pop()
        return self.done[id(thing)]

    def _join(self, *parts: object) -> bytes:
        """One hash of several: hashes as they are, anything else by its letters."""
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()

    def _each(self, kind: str, things: Iterable) -> bytes:
        return self._join(kind, *[self._hash(thing) for thing in things])

    def _pairs(self, kind: str, table: dict) -> bytes:
        return self._each(kind, [part for pair in table.items() for part in pair])

    def _look(self, thing: object) -> bytes:
        kind = type(thing)
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if kind in (list, tuple, torch.Size):
            return self._each(kind.__name__, thing)
        if kind in (dict, types.MappingProxyType):
            return self._pairs("dict", thing)
        if kind in (set, frozenset):
            return self._join("set", *sorted(map(self._hash, thing)))
        if isinstance(thing, types.ModuleType):
            return self._module(thing, ())
        if isinstance(thing, type):
            return self._class(thing)
        if isinstance(thing, torch.Generator):
            return self._each("generator", [thing.device, thing.get_state()])
        if isinstance(thing, nn.Module):
            return self._net(thing)
        return self._callable(thing) or self._object(thing)

    def _tensor(self, tensor: Tensor) -> bytes:
        about = f"{type(tensor).__qualname__} {tuple(tensor.shape)} {tensor.dtype} {tensor.layout}"
        if id(tensor) in self.apart:
            return self._join(about)
        try:
            flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            raw = flat.as_subclass(Tensor).view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise Hidden(f"the numbers of a tensor ({about}) cannot be read: {str(error).splitlines()[0]}") from None
        extra = {} if isinstance(tensor, nn.Parameter) else vars(tensor)
        return self._join(about, raw, self._pairs("more", extra))

    # --- code ---

    def _callable(self, thing: object) -> bytes | None:
        """Functions of all kinds; None for what is no function."""
        if isinstance(thing, types.FunctionType):
            return self._named(thing) if _of_library(thing) else self._function(thing)
        if isinstance(thing, types.MethodType):
            return self._each("method", [thing.__self__, thing.__func__])
        if isinstance(thing, staticmethod | classmethod):
            return self._each(type(thing).__name__, [thing.__func__])
        if isinstance(thing, property):
            return self._each("property", [thing.fget])
        if isinstance(thing, functools.cached_property):
            return self._each("property", [thing.func])
        if isinstance(thing, types.UnionType | types.GenericAlias):
            return self._each("type", [getattr(thing, "__origin__", None), thing.__args__])
        if isinstance(thing, types.CodeType):
            return self._code(thing)
        if isinstance(thing, types.CellType):
            try:
                return self._each("cell", [thing.cell_contents])
            except ValueError:
                return self._join("empty cell")
        if isinstance(thing, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = thing.__self__
            if owner is None or isinstance(owner, types.ModuleType):
                return self._named(thing) if _of_library(thing) or thing.__module__ == "builtins" else None
            return self._join("built-in", thing.__name__, self._hash(owner))
        kinds = types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType
        if isinstance(thing, (*kinds, types.MemberDescriptorType, types.GetSetDescriptorType)):
            return self._join("descriptor", thing.__objclass__.__qualname__, thing.__name__)
        if hasattr(thing, "cache_info") and hasattr(thing, "__wrapped__"):
            return self._each("cached", [thing.__wrapped__])
        return None

    def _named(self, thing: object) -> bytes:
        """A library's function or class: by name, and by the module that it stands in."""
        module = sys.modules.get(thing.__module__ or "")
        return self._join("named", thing.__module__, thing.__qualname__, self._hash(module) if module else b"")

    def _code(self, code: types.CodeType) -> bytes:
        table = getattr(code, "co_exceptiontable", b"")
        sizes = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
        return self._each("code", [code.co_code, table, sizes, names, code.co_consts])

    def _function(self, function: types.FunctionType) -> bytes:
        """Code, defaults, closure, and what it uses of its module. Raises Hidden where it reaches outside."""
        code, used = function.__code__, list(_names(function.__code__))
        outside = sorted({name for _, name in used} & OUTSIDE)
        if {"sys", "modules"} <= {name for _, name in used}:
            outside.append("sys.modules")
        if outside and not self.reads:
            raise Hidden(f"{function.__qualname__} uses {', '.join(outside)}, whose result no key can know")
        attributes = [name for _, name in used]
        parts = [code, function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function)]
        for name in dict.fromkeys(name for step, name in used if "GLOBAL" in step or step.startswith("LOAD_NAME")):
            if name in function.__globals__:
                value = function.__globals__[name]
                told = self._module(value, attributes) if isinstance(value, types.ModuleType) else self._hash(value)
                parts += [name, told]
        for name in dict.fromkeys(name for step, name in used if step == "IMPORT_NAME"):
            if (module := sys.modules.get(name)) is None:
                raise Hidden(f"{function.__qualname__} imports {name}, which is not there yet")
            parts += [name, self._module(module, attributes)]
        return self._each("function", parts)

    def _module(self, module: types.ModuleType, used: Iterable[str]) -> bytes:
        """A module: of a library its version, file, and what was put into it; of the reader's own what is used."""
        name = module.__name__
        if used and not self.reads and name.partition(".")[0] in OUTSIDE_MODULES:
            raise Hidden(f"a function uses the module {name}, whose results no key can know")
        if not _library(name):
            if "getattr" in used:
                raise Hidden(f"an attribute of {name} is asked for by getattr, and which one no key can know")
            kept = {key: value for key, value in vars(module).items() if key in used}
            told = {
                key: self._module(value, used) if isinstance(value, types.ModuleType) else self._hash(value)
                for key, value in kept.items()
            }
            return self._pairs(f"module {name}", told)
        if ("module", name) not in self.done:
            self.done["module", name] = b""  # modules refer to each other
            file = Path(vars(module).get("__file__") or "none")
            code = _file_hash(file, file.stat().st_mtime_ns) if file.is_file() else ""
            near = [value for value in vars(module).values() if isinstance(value, types.ModuleType)]
            flags = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float) and k[:2] != "__"}
            put_in = [self._put_in(place) for place in (module, *near) if _library(place.__name__)]
            self.done["module", name] = self._join(name, version(name), code, self._pairs("flags", flags), *put_in)
        return self.done["module", name]

    def _put_in(self, place: types.ModuleType | type) -> bytes:
        """What stands in a library's module or class, but was written elsewhere."""
        if ("put in", id(place)) not in self.done:
            self.done["put in", id(place)] = b""
            foreign = {}
            for key, value in list(vars(place).items()):
                inner = value.__func__ if type(value) in (staticmethod, classmethod) else value
                inner = inner.fget if type(inner) is property else inner
                if issubclass(type(inner), (types.FunctionType, type)) and not _library(_home(inner)):
                    foreign[key] = self._hash(inner)
            self.done["put in", id(place)] = self._pairs("put in", foreign)
        return self.done["put in", id(place)]

    def _class(self, kind: type) -> bytes:
        """A library's class by name, and what was put into it or its bases; any other by all that it holds."""
        if _of_library(kind):
            home = [base for base in kind.__mro__ if base is not object]
            return self._join("class", self._named(kind), *[self._put_in(base) for base in home])
        held = {name: value for name, value in vars(kind).items() if name not in NO_CODE}
        if isinstance(held.get("__init__"), types.FunctionType):  # it has run: what it left stands in the object
            held["__init__"] = held["__init__"].__code__
        return self._join("class", kind.__qualname__, self._each("bases", kind.__bases__), self._pairs("held", held))

    # --- objects ---

    def _net(self, net: nn.Module) -> bytes:
        """A module's class, settings, layers, hooks, parameters and buffers; its mode does not count."""
        held = vars(net)
        own = {k: v for k, v in held.items() if k not in UNUSED and not ("_hooks" in k and k.startswith("_"))}
        hooks = []
        for name in HOOKS:
            for number, hook in held.get(name, {}).items():
                how = [k for k, v in held.items() if k.startswith(f"{name}_") and number in v]
                hooks += [name, how, hook]
        tables = [dict(held.get(name, {})) for name in ("_parameters", "_buffers", "_modules")]
        return self._each("net", [type(net), own, hooks, *tables])

    def _object(self, thing: object) -> bytes:
        """Any other object: what pickle would keep of it, and of one that the reader wrote all that it holds."""
        if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
            return self._join(type(thing).__name__, thing.dtype, thing.shape, np.ascontiguousarray(thing).tobytes())
        kind = type(thing)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            kept = reduce(thing) if reduce else thing.__reduce_ex__(4)
        except Exception as error:
            raise Hidden(f"a {kind.__name__} cannot be seen through ({error})") from None
        if isinstance(kept, str):
            home = sys.modules.get(pickle.whichmodule(thing, kept))
            if getattr(home, kept, None) is not thing or not _library(home.__name__):
                raise Hidden(f"a {kind.__name__} cannot be seen through (it gives only a name, {kept})")
            return self._join("global", kind.__qualname__, home.__name__, kept, self._hash(home))
        make, arguments, *state = kept
        items = [list(part) if inspect.isgenerator(part) or hasattr(part, "__next__") else part for part in state]
        shown = [kind, make, arguments, items]
        if not _of_library(kind):
            slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(thing, name)]
            shown += [getattr(thing, "__dict__", None), {name: getattr(thing, name) for name in slots}]
        return self._each("object", shown)


def _slots(kind: type) -> list[str]:
    """The names of a class's own slots."""
    return [name for name, value in vars(kind).items() if isinstance(value, types.MemberDescriptorType)]


def weights_of(net: nn.Module) -> str:
    """SHA-256 over a net's parameters and all its buffers: names, shapes, dtypes, values. Raises Hidden."""
    look = Fingerprint()
    tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    return look.of([(name, tensor) for name, tensor in tensors])


def code_of(net: nn.Module) -> str:
    """SHA-256 over all of a net but the values of its parameters and buffers. Raises Hidden."""
    look = Fingerprint([*net.parameters(), *net.buffers()])
    everywhere = [vars(nn.modules.module).get(f"_global{name}", {}) for name in HOOKS]
    return look.of([net, [list(hooks.values()) for hooks in everywhere]])


def draws() -> str:
    """Where the random numbers stand that torch, NumPy and Python draw: another string after each draw."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]  # noqa: NPY002 - the global one
    states += torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return Fingerprint().of(states)
