"""The report of `python -m vitutils.photos`, one HTML page that asks no other host for anything, and the card."""

import base64
import html
import io
import math
from pathlib import Path

import timm
import torch
from torch import Tensor

from vitutils.analysis import photo_model as pm
from vitutils.data._layout import read_picture
from vitutils.data.survey import SMALL

MISTAKES_SHOWN = 24
COPIES_SHOWN = 6  # pairs
TABLE_CLASSES = 20  # a confusion matrix of more is a list of its largest numbers
SIDE = 176  # pixels of a photo in the report

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--box:#f6f8fa;--bar:#0072b2;
--warn:#fff4d6;--warnline:#b98900;--heat:0,114,178}
@media(prefers-color-scheme:dark){:root{--ground:#14171c;--ink:#e6e9ee;--soft:#a2abb8;--line:#3a414b;--box:#1d2229;
--bar:#56b4e9;--warn:#3a3013;--warnline:#e6b93f;--heat:86,180,233}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:58rem;margin:0 auto;padding:1.25rem 1rem 4rem}h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 1rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem}p{margin:.5rem 0}.soft{color:var(--soft)}
.big{font-size:2.4rem;font-weight:600;line-height:1.1}.box{background:var(--box);border:1px solid var(--line);
border-radius:8px;padding:1rem}.warn{background:var(--warn);border-left:5px solid var(--warnline);padding:.7rem 1rem;
border-radius:4px;margin:0 0 1rem;overflow-wrap:anywhere}.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:middle;
white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{font-weight:600;color:var(--soft);font-size:.88rem}
tbody .class{white-space:normal;min-width:5rem;max-width:16rem;overflow-wrap:break-word}
.heat thead th{white-space:normal;max-width:7rem;overflow-wrap:break-word;text-align:center}
.track{display:block;width:9rem;min-width:9rem;height:14px}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.9rem}figure{margin:0}
figure img{width:100%;height:auto;border-radius:4px;display:block}figcaption{font-size:.85rem;line-height:1.35;
margin-top:.25rem;overflow-wrap:anywhere}ul{padding-left:1.2rem;margin:.4rem 0}li{overflow-wrap:anywhere}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.9em;overflow-wrap:anywhere}
pre{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.7rem;overflow-x:auto;margin:.5rem 0}
pre code{overflow-wrap:normal}.pair{display:grid;grid-template-columns:1fr 1fr;gap:.4rem}
.heat td{text-align:center;min-width:2.6rem}.heat td:first-child{text-align:left}
"""


def text(value: object) -> str:
    """Anything as HTML that shows its letters."""
    return html.escape(str(value), quote=True)


def percent(share: float) -> str:
    """A share as per cent with one decimal; none where there is no number."""
    return "none" if math.isnan(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def how_many(count: int, what: str) -> str:
    """1 photo, 2 photos."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def short_name(file: object) -> str:
    """CLASS/FILE of a photo, in a folder or a zip."""
    path = Path(getattr(getattr(file, "info", None), "filename", str(file)))
    return "/".join(path.parts[-2:])


def thumbnail(file: object, alt: str) -> str:
    """A photo as an <img> that carries its own data."""
    picture = read_picture(file)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=72, optimize=True)
    coded, (W, H) = base64.b64encode(raw.getvalue()).decode(), picture.size
    return f'<img src="data:image/jpeg;base64,{coded}" width="{W}" height="{H}" alt="{text(alt)}">'


def html_table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """A table that scrolls by itself on a narrow window; cells are HTML already."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = ""
    for row in rows:
        cells = "".join(f"<td{_own(cell)}>{_bare(cell)}</td>" for cell in row[1:])
        body += f'<tr><th scope="row" class="class">{row[0]}</th>{cells}</tr>'
    made = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="table">{made}</div>'


def _own(cell: object) -> str:
    return f' style="{cell[1]}"' if isinstance(cell, tuple) else ""


def _bare(cell: object) -> str:
    return cell[0] if isinstance(cell, tuple) else str(cell)


def _track(low: float, share: float, high: float) -> str:
    """An interval and its middle as a drawing."""
    told = f"{percent(share)}, 95 % interval {percent(low)} to {percent(high)}"
    return (
        f'<svg class="track" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<rect x="0" y="5" width="100" height="4" fill="var(--line)"/>'
        f'<rect x="{100 * low:.1f}" y="3" width="{max(1, 100 * (high - low)):.1f}" height="8" fill="var(--bar)" '
        f'opacity=".45"/>'
        f'<rect x="{min(98, max(0, 100 * share - 1)):.1f}" y="0" width="2.5" height="14" fill="var(--bar)"/></svg>'
    )


def _classes(results: list[pm.ClassResult]) -> str:
    rows = []
    for one in sorted(results, key=lambda one: (one.right / one.photos if one.photos else 2, one.name)):
        share = one.right / one.photos if one.photos else math.nan
        drawn = _track(one.low, share, one.high) if one.photos else ""
        between = f"{percent(one.low)} to {percent(one.high)}" if one.photos else ""
        found = f"{one.right} of {one.photos}"
        rows.append([text(one.name), drawn, percent(share), found, between, percent(one.precision)])
    head = ["class", "0 to 100&nbsp;%", "found", "photos", "95&nbsp;% interval", "right when called so"]
    return html_table(head, rows)


def _confusion(counts: Tensor, classes: tuple[str, ...]) -> str:
    K = len(classes)
    if K <= TABLE_CLASSES:
        rows = []
        for k in range(K):
            total = max(1, int(counts[k].sum()))
            cells = [
                (str(int(n)), f"background:rgba(var(--heat),{0.75 * int(n) / total:.2f})" if n else "color:var(--soft)")
                for n in counts[k]
            ]
            rows.append([text(classes[k]), *cells])
        return "<p>Rows: what a photo shows. Columns: what it was called.</p>" + html_table(
            ["", *[text(c) for c in classes]], rows, "heat"
        )
    off = counts.clone().fill_diagonal_(0)
    order = off.flatten().argsort(descending=True)[:20]
    rows = [
        [text(classes[int(i) // K]), text(classes[int(i) % K]), str(int(off.flatten()[i]))]
        for i in order
        if off.flatten()[i]
    ]
    told = f"<p>{K} classes are too many for a table: the confusions that happened most.</p>"
    return told + (html_table(["shows", "was called", "photos"], rows) if rows else "<p>There were none.</p>")


def _diagram(bins: list[pm.Bin]) -> str:
    """How sure the answers were, and how often they were right: a point for each bin."""
    largest = max(b.count for b in bins)
    points = ""
    for b in bins:
        x, y, r = 40 + 250 * b.sure, 265 - 250 * b.right, 4 + 8 * math.sqrt(b.count / largest)
        points += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="var(--bar)" opacity=".75"/>'
    told = "; ".join(f"{b.count} photos {percent(b.sure)} sure, {percent(b.right)} right" for b in bins)
    words = (
        '<text x="165" y="300" text-anchor="middle">how sure, %</text>'
        '<text x="14" y="140" text-anchor="middle" transform="rotate(-90 14 140)">right, %</text>'
    )
    ticks = "".join(
        f'<text x="{40 + 250 * t}" y="282" text-anchor="middle">{100 * t:.0f}</text>'
        f'<text x="34" y="{270 - 250 * t}" text-anchor="end">{100 * t:.0f}</text>'
        for t in (0, 0.5, 1)
    )
    return (
        f'<svg viewBox="0 0 310 310" style="max-width:24rem;width:100%" role="img" aria-label="{text(told)}" '
        f'fill="var(--ink)" font-size="13"><rect x="40" y="15" width="250" height="250" fill="none" '
        f'stroke="var(--line)"/>'
        f'<path d="M40 265L290 15" stroke="var(--soft)" stroke-dasharray="5 5"/>{points}{words}{ticks}</svg>'
    )


def _mistakes(facts) -> str:
    """The mistakes that the model was surest of, as a contact sheet."""
    sure, answers = facts.probabilities.max(1)
    wrong = (answers != facts.y).nonzero().flatten()
    if not len(wrong):
        return f"<p>None of the {len(facts.y)} test photos was called wrongly.</p>"
    order = wrong[sure[wrong].argsort(descending=True)][:MISTAKES_SHOWN]
    figures = []
    for n in order.tolist():
        file, truth = facts.photos.files[facts.places[n]], facts.photos.classes[int(facts.y[n])]
        called = facts.photos.classes[int(answers[n])]
        image = thumbnail(file, f"A test photo of {truth} that was called {called}")
        figures.append(
            f"<figure>{image}<figcaption><b>{text(truth)}</b>, called <b>{text(called)}</b>, {percent(sure[n].item())} "
            f'sure<br><span class="soft">{text(short_name(file))}</span></figcaption></figure>'
        )
    told = f"{len(order)} of {len(wrong)}" if len(order) < len(wrong) else f"All {len(wrong)}"
    return (
        f"<p>{told}, those first that the model was surest of. Look for photos whose label is wrong, and for what they "
        f'have in common.</p><div class="sheet">{"".join(figures)}</div>'
    )


def _copies(photos) -> str:
    """Some pairs of copies, those with different labels first."""
    if not photos.pairs:
        return "<p>No two photos were found to show the same.</p>"
    labels, classes = photos.labels, photos.classes
    shown = sorted(photos.pairs, key=lambda pair: labels[pair[0]] == labels[pair[1]])[:COPIES_SHOWN]
    figures = []
    for pair in shown:
        names = [short_name(photos.files[i]) for i in pair]
        images = "".join(thumbnail(photos.files[i], f"One of two copies: {classes[int(labels[i])]}") for i in pair)
        odd = "<b>different labels:</b> " if labels[pair[0]] != labels[pair[1]] else ""
        figures.append(
            f'<figure><div class="pair">{images}</div>'
            f"<figcaption>{odd}{text(names[0])}<br>{text(names[1])}</figcaption></figure>"
        )
    count = how_many(len(photos.pairs), "pair")
    more = f"{len(shown)} of {count}" if len(shown) < len(photos.pairs) else count
    return f'<p>{more} of photos that show the same.</p><div class="sheet">{"".join(figures)}</div>'


def _folder(facts) -> str:
    photos, survey = facts.photos, facts.photos.survey
    counts = [(photos.labels[photos.at(p)]).bincount(minlength=len(photos.classes)).tolist() for p in range(3)]
    rows = [[text(name), *[str(part[k]) for part in counts]] for k, name in enumerate(photos.classes)]
    if len(rows) > 40:
        order = sorted(range(len(rows)), key=lambda k: sum(part[k] for part in counts))
        rows = [rows[k] for k in order[:20]]
        rows.append([f"and {len(order) - 20} larger classes", "", "", ""])
    notes = list(photos.notes)
    if survey.turned:
        notes.append(f"turned upright, as the camera's orientation tag says: {how_many(len(survey.turned), 'photo')}")
    if survey.small:
        notes.append(f"small, with a side below {SMALL} pixels: {how_many(len(survey.small), 'photo')}")
    if survey.unreadable:
        some = [f"{short_name(photos.all_files[i])}" for i in list(survey.unreadable)[:12]]
        more = f" and {len(survey.unreadable) - 12} more" if len(survey.unreadable) > 12 else ""
        count = how_many(len(survey.unreadable), "file")
        notes.append(f"passed over, since unreadable: {count}: {', '.join(some)}{more}")
    listed = "<ul>" + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ul>" if notes else "<p>Nothing odd.</p>"
    head = ["class", "to train on", "validation", "test"]
    return listed + html_table(head, rows)


def _made(facts) -> str:
    """How each way of classifying did on the validation part, and which was taken."""
    rows = [
        [text(one.name) + (" (chosen)" if one is facts.best else ""), text(one.detail), percent(one.score)]
        for one in facts.candidates
    ]
    return html_table(["way", "setting", "mean over classes, validation"], rows)


def facts_in_numbers(facts) -> dict[str, str]:
    """What report and card both say, in words."""
    answers, y, photos = facts.probabilities.argmax(1), facts.y, facts.photos
    right, n = int((answers == y).sum()), len(y)
    low, high = pm.interval(right, n)
    train = photos.labels[torch.cat([photos.at(0), photos.at(1)])]
    usual = int((y == train.bincount().argmax()).sum())
    return {
        "share": percent(right / n),
        "told": f"{right} of {n} test photos right; 95 % interval {percent(low)} to {percent(high)}",
        "balanced": percent(pm.balanced_accuracy(y, answers)),
        "usual": f"Always answering the commonest class would have {percent(usual / n)}, and a mean over classes of "
        f"{percent(1 / len(y.unique()))}.",
    }


def report(facts) -> str:
    """The whole page. facts: what `cli._photos` has gathered."""
    photos, model, backbone = facts.photos, facts.model, facts.model.backbone
    told, answers = facts_in_numbers(facts), facts.probabilities.argmax(1)
    error, bins = pm.calibration_bins(facts.probabilities, facts.y)
    before, _ = pm.calibration_bins(facts.plain, facts.y)
    warning = (
        f'<div class="warn" role="note"><b>Read this first.</b> {text(facts.warning)}</div>' if facts.warning else ""
    )
    results = pm.by_class(facts.y, answers, photos.classes)
    counts = pm.confusion(facts.y, answers, len(photos.classes))
    H, W = backbone.input_size[1:]
    how = "Without training" if facts.options.zero_shot else "Chosen on the validation part"
    parts = [
        f"{warning}<h1>{text(facts.title)}: {len(photos.classes)} classes, {len(photos.files):,} photos</h1>",
        f'<div class="box"><div class="big">{told["share"]}</div><p>{told["told"]}. The mean over classes is '
        f"{told['balanced']}. {told['usual']}</p>",
        f"<p>{how}: {text(facts.best.name)} ({text(facts.best.detail)}) on "
        f"<code>{text(backbone.name)}</code>. The test part was looked at once.</p></div>",
        "<h2>Each class</h2><p>The worst first. A wide interval means few test photos.</p>",
        _classes(results),
        "<h2>What was taken for what</h2>",
        _confusion(counts, photos.classes),
        "<h2>The worst mistakes</h2>",
        _mistakes(facts),
        "<h2>How sure, how right</h2>",
        f"<p>The logits were divided by {model.temperature:.2f}, a temperature found on the validation part. The "
        f"expected calibration error on the test part is {percent(error)} (without: {percent(before)}). On the "
        f"dashed line answers are right as often as they say; with {len(facts.y)} photos some points lie off it by "
        f"chance. Larger points stand for more photos.</p>",
        _diagram(bins),
        "<h2>What was tried</h2>",
        _made(facts),
        *(f"<h2>{text(title)}</h2><p>{text(' '.join(lines))}</p>" for title, lines in facts.more),
        "<h2>The folder</h2>",
        _folder(facts),
        "<h2>Copies</h2>",
        _copies(photos),
        f"<h2>The network</h2><ul><li>Backbone: <code>{text(backbone.name)}</code>, {text(backbone.pretraining)}</li>",
        f"<li>Licence of its weights: {text(backbone.licence_note)}</li><li>Images of {H} x {W} pixels</li>",
        f"<li>Seed of the split: {facts.options.seed}</li></ul>",
        f"<h2>Use it</h2><pre><code>{text(use(facts.options))}</code></pre><p>It knows these classes alone, and "
        f"gives one of them to a photo of anything else too.</p>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(facts.title)}: report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def use(options) -> str:
    """The command that uses the model, of which there is none after --zero-shot without --onnx."""
    folder = str(options.out) if " " not in str(options.out) else f'"{options.out}"'
    if options.zero_shot and not options.onnx:
        return "python -m vitutils.photos FOLDER --out DIR --zero-shot --onnx"
    return f"python -m vitutils.predict {folder} photo.jpg" + " --onnx" * options.zero_shot


def card(facts) -> str:
    """The model's card, as Markdown."""
    photos, model, backbone = facts.photos, facts.model, facts.model.backbone
    told, answers = facts_in_numbers(facts), facts.probabilities.argmax(1)
    error, _ = pm.calibration_bins(facts.probabilities, facts.y)
    lines = [f"# {facts.title}", ""]
    if facts.warning:
        lines += [f"**Read this first.** {facts.warning}", ""]
    lines += [
        f"Tells {len(photos.classes)} classes apart: {', '.join(photos.classes)}.",
        "",
        f"- **Test.** {told['told']}; mean over classes {told['balanced']}. {told['usual']}",
        f"- **Calibration.** Expected error {percent(error)}, temperature {model.temperature:.2f}.",
        f"- **Made by** {facts.best.name} ({facts.best.detail}) on `{backbone.name}` ({backbone.pretraining}), images "
        f"of {backbone.input_size[1]} pixels, with timm {timm.__version__} and torch {torch.__version__}.",
        f"- **Photos.** {len(photos.at(0)):,} to train on, {len(photos.at(1)):,} to choose by, {len(photos.at(2)):,} "
        f"to test on; seed {facts.options.seed}. split.csv says which photo is in which.",
        f"- **Licence of the backbone's weights.** {backbone.licence_note}. That of your photos is yours to know.",
        *(f"- **{title}.** {' '.join(lines)}" for title, lines in facts.more),
        "- **Limits.** Other cameras, places and seasons than those of the photos were not tested. A photo of anything "
        "else gets one of the classes too.",
        "",
        "| class | found | 95 % interval |",
        "|---|---|---|",
    ]
    for one in pm.by_class(facts.y, answers, photos.classes):
        lines.append(f"| {one.name} | {one.right} of {one.photos} | {percent(one.low)} to {percent(one.high)} |")
    lines += ["", "```bash", use(facts.options), "```", ""]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
