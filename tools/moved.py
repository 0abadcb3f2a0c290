"""Use what a reader can move on a page, by keyboard and by mouse, and read what it says: the same in every browser.

A part is a figure of book/_ext/moving.py, or the frame of a page that computes something (its id ends in -stage). Each
of its controls is used, whatever it is for. tools/pages.py opens the pages, tools/pages.js reads them.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

MOVES = re.compile(r'<figure class="moving"|id="[\w-]+-stage"')  # a page with such a part
STARTED = 60_000  # milliseconds until a figure that does not start counts as broken
KEYS = {
    "range": ["ArrowRight"],
    "full range": ["ArrowLeft"],
    "radio": ["ArrowDown"],
    "checkbox": ["Space"],
    "button": ["Enter"],
    "gridcell": ["ArrowRight", "ArrowDown"],
    "application": ["ArrowRight", "n", "Space"],
    "disabled": [],
}
DOES = {"start": "start", "by_keys": "answer to keys", "by_mouse": "answer to clicks", "drag": "answer to dragging"}
PATH = [(0.5, 0.5), (0.4, 0.6), (0.9, 0.5)]  # of the sides of what a pointer drags


@dataclass
class Part:
    """What one part said at first and after each step, and what is wrong with it."""

    said: dict[str, str] = field(default_factory=dict)  # step: words and numbers
    faults: list[str] = field(default_factory=list)


def use(tab) -> dict[str, Part]:
    """Use each part of the page that stands open in the tab. Returns {its id: what it said}.

    A part that does not start has a fault, and so has one that no key or no pointer changes.
    """
    from playwright.sync_api import Error

    found = {}
    for name in tab.ask("parts"):
        found[name] = part = Part()
        for step in (start, by_keys, by_mouse, drag):
            try:
                step(tab, name, part)
            except Error as error:
                part.faults.append(f"{name} does not {DOES[step.__name__]}: {error.message.splitlines()[0]}")
                break
    return found


def start(tab, name: str, part: Part) -> None:
    """Bring a part to the point where it can be used."""
    place = tab.page.locator(f"[id='{name}']")
    still = name.removesuffix("-stage") + "-missing"  # where the button stands that loads a page's part
    loads = tab.page.locator(f"[id='{name}'] .moving-still button, [id='{still}'] button")
    place.evaluate("(part) => part.scrollIntoView({block: 'center'})")
    if loads.count():
        loads.press("Enter")
    tab.page.wait_for_function("(name) => look.begun(name)", arg=name, timeout=STARTED)
    part.said["at first"] = tab.ask("said", name)


def by_keys(tab, name: str, part: Part) -> None:
    """Each control by its keys; a slider has to move, and what the part says to change."""
    before = len(part.said)
    for mark, label in tab.ask("controls", name):
        kind = tab.ask("focus", mark)
        for key in KEYS[kind]:
            tab.page.keyboard.press(key)
        words = tab.ask("said", name)
        if kind.endswith("range") and words == list(part.said.values())[-1]:
            part.faults.append(f"{name}: no key moves '{label}'")
        if KEYS[kind]:
            part.said[f"{len(part.said)}. {' '.join(KEYS[kind])} on '{label}'"] = words
    note_unmoved(part, before, f"{name}: no key changes what it says")


def by_mouse(tab, name: str, part: Part) -> None:
    """Each control that can be clicked."""
    before = len(part.said)
    for mark, label in tab.ask("controls", name):
        if tab.ask("focus", mark) in ("radio", "checkbox", "button", "gridcell"):
            tab.page.locator(f"[data-hand='{mark}']").click()
            part.said[f"{len(part.said)}. a click on '{label}'"] = tab.ask("said", name)
    note_unmoved(part, before, f"{name}: no click changes what it says")
    tab.page.wait_for_timeout(400)  # what is read aloud waits until the hand rests
    part.said["at last"] = tab.ask("said", name)


def note_unmoved(part: Part, before: int, fault: str) -> None:
    """A fault where all that was said since `before` is one and the same."""
    since = list(part.said.values())[before - 1 :]
    if len(since) > 1 and len(set(since)) == 1:
        part.faults.append(fault)


def drag(tab, name: str, part: Part) -> None:
    """Each surface on which a pointer drags. What it then shows depends on parts of a pixel: no two browsers agree."""
    for number in itertools.count():
        before, box = tab.ask("drawn", name), tab.ask("surface", name, number)
        if box is None:
            break
        for step, (across, down) in enumerate(PATH):
            tab.page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            if step == 0:
                tab.page.mouse.down()
        tab.page.mouse.up()
        if tab.ask("drawn", name) == before:
            part.faults.append(f"{name}: dragging changes nothing")


def apart(one: dict[str, Part], two: dict[str, Part]) -> list[str]:
    """Where two browsers said different things, at first or at last: a line per part.

    Between, what is read aloud comes when a browser has time.
    """
    lines = []
    for name in sorted(one.keys() | two.keys()):
        first, second = (side[name].said if name in side else {} for side in (one, two))
        for step in ("at first", "at last"):
            if first.get(step) != second.get(step):
                lines.append(f"{name}, {step}: " + unlike(first.get(step, "nothing"), second.get(step, "nothing")))
                break
    return lines


def unlike(one: str, two: str) -> str:
    """The words around the first difference of two texts."""
    words = [text.split() for text in (one, two)]
    at = next((i for i, (a, b) in enumerate(zip(*words, strict=False)) if a != b), min(map(len, words)))
    return " against ".join(f"'{' '.join(some[max(0, at - 4) : at + 5])}'" for some in words)
