"""What `python -m vitutils.photos` does once its arguments are read: check, split, extract, fit, judge, write."""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from tqdm import tqdm

from vitutils import data, runtime
from vitutils.analysis import export
from vitutils.analysis import photo_model as pm
from vitutils.analysis.features import extract_features
from vitutils.analysis.zero_shot import TEMPLATES, ImageText, load_image_text
from vitutils.cli._onnx import NAMES, exported
from vitutils.cli._report import card, how_many, report, short_name
from vitutils.data._layout import Packed, read_layout
from vitutils.data.duplicates import find_duplicates, groups, split_groups
from vitutils.data.folders import memory
from vitutils.data.images import ImagePart, as_dataset, from_files
from vitutils.data.survey import Survey, look_at
from vitutils.files import show_progress, whole_file
from vitutils.models.backbones import Backbone, load_backbone
from vitutils.training.finetune import add_lora, fine_tune, layer_groups, photo_augmentation
from vitutils.training.recipe import Recipe

MISTAKES = (ValueError, OSError, FloatingPointError, ImportError, data.DataError)
CHUNK = 128  # photos whose features are kept together: what Ctrl-C can lose
TINY = 10  # photos: a class of fewer is called tiny
LEAST = 3  # photos of a class that are no copies of each other: one to fit on, one to choose by, one to test on
RATES = {"all": 1e-4, "lora": 1e-3}  # of --fine-tune, as in chapter 15
RANK = 8  # of its adapters
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Photos:
    """The folder, looked at and split. files, labels, part (0 train, 1 validation, 2 test, -1 left out): one a photo.

    pairs: places of photos that show the same.  notes: what to tell of the folder and of the split.
    """

    whole: ImagePart
    files: list[Path | Packed]
    labels: Tensor
    classes: tuple[str, ...]
    part: Tensor
    pairs: list[tuple[int, int]]
    survey: Survey
    all_files: list[Path | Packed]
    notes: list[str]

    def at(self, part: int) -> Tensor:
        """Places of the photos of one part."""
        return (self.part == part).nonzero().flatten()


@dataclass
class Candidate:
    """A way to classify: its name, model head, logits on the validation part, balanced accuracy there."""

    name: str
    head: torch.nn.Module
    logits: Tensor
    score: float
    loss: float
    detail: str
    net: Backbone | None = None
    how: dict = field(default_factory=dict)


def run(options: argparse.Namespace) -> int:
    """Carry out the command; returns its exit code. An error is one line, and leaves the folder as it was."""
    made = False
    try:
        made = _check_out(options.folder, options.out)
        _run(options)
        return 0
    except MISTAKES as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    finally:
        if made and options.out.is_dir() and not any(options.out.iterdir()):
            options.out.rmdir()


def say(line: str) -> None:
    tqdm.write(line)
    sys.stdout.flush()


def _check_out(folder: Path, out: Path) -> bool:
    """Hold that `out` can be written to and lies outside the photos. Returns whether it was made now."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: expected a folder, or a name that is free")
    real, photos = out.resolve(), folder.expanduser().resolve()
    if photos.is_dir() and real.is_relative_to(photos):
        raise ValueError(f"--out {out} lies inside {folder}: its files would count as photos; take a folder beside it")
    there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()  # now, and not after minutes of work
    return not there


def _run(options: argparse.Namespace) -> None:
    device = _device(options.device)
    torch.manual_seed(options.seed)
    if options.onnx:
        export.needed(*export.LIBRARIES)  # now, and not after minutes of work
    backbone, warning = _image_text(options) if options.zero_shot else _backbone(options.backbone, options.size)
    photos = _photos(options)
    say(f"{backbone.name}: {backbone.pretraining}; {backbone.licence_note}")
    features = _features(backbone, photos.whole, device)
    candidates = _candidates(features, photos)
    if options.zero_shot:
        candidates = [_by_name(backbone, features, photos), next(one for one in candidates if one.name == "kNN")]
    elif options.fine_tune:
        candidates.append(_fine_tuned(options, backbone, photos, candidates, device))
    for one in candidates:
        say(f"validation: {one.name} {one.score:.1%} ({one.detail})")
    best = candidates[0] if options.zero_shot else max(candidates, key=lambda one: (round(one.score, 6), -one.loss))
    model = _final(best, backbone, features, photos)
    test = photos.at(2)
    if best.net is None:
        with torch.no_grad():
            logits = model.head(features[test])
    else:
        logits = _logits(model, photos.whole.at(test), device)
    say(_judged(photos, logits, model, best))
    more = [("Without training, and with", [_beside(features, photos, candidates[1])])] if options.zero_shot else []
    files = {}
    if options.onnx:
        found = exported(model, photos.whole.at(test), photos.labels[test], logits)
        files = found.files
        more.append(("Without torch: ONNX and int8", found.told()))
        say("ONNX: " + " ".join(found.told()))
    _write(options, photos, model, best, candidates, logits, warning, more, files)


def _device(asked: str | None) -> torch.device:
    """The device that was asked for, or what torch finds. Raises ValueError for one that is not here."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked and not found[asked]:
        raise ValueError(f"--device {asked}: torch finds none here; leave the option away, or take --device cpu")
    return torch.device(asked) if asked else runtime.find_device()


def _image_text(options) -> tuple[ImageText, str]:
    """The network with a text tower. What goes with training or another size is refused."""
    if options.fine_tune or options.size:
        raise ValueError("--zero-shot trains nothing and has one size: expected neither --fine-tune nor --size")
    return load_image_text(options.backbone), ""


@torch.no_grad()
def _by_name(backbone: ImageText, features: Tensor, photos: Photos) -> Candidate:
    """The classes' names as a head, judged on the validation part like the others; nothing is chosen by it."""
    head, val = backbone.head(photos.classes), photos.at(1)
    detail = f"{len(TEMPLATES)} texts a class, such as \"{TEMPLATES[0].format(photos.classes[0])}\""
    return _judge("zero-shot", head, head(features[val]), photos.labels[val], detail)


@torch.no_grad()
def _beside(features: Tensor, photos: Photos, nearest: Candidate) -> str:
    """What kNN has on the same test photos."""
    test = photos.at(2)
    right = int((nearest.head(features[test]).argmax(1) == photos.labels[test]).sum())
    low, high = pm.interval(right, len(test))
    return (
        f"On the same test photos, kNN ({nearest.detail}) with the {len(photos.at(0)):,} training photos has {right} "
        f"right, {right / len(test):.1%} (95 % interval {low:.1%} to {high:.1%})."
    )


def _backbone(name: str, size: int | None) -> tuple[Backbone, str]:
    """The backbone, or the pocket ViT and a warning if its weights can't be found or downloaded."""
    try:
        return load_backbone(name, img_size=size), ""
    except FileNotFoundError as error:
        warning = (
            f"The weights of {name} can't be found, so the book's pocket ViT is used. It has seen grey pictures of "
            f"clothes, 28 x 28 pixels, and nothing else: take these numbers as a trial of the command, not as what "
            f"your photos allow. {' '.join(str(error).split())}"
        )
        print(f"warning: {warning}", file=sys.stderr, flush=True)
        return load_backbone("pocket"), warning


# --- the folder ---


def _photos(options: argparse.Namespace) -> Photos:
    """Read the folder, look at each photo, find copies, split."""
    folder = options.folder.expanduser()
    if not folder.is_dir() and not (folder.is_file() and folder.suffix.lower() == ".zip"):
        raise data.DataError(
            f"no folder {folder}: expected one with CLASS/, or train/CLASS/ and test/CLASS/, or its zip"
        )
    layout = read_layout(folder)
    classes, notes = tuple(next(iter(layout.parts.values()))), list(layout.notes)
    listed = [
        (file, k, part) for part, found in layout.parts.items() for k, c in enumerate(classes) for file in found[c]
    ]
    files = [file for file, _, _ in listed]
    with tqdm(total=len(files), desc="looking at the photos", unit="photo", disable=not show_progress()) as bar:
        survey = look_at(files, lambda: bar.update(1))
    for why in list(survey.unreadable.values())[:5]:
        say(f"passed over: {why}")
    if (more := len(survey.unreadable) - 5) > 0:
        say(f"passed over: {more:,} more, named in split.csv")
    kept = [files[i] for i in survey.kept]
    labels = torch.tensor([listed[i][1] for i in survey.kept], dtype=torch.int64)
    given = [listed[i][2] for i in survey.kept]
    pairs = find_duplicates(survey.thumbnails)
    group = groups(len(labels), pairs)
    pairs = [pair for pair in pairs if not survey.blank.issuperset(pair)]  # blank photos are alike, and no copies
    notes += _told(labels, pairs, [short_name(kept[i]) for i in sorted(survey.blank)])
    part = _split(labels, given, group, classes, options, notes)
    if pairs and "test" not in given:
        notes.append(f"{how_many(len(pairs), 'pair')} of copies: they stay on one side of the split")
    found = {c: [file for file, k in zip(kept, labels.tolist(), strict=True) if k == n] for n, c in enumerate(classes)}
    if empty := [c for c in classes if not found[c]]:
        raise data.DataError(f"class {empty[0]!r} is empty: none of its files could be read")
    order = labels.argsort(stable=True)  # `from_files` goes class by class
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    title = folder.stem if folder.is_file() else folder.resolve().name or "photos"
    whole = from_files(title, "all", found, classes, f"the folder {folder}")
    photos = Photos(
        whole=whole,
        files=[kept[i] for i in order.tolist()],
        labels=labels[order],
        classes=classes,
        part=part[order],
        pairs=sorted(tuple(sorted((int(place[i]), int(place[j])))) for i, j in pairs),
        survey=survey,
        all_files=files,
        notes=notes,
    )
    counts = ", ".join(f"{int((part == p).sum()):,} {name}" for p, name in enumerate(PARTS))
    say(f"{title}: {len(kept):,} photos, {len(classes)} classes: {counts}")
    for note in notes:
        say(f"note: {note}")
    return photos


def _told(labels: Tensor, pairs: list, blank: list[str]) -> list[str]:
    """What to tell of copies with different labels, and of blank photos, by their names."""
    notes = []
    if blank:
        more = f" and {len(blank) - 6} more" if len(blank) > 6 else ""
        notes.append(f"blank, of one shade all over, to be taken away: {', '.join(blank[:6])}{more}")
    crossed = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    if crossed:
        one = len(crossed) == 1
        told = "1 pair of copies bears" if one else f"{len(crossed):,} pairs of copies bear"
        notes.append(f"{told} different labels: {'one of the two' if one else 'one of each pair'} is wrong")
    return notes


def _split(
    labels: Tensor,
    given: list[str],
    group: Tensor,
    classes: tuple[str, ...],
    options: argparse.Namespace,
    notes: list[str],
) -> Tensor:
    """The part of each photo: 0 train, 1 validation, 2 test, -1 left out.

    group: a number for each photo, the same for copies.  notes: takes what is to be told.
    """
    few = []
    for k, name in enumerate(classes):
        own = len(group[labels == k].unique())
        if own < LEAST and (labels == k).any():
            copies = " that are no copies of each other" if int((labels == k).sum()) > own else ""
            few.append(f"class {name!r} has {own} photo{'s' * (own > 1)}{copies}")
    if few:
        more = f", and {len(few) - 8} classes more" if len(few) > 8 else ""
        raise data.DataError(
            f"{', '.join(few[:8])}{more}: expected {LEAST} or more, one to fit on, one to choose by, one to test on; "
            f"add photos or take {'the class' if len(few) == 1 else 'these classes'} away"
        )
    counts = labels.bincount(minlength=len(classes))
    if tiny := [f"{classes[k]} ({int(counts[k])})" for k in range(len(classes)) if 0 < counts[k] < TINY]:
        notes.append(f"tiny classes, whose results say little: {', '.join(tiny[:12])}")
    if counts.max() > 3 * counts[counts > 0].min():
        low, high = int(counts.argmin()), int(counts.argmax())
        notes.append(
            f"unlike classes: {classes[high]} has {int(counts[high]):,} photos, {classes[low]} {int(counts[low]):,}; "
            f"choosing goes by the mean over classes"
        )
    part = torch.zeros(len(labels), dtype=torch.int64)
    if "test" in given:
        test = torch.tensor([p == "test" for p in given])
        double = torch.isin(group, group[test].unique()) & ~test
        part[test], part[double] = 2, -1
        if double.any():
            notes.append(
                f"{int(double.sum())} training photos are copies of test photos: left out of the training part"
            )
    else:
        try:
            part[split_groups(labels, group, options.test_share, options.seed, classes)] = 2
        except ValueError as error:
            raise data.DataError(str(error)) from None
    rest = (part == 0).nonzero().flatten()
    missing = [name for k, name in enumerate(classes) if not (labels[rest] == k).any()]
    if missing:
        raise data.DataError(f"no photo of {missing[0]!r} is left to train on: the others are copies of test photos")
    share = min(0.5, options.test_share / (1 - options.test_share))
    try:
        part[rest[split_groups(labels[rest], group[rest], share, options.seed + 1, classes)]] = 1
    except ValueError as error:
        raise data.DataError(f"the training part: {error}") from None
    return part


# --- features and what is fitted on them ---


def _features(backbone: Backbone, whole: ImagePart, device: torch.device) -> Tensor:
    """Features (N, D) of all photos, chunk by chunk, each kept in a file as soon as it is there."""
    parts, size = [], 32 if device.type == "cpu" else 128
    with tqdm(total=len(whole), desc="features", unit="photo", disable=not show_progress()) as bar:
        for start in range(0, len(whole), CHUNK):
            chunk = whole.at(torch.arange(start, min(start + CHUNK, len(whole))))
            how = {"device": device, "batch_size": size, "workers": 2, "bar": bar}
            parts.append(extract_features(backbone, chunk, backbone.transform, **how).x)
            bar.update(start + len(chunk) - bar.n)
    return torch.cat(parts)


def _judge(name: str, head: torch.nn.Module, logits: Tensor, y: Tensor, detail: str, **more) -> Candidate:
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    return Candidate(name, head, logits, pm.balanced_accuracy(y, logits.argmax(1)), loss, detail, **more)


@torch.no_grad()
def _candidates(x: Tensor, photos: Photos) -> list[Candidate]:
    """kNN and the linear probe, each with the setting that does best on the validation part."""
    train, val, K = photos.at(0), photos.at(1), len(photos.classes)
    y, found = photos.labels, []
    ways = {
        "kNN": [(f"k = {k}", {"k": k}, pm.fit_nearest) for k in pm.KS if k <= len(train)],
        "linear probe": [(f"C = {C:g}", {"C": C}, pm.fit_linear) for C in pm.CS],
    }
    for name, settings in ways.items():
        tried = []
        for detail, how, make in settings:
            head = make(x[train], y[train], K, **how)
            tried.append(_judge(name, head, head(x[val]), y[val], detail, how=how))
        found.append(max(tried, key=lambda one: (round(one.score, 6), -one.loss)))
    return found


def _fine_tuned(options, backbone: Backbone, photos: Photos, candidates: list[Candidate], device) -> Candidate:
    """The network, or adapters in it, trained from the linear probe on; after a stop it goes on from the last epoch."""
    train, val = photos.at(0), photos.at(1)
    C, H, W = backbone.input_size
    needed = (len(train) + len(val)) * C * H * W * 2
    if needed > memory() / 2:
        raise ValueError(
            f"--fine-tune needs {needed / 1e9:.1f} GB for the photos, more than half of this machine's memory"
        )
    say(f"fine-tuning: {options.epochs} epochs of {len(train):,} photos")
    parts = [photos.whole.at(places) for places in (train, val)]
    dataset = as_dataset(*parts, backbone.transform, backbone.mean, backbone.std)
    probe = next(one for one in candidates if one.name == "linear probe")
    net = load_backbone(backbone.name, img_size=None if backbone.name == "pocket" else H)
    head = pm.LinearHead(probe.head.linear.in_features, len(photos.classes))
    head.load_state_dict(probe.head.state_dict())
    model = pm.PhotoModel(net, head, photos.classes)
    recipe = Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=RATES[options.fine_tune],
        augment=photo_augmentation(H),
        seed=options.seed,
    )
    lora = options.fine_tune == "lora"
    adapted = add_lora(net.net, RANK, torch.zeros(1, C, H, W)) if lora else None
    groups = None if lora else layer_groups(net.net, head, recipe.lr)
    file = options.out / "fine-tune.pt"

    def told(epoch: dict) -> None:
        share, seconds = epoch["val_accuracy"], epoch["seconds"]
        say(f"epoch {epoch['epoch']}/{options.epochs}: validation {share:.1%}, {seconds:.0f} s of training")

    fine_tune(model, dataset, recipe, groups, device=device, checkpoint=file, report=told)
    if adapted is not None:
        adapted.merge_and_unload()
    model.eval()
    logits = _logits(model, parts[1], device)
    detail = f"{options.epochs} epochs, rate {recipe.lr:g}" + f", adapters of rank {RANK}" * lora
    name = "LoRA" if lora else "fine-tuning"
    return _judge(name, model.head.cpu(), logits, photos.labels[val], detail, net=net.cpu())


@torch.no_grad()
def _logits(model: pm.PhotoModel, part: ImagePart, device: torch.device) -> Tensor:
    """Logits (N, K) of the photos of a part, in eval mode."""
    model.to(device)
    found = []
    with pm.eval_mode(model):
        for start in tqdm(range(0, len(part), 32), desc="test", unit="batch", disable=not show_progress()):
            images = [model.backbone.transform(part[i][0]) for i in range(start, min(start + 32, len(part)))]
            found.append(model(torch.stack(images).to(device)).float().cpu())
    model.cpu()
    return torch.cat(found)


def _final(best: Candidate, backbone: Backbone, x: Tensor, photos: Photos) -> pm.PhotoModel:
    """The model that is kept: its temperature from the validation part, a probe fitted again on that part too."""
    temperature = pm.fit_temperature(best.logits, photos.labels[photos.at(1)])
    head = best.head
    if best.net is None and best.how:
        both = torch.cat([photos.at(0), photos.at(1)])
        make = pm.fit_nearest if best.name == "kNN" else pm.fit_linear
        head = make(x[both], photos.labels[both], len(photos.classes), **best.how)
    return pm.PhotoModel(best.net or backbone, head, photos.classes, temperature).cpu().eval()


def _judged(photos: Photos, logits: Tensor, model: pm.PhotoModel, best: Candidate) -> str:
    y, answers = photos.labels[photos.at(2)], logits.argmax(1)
    right = int((answers == y).sum())
    low, high = pm.interval(right, len(y))
    return (
        f"chosen: {best.name}. Test: {right} of {len(y)} right, {right / len(y):.1%} (95 % interval {low:.1%} to "
        f"{high:.1%}); mean over classes {pm.balanced_accuracy(y, answers):.1%}"
    )


# --- what is written ---


def _write(options, photos, model, best, candidates, logits, warning, more, files) -> None:
    """All files, made whole before the first is put into its place; the report last."""
    test = photos.at(2)
    probabilities = (logits.double() / model.temperature).softmax(1).float()
    facts = SimpleNamespace(
        title=photos.whole.name,
        photos=photos,
        model=model,
        best=best,
        candidates=candidates,
        y=photos.labels[test],
        probabilities=probabilities,
        plain=logits.double().softmax(1).float(),
        places=test.tolist(),
        warning=warning,
        more=more,
        options=options,
    )
    about = {"trained_on": len(photos.at(0)), "head": best.name, "detail": best.detail, "seed": options.seed}
    # `load_photo_model` knows timm's networks; one with a text tower is transformers'
    kept = {} if options.zero_shot else {"model.safetensors": pm.packed(model, about)}
    made = {
        **kept,
        **files,
        "card.md": card(facts).encode(),
        "split.csv": _split_csv(photos, facts).encode(),
        "report.html": report(facts).encode(),
    }
    for name, raw in made.items():
        with whole_file(options.out / name) as temporary:
            temporary.write_bytes(raw)
    (options.out / "fine-tune.pt").unlink(missing_ok=True)
    for name in ("model.safetensors", *NAMES):  # of an earlier run; `predict` would take it for this one's
        if name not in made and (options.out / name).exists():
            (options.out / name).unlink()
            say(f"removed: {options.out / name}, which an earlier run wrote")
    say(f"written: {options.out / 'report.html'}, {', '.join(list(made)[:-1])}")


def _split_csv(photos: Photos, facts) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "class", "part", "answer", "probability"])
    place = {p: n for n, p in enumerate(facts.places)}
    for i, file in enumerate(photos.files):
        answer, sure = "", ""
        if i in place:
            top = facts.probabilities[place[i]].max(0)
            answer, sure = photos.classes[int(top.indices)], f"{top.values.item():.4f}"
        part = PARTS[int(photos.part[i])] if photos.part[i] >= 0 else "left out"
        rows.writerow([str(file), photos.classes[int(photos.labels[i])], part, answer, sure])
    for i, why in photos.survey.unreadable.items():
        rows.writerow([str(photos.all_files[i]), "", f"unreadable: {why}", "", ""])
    return text.getvalue()
