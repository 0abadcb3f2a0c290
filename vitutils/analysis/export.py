"""A network that runs without torch: an ONNX file, the same in 8 bits, and what that costs and gains.

`to_onnx` writes it, `to_int8` makes it small, `OnnxModel` runs it; torch.onnx and onnxruntime do the work. The file
also contains what its users need: how a picture becomes numbers, and the names of the classes.
"""

import copy
import importlib.util
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from vitutils.arguments import shape_of
from vitutils.data.decoding import AsSeen
from vitutils.files import whole_file
from vitutils.models.modes import eval_mode
from vitutils.timing import race
from vitutils.uncertainty import binomial_error

FORMAT = "vitutils.onnx 1"
KEY, INPUT, OUTPUT = "vitutils", "images", "logits"
EXACT = 1e-4  # onnxruntime against torch, as a share of the largest logit where that is above 1
MOST = 1.9e9  # bytes of weights: one ONNX file holds 2 GB
WAYS = ("dynamic", "static", "weights")
BLOCK = 64  # weights that share a scale, of the way "weights"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


# --- writing ---


def to_onnx(
    network: nn.Module,
    path: Path | str,
    size: int | tuple[int, int, int] | None = None,
    dynamic_size: bool = False,
    *,
    transform: Callable | None = None,
    classes: Sequence[str] | None = None,
    temperature: float | None = None,
) -> Path:
    """Write a network, images (B, C, H, W) -> logits (B, K), as ONNX in float32, for any number of images.

    It is exported in eval mode, and its own mode restored. size: (C, H, W), or S for (3, S, S); of a `PhotoModel` or a
    `Backbone` its own.  dynamic_size: let H and W vary, if the network takes images of other sizes.
    transform, classes, temperature: stored in the file as its preprocessing, the names, and what logits are divided by
    before softmax; of a `PhotoModel` its own.
    Raises ValueError, and writes nothing, for a network that does not take this size, gives no logits (B, K), cannot be
    exported, or gives other answers than in torch; ImportError, with the line that installs it, without a library.
    """
    needed(*LIBRARIES)
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected a network, an nn.Module, got a {type(network).__name__}")
    about = getattr(network, "backbone", network)
    C, H, W = _checked_size(size if size is not None else getattr(about, "input_size", None))
    transform = transform or getattr(about, "transform", None)
    classes = getattr(network, "classes", ()) if classes is None else classes
    temperature = getattr(network, "temperature", 1.0) if temperature is None else temperature
    plain = _plain(network)
    with eval_mode(plain), torch.no_grad():
        K = _logits_of(plain, torch.zeros(2, C, H, W)).shape[1]
        if classes and len(classes) != K:
            raise ValueError(f"expected {K} names of classes, as many as logits, got {len(classes)}")
        other = _another_size(plain, C, H, W) if dynamic_size else (H, W)
        program = _exported(plain, C, *other, dynamic_size)
        words = {
            "format": FORMAT,
            "input_size": [C, 0, 0] if dynamic_size else [C, H, W],
            "made_for": [H, W],
            "classes": list(map(str, classes)),
            "temperature": float(temperature),
            "preprocessing": preprocessing_of(transform),
            "int8": "",
        }
        program.model.metadata_props[KEY] = json.dumps(words)
        with whole_file(Path(path)) as new:
            program.save(new)
            run = OnnxModel(new)
            for B, h, w in {(1, H, W), (3, H, W), (2, *other)}:
                _hold_equal(plain, run, torch.randn(B, C, h, w, generator=torch.Generator().manual_seed(B)))
    return Path(path)


def to_int8(source: Path | str, path: Path | str, images: Tensor | None = None, *, how: str | None = None) -> Path:
    """Write an ONNX file again with the weights of its matrix products in 8 bits: about a quarter of the size.

    how: "dynamic": products are computed in int8, and activations rounded by the range that they have in each batch.
    "static": so are convolutions, by the range that activations have on `images`, (N, C, H, W), normalised, 16 to 256
    of the training part.  "weights": only stored in 8 bits, computed in float32. None: dynamic; with images static.
    Weights keep 7 of the 8 bits where products are in int8: on a CPU without VNNI their sums would overflow.
    Raises ValueError for a file that `to_onnx` did not write, and for images that it does not take.
    """
    how = how or ("dynamic" if images is None else "static")
    if how not in WAYS:
        raise ValueError(f"expected how to be one of {', '.join(WAYS)}, got {how!r}")
    if (how == "static") != (images is not None):
        given = "none" if images is None else "some"
        raise ValueError(f"static int8 is calibrated on images, the others on none: got how={how!r} and {given}")
    needed(*LIBRARIES)
    run = OnnxModel(source)
    if run.int8:
        raise ValueError(f"{source} is in int8 already: give the file that `to_onnx` wrote")
    if images is not None and not len(run.checked(images)):
        raise ValueError("expected images to calibrate on, 16 or more, got none")
    with whole_file(Path(path)) as new, tempfile.TemporaryDirectory() as folder, _quiet():
        _quantized(Path(source), new, Path(folder), how, images)
        import onnx

        model = onnx.load(new)  # some ways drop what was stored
        onnx.helper.set_model_props(model, {KEY: json.dumps(run.words | {"int8": how})})
        onnx.save(model, new)
    return Path(path)


def needed(*names: str) -> None:
    """Check that libraries can be imported. Raises ImportError with the line that installs those that are missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _checked_size(size: object) -> tuple[int, int, int]:
    size = (3, size, size) if isinstance(size, Integral) else size
    if not isinstance(size, Sequence) or len(size) != 3 or not all(isinstance(s, Integral) and s > 0 for s in size):
        raise ValueError(f"expected the size of an image, (C, H, W) or S for (3, S, S), in pixels, got {size!r}")
    return tuple(map(int, size))


def _plain(network: nn.Module) -> nn.Module:
    """The network in float32 on the CPU: itself, or a copy."""
    numbers = [*network.parameters(), *network.buffers()]
    total = sum(4 * t.numel() for t in numbers)
    if total > MOST:
        raise ValueError(f"the network has {total / 1e9:.1f} GB of weights in float32; one ONNX file holds 2 GB")
    if all(t.device.type == "cpu" and (not t.is_floating_point() or t.dtype == torch.float32) for t in numbers):
        return network
    if any(t.is_meta for t in numbers):
        raise ValueError("expected a network with weights, got one on the meta device, which has shapes alone")
    return copy.deepcopy(network).float().cpu()


def _logits_of(network: nn.Module, images: Tensor) -> Tensor:
    try:
        found = network(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"the network does not take images {tuple(images.shape)}: {_first(error)}") from None
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
        raise ValueError(f"expected logits (B, K), got {shape_of(found)}: wrap the network so that it gives them")
    return found


def _another_size(network: nn.Module, C: int, H: int, W: int) -> tuple[int, int]:
    """Another H and W, unlike each other, that the network takes. Raises ValueError with its reason for none."""
    patch = getattr(getattr(getattr(network, "backbone", network), "net", network), "patch_embed", None)
    patch = getattr(patch, "patch_size", 32)
    step = max(patch) if isinstance(patch, Sequence) else int(patch)
    for more in dict.fromkeys((step, 32, 64, max(H, W))):
        try:
            _logits_of(network, torch.zeros(2, C, H + more, W + 2 * more))
        except ValueError as error:
            reason = error
        else:
            return H + more, W + 2 * more
    hint = "; timm's ViT takes others if it is made with dynamic_img_size=True" if "timm" in _module(network) else ""
    raise ValueError(f"dynamic_size: the network takes images of one size only ({reason}){hint}")


def _module(network: nn.Module) -> str:
    return " ".join({type(part).__module__ for part in network.modules()})


def _exported(network: nn.Module, C: int, H: int, W: int, dynamic_size: bool):
    """torch.onnx's program, its batch free; H and W too where asked for."""
    free = {0: torch.export.Dim("batch", min=1)}
    if dynamic_size:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            return torch.onnx.export(
                network,
                (torch.zeros(2, C, H, W),),
                dynamo=True,
                dynamic_shapes=(free,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:  # of many kinds, torch.export's own among them
        cause = error.__cause__ or error
        what = "with H and W free" if dynamic_size else "with any number of images"
        raise ValueError(f"torch.onnx.export cannot write this network {what}: {_first(cause)}") from None


def _first(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _hold_equal(network: nn.Module, run: "OnnxModel", images: Tensor) -> None:
    want, got = network(images), run(images)
    away, scale = (want - got).abs().max().item(), max(1.0, want.abs().max().item())
    if not away <= EXACT * scale:
        raise ValueError(
            f"the exported network answers otherwise than torch for images {tuple(images.shape)}: logits differ by "
            f"{away:.1e}, where {EXACT * scale:.0e} would be rounding; something in it is not fixed by its input"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes and warnings, which stand on stderr; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _quantized(source: Path, new: Path, folder: Path, how: str, images: Tensor | None) -> None:
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if how == "weights":
        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=8)
        quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
        quantizer.process()
        return quantizer.model.save_model_to_file(str(new), False)
    ready = folder / "ready.onnx"
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    options = {"per_channel": True, "reduce_range": True, "weight_type": q.QuantType.QInt8}
    if how == "dynamic":
        return q.quantize_dynamic(ready, new, op_types_to_quantize=["MatMul", "Gemm"], **options)

    class Reader(q.CalibrationDataReader):
        batches = iter(images.split(8))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    # products of two activations, as in attention, stay in float32; residual sums too
    more = {"extra_options": {"MatMulConstBOnly": True}, "activation_type": q.QuantType.QUInt8}
    kinds = ["MatMul", "Gemm", "Conv"]
    return q.quantize_static(ready, new, Reader(), op_types_to_quantize=kinds, **more, **options)


# --- how a picture becomes numbers ---


def preprocessing_of(transform: Callable | None) -> dict | None:
    """A transform as plain values, from which `transform_from` makes it again; None where it has another step.

    resize: the shorter side in pixels, or [H, W].  crop: [H, W] from the middle.  interpolation: in words.  grey: one
    channel.  first: "picture" where 8-bit pixels are resized, "numbers" where a tensor is.  mean, std: per channel, of
    values from 0 to 1.
    """
    found = {"resize": None, "crop": None, "interpolation": "bilinear", "grey": False, "first": "picture"}
    for step in getattr(transform, "transforms", ()):
        name = type(step).__name__
        if name == "Resize":
            side = step.size if isinstance(step.size, int) else list(step.size)
            found["resize"] = side[0] if isinstance(side, list) and len(side) == 1 else side
            found["interpolation"] = getattr(step.interpolation, "value", str(step.interpolation))
        elif name == "CenterCrop":
            found["crop"] = [step.size] * 2 if isinstance(step.size, int) else list(step.size)
        elif name == "Normalize":
            found["mean"], found["std"] = ([float(v) for v in values] for values in (step.mean, step.std))
        elif name == "Grayscale":
            found["grey"] = True
        elif name == "ToImage":
            found["first"] = "picture" if found["resize"] else "numbers"
        elif name not in ("AsSeen", "MaybeToTensor", "ToTensor", "PILToTensor", "ToDtype"):
            return None
    return found if found["resize"] and found["crop"] and "mean" in found else None


def transform_from(found: dict) -> Callable[[Image.Image], Tensor]:
    """The transform of `preprocessing_of`: a PIL picture of any size and mode -> (C, H, W), normalised."""
    steps = [v2.Grayscale()] if found["grey"] else []
    steps += [
        v2.Resize(found["resize"], interpolation=v2.InterpolationMode(found["interpolation"]), antialias=True),
        v2.CenterCrop(found["crop"]),
    ]
    steps.insert(0 if found["first"] == "numbers" else len(steps), v2.ToImage())
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(found["mean"], found["std"])]
    return v2.Compose([AsSeen(grey=found["grey"]), *steps])


# --- running ---


class OnnxModel:
    """An ONNX file that `to_onnx` or `to_int8` wrote, run by onnxruntime on the CPU. Called, it gives logits.

    path: the file.  threads: how many; None: as many as torch has now.
    classes: K names, or none.  temperature: see `PhotoModel`.  input_size: (C, H, W), 0 for a side that may vary.
    transform: for one PIL picture; None where none was stored.  int8: "", or how it was made.
    Raises FileNotFoundError where there is no file, ValueError for one that is damaged or something else.
    """

    def __init__(self, path: Path | str, threads: int | None = None):
        needed("onnxruntime")
        import onnxruntime

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: expected a file that `to_onnx` wrote")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or torch.get_num_threads(), 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.words = json.loads(self.session.get_modelmeta().custom_metadata_map[KEY])
            if self.words["format"] != FORMAT:
                raise ValueError(f"its format is {self.words['format']!r}, expected {FORMAT!r}")
        except Exception as error:  # onnxruntime's own kinds derive from Exception alone
            reason = "nothing of ours is stored in it" if isinstance(error, KeyError) else _first(error)
            raise ValueError(f"{path} is no ONNX file that `to_onnx` wrote ({reason})") from None
        self.path, self.classes, self.int8 = path, tuple(self.words["classes"]), self.words["int8"]
        self.temperature, self.input_size = self.words["temperature"], tuple(self.words["input_size"])
        self.transform = transform_from(found) if (found := self.words["preprocessing"]) else None

    def checked(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) as the file takes them. Raises ValueError for others."""
        shape = shape_of(images)
        wanted = ", ".join(str(s or side) for s, side in zip(self.input_size, "CHW", strict=True))
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or any(
            s and s != got for s, got in zip(self.input_size, images.shape[1:], strict=True)
        ):
            told = f"{shape} of {images.dtype}" if isinstance(images, Tensor) else shape
            raise ValueError(f"{self.path.name}: expected images (B, {wanted}), floats, normalised, got {told}")
        return images.detach().cpu().float().contiguous()

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised -> logits (B, K).

        Dynamic int8 is given one image at a time: it rounds by a range that it takes from the whole batch, and an
        answer would depend on the other images.
        """
        images = self.checked(images)
        if not len(images):
            return torch.empty(0, self.session.get_outputs()[0].shape[1])
        parts = images.split(1 if self.int8 == "dynamic" else len(images))
        try:
            found = [self.session.run(None, {INPUT: part.numpy()})[0] for part in parts]
        except Exception as error:
            told = f"{self.path.name} does not take images {tuple(images.shape)}: {_first(error)}"
            raise ValueError(told) from None
        return torch.cat([torch.from_numpy(part) for part in found])

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures, one or more -> probabilities (B, K), rows sum to 1; as of a `PhotoModel`."""
        if self.transform is None:
            raise ValueError(f"{self.path.name} holds no preprocessing: give `to_onnx` a transform that can be stored")
        images = torch.stack([self.transform(picture) for picture in pictures])
        return (self(images) / self.temperature).softmax(dim=1)


# --- what it costs and gains ---


def largest_difference(network: Callable, other: Callable, images: Tensor, batches: Sequence[int] = (1, 3, 8)) -> float:
    """The largest difference of two networks' logits on the first of images (N, C, H, W), in batches of these sizes."""
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) < max(batches):
        raise ValueError(f"expected images (N, C, H, W), {max(batches)} or more, got {shape_of(images)}")
    mode = eval_mode(network) if isinstance(network, nn.Module) else warnings.catch_warnings()
    with torch.no_grad(), mode:
        return max((network(images[:B]) - other(images[:B])).abs().max().item() for B in batches)


def runners(
    network: nn.Module, onnx: Path | str, int8: Path | str | Mapping[str, Path], threads: int | None = None
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same network as functions, images -> logits: torch in float32 and bfloat16, onnxruntime in float32 and int8.

    int8: a file of `to_int8`, or several, by name.
    """
    half = copy.deepcopy(network).to(torch.bfloat16)
    files = int8 if isinstance(int8, Mapping) else {"int8": int8}

    def by(net: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        @torch.inference_mode()
        def run(images: Tensor) -> Tensor:
            with eval_mode(net):
                return net(images.to(dtype)).float()

        return run

    found = {"torch float32": by(network, torch.float32), "torch bfloat16": by(half, torch.bfloat16)}
    found["onnxruntime float32"] = OnnxModel(onnx, threads)
    return found | {f"onnxruntime {name}": OnnxModel(file, threads) for name, file in files.items()}


def speeds(
    network: nn.Module,
    onnx: Path | str,
    int8: Path | str | Mapping[str, Path],
    images: Tensor,
    threads: Sequence[int] = (1, 2),
    repeats: int = 7,
) -> list[dict[str, object]]:
    """Images per second of the `runners` on one batch (B, C, H, W), taking turns in one process; medians of repeats.

    Returns rows: runner, threads, images_per_second, low and high (the slowest and the fastest of the repeats).
    torch has its own number of threads again afterwards.
    """
    before, rows = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            found = runners(network, onnx, int8, count)
            seconds = race({name: (lambda run=run: run(images)) for name, run in found.items()}, repeats)
            for name, taken in seconds.items():
                rate, low, high = (len(images) / t for t in (statistics.median(taken), max(taken), min(taken)))
                rows.append({"runner": name, "threads": count, "images_per_second": rate, "low": low, "high": high})
    finally:
        torch.set_num_threads(before)
    return rows


def accuracies(
    candidates: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, labels: Tensor, batch_size: int = 32
) -> list[dict[str, object]]:
    """Accuracy of each candidate, images -> logits, on images (N, C, H, W) with labels (N,).

    Returns rows: runner, accuracy (0..1), error (its standard error, from these being N images), same (the share of
    answers that are also the first candidate's).
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"expected as many labels as images, one or more, got {len(labels)} and {len(images)}")
    rows, first = [], None
    for name, run in candidates.items():
        answers = torch.cat([run(batch).argmax(dim=1) for batch in images.split(batch_size)])
        first = answers if first is None else first
        share = (answers == labels).double().mean().item()
        same = (answers == first).double().mean().item()
        rows.append({"runner": name, "accuracy": share, "error": binomial_error(share, len(labels)), "same": same})
    return rows
