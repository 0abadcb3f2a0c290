// What all figures that move share: loading when a figure comes near, and the parts they are made of.
// book/_ext/moving.py puts the frames on the pages; each figure is a file of its own beside this one.
(function () {
  "use strict";
  if (window.moving) return; // a page may hold two figures

  const SVG = "http://www.w3.org/2000/svg";
  // Okabe and Ito's colours, as the book's plots take them; a word or a number always says the same as the colour.
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000"];
  // viridis, dark to bright
  const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];

  const panel = (title, ...parts) => make("div", {class: "moving-panel"}, make("p", {class: "moving-title"}, title), ...parts);
  const percent = (share) => (100 * share).toFixed(1) + " %";

  // share 0 to 1 -> a colour of viridis
  function viridis(share) {
    const at = Math.max(0, Math.min(0.9999, share)) * (VIRIDIS.length - 1), low = Math.floor(at);
    const part = (i, c) => parseInt(VIRIDIS[i].slice(2 * c, 2 * c + 2), 16);
    return `rgb(${[0, 1, 2].map((c) => Math.round(part(low, c) + (at - low) * (part(low + 1, c) - part(low, c))))})`;
  }

  // --- elements ---

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  // A drawing with a name for those who do not see it. Keep it at most 340 wide, so that a phone shows it whole.
  const picture = (width, height, label) =>
    draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, style: `max-width: ${width}px`});

  // --- controls: the browser's own, so that keys and touch work as everywhere ---

  // A slider. `words` says its value; `changed` is called with it.
  function slider({label, min, max, step = 1, value, words = String, changed}) {
    const input = make("input", {type: "range", min, max, step, value}), said = make("output");
    const tell = () => {
      said.textContent = words(Number(input.value));
      input.setAttribute("aria-valuetext", said.textContent);
    };
    input.addEventListener("input", () => { tell(); changed(Number(input.value)); });
    tell();
    const row = make("label", {class: "moving-slider"}, make("span", {}, label), input, said);
    return {row, set(to) { input.value = to; tell(); }};
  }

  // A box to tick.
  function tick({label, checked, changed}) {
    const input = make("input", {type: "checkbox"});
    input.checked = checked;
    input.addEventListener("change", () => changed(input.checked));
    return {row: make("label", {class: "moving-tick"}, input, " " + label), input};
  }

  // One of a few.
  let groups = 0;
  function choice({legend, names, chosen = 0, changed}) {
    const row = make("fieldset", {class: "moving-choice"}, make("legend", {}, legend));
    const group = `moving-choice-${++groups}`;
    names.forEach((name, i) => {
      const input = make("input", {type: "radio", name: group});
      input.checked = i === chosen;
      input.addEventListener("change", () => changed(i));
      row.append(make("label", {}, input, " " + name));
    });
    return {row};
  }

  function button(label, clicked) {
    const node = make("button", {type: "button"}, label);
    node.addEventListener("click", clicked);
    return node;
  }

  // A sentence that is read aloud, but only once the reader's hand rests.
  function speaker() {
    const row = make("p", {class: "moving-said", role: "status"});
    let due = 0;
    return {row, say(words) {
      clearTimeout(due);
      due = setTimeout(() => { row.textContent = words; }, 250);
    }};
  }

  // Calls moved(x, y), in the drawing's own units, while a pointer is down on the node.
  function drag(svg, node, moved) {
    let down = false;
    const tell = (event) => {
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      moved((event.clientX - box.left) / box.width * view.width, (event.clientY - box.top) / box.height * view.height);
    };
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      down = true;
      event.preventDefault();
      try { node.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that is gone */ }
      tell(event);
    });
    node.addEventListener("pointermove", (event) => { if (down) tell(event); });
    for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => { down = false; });
  }

  // A grid of squares of which one is chosen: by pointer, or by arrows once the Tab key has come to it.
  // changed(i) is called when square i is chosen; the caller colours and names the squares.
  function grid({rows, columns, name, chosen = 0, changed}) {
    const row = make("div", {class: "moving-grid", role: "grid", "aria-label": name, style: `--columns: ${columns}`});
    const cells = [];
    const mark = () => cells.forEach((cell, i) => {
      cell.setAttribute("aria-selected", String(i === chosen));
      cell.tabIndex = i === chosen ? 0 : -1;
    });
    const choose = (i) => { chosen = i; mark(); changed(i); };
    for (let r = 0; r < rows; r++) {
      const line = make("div", {role: "row"});
      for (let c = 0; c < columns; c++) {
        const i = r * columns + c, cell = make("div", {role: "gridcell"});
        cell.addEventListener("click", () => { choose(i); cell.focus(); });
        cells.push(cell);
        line.append(cell);
      }
      row.append(line);
    }
    row.addEventListener("keydown", (event) => {
      const r = Math.floor(chosen / columns), c = chosen % columns;
      const to = {ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c],
        Home: [r, 0], End: [r, columns - 1]}[event.key];
      if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (to[0] < 0 || to[0] >= rows || to[1] < 0 || to[1] >= columns) return;
      choose(to[0] * columns + to[1]);
      cells[chosen].focus();
    });
    mark();
    return {row, cells, set(i) { chosen = i; mark(); }};
  }

  // --- loading ---

  function script(source) {
    return new Promise((loaded, failed) => {
      const node = make("script", {src: source});
      node.onload = loaded;
      node.onerror = failed;
      document.head.append(node);
    });
  }

  const asked = {}; // each script is loaded once
  const inSight = (node) => {
    const box = node.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  };

  async function load(place) {
    const still = place.querySelector(".moving-still");
    try {
      for (const source of place.dataset.scripts.split(" ")) await (asked[source] ||= script(source));
    } catch (error) {
      still.textContent = "A file of this figure did not load. Load the page again.";
      return;
    }
    const stage = make("div", {class: "moving-stage", role: "group", "aria-label": place.querySelector("strong").textContent});
    const focused = document.activeElement, seen = inSight(focused);
    still.replaceWith(stage);
    moving.figures[place.dataset.figure](stage, moving, place);
    if (seen && focused !== document.body && !inSight(focused)) focused.scrollIntoView({block: "nearest"});  // pushed down
    place.dataset.ready = "";
  }

  window.moving = {
    figures: {}, COLOURS, percent, viridis, make, draw, panel, picture, slider, tick, choice, button, speaker, drag, grid,
  };

  // A figure that loads much begins when it is asked to.
  function offer(place) {
    const start = button(`Start (loads ${place.dataset.megabytes} MB)`, async () => {
      start.disabled = true;
      await load(place);
      place.querySelector(".moving-stage input, .moving-stage button")?.focus();
    });
    place.querySelector(".moving-still").replaceChildren(start);
  }

  for (const place of document.querySelectorAll("figure.moving")) {
    if (place.dataset.megabytes) offer(place);
    else if (!("IntersectionObserver" in window)) load(place);
    else {
      const watch = new IntersectionObserver((seen) => {
        if (!seen.some((one) => one.isIntersecting)) return;
        watch.disconnect();
        load(place);
      }, {rootMargin: "300px"});
      watch.observe(place);
    }
  }
})();
