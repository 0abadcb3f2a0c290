// Chapter 1, "Why it matters": slide a shape under fixed patches. One kernel, at every pixel and once per patch: how much
// of its answer moves along?
(function () {
  "use strict";

  const SIDE = 32, FAR = 8, START = 12; // pixels of the image; the longest move; where the shape begins, across and down
  const PATCHES = [8, 4];
  const SHAPE = [".####...", ".####...", ".####...", ".#####..", ".######.", ".#######", ".#######", ".##..###"]; // a boot

  // The image with its shape moved: SIDE * SIDE numbers, 0 or 1, row by row.
  function image(dx, dy) {
    const pixels = new Float64Array(SIDE * SIDE);
    SHAPE.forEach((line, y) => [...line].forEach((sign, x) => {
      if (sign === "#") pixels[(START + dy + y) * SIDE + START + dx + x] = 1;
    }));
    return pixels;
  }

  // P * P weights: what lies on the right minus what lies on the left. The largest possible answer is 1.
  const kernel = (P) => Float64Array.from({length: P * P}, (_, i) => (i % P < P / 2 ? -2 : 2) / P ** 2);

  // The kernel's answers, row by row. Stride 1: padded by zeros, P / 2 above and on the left, P / 2 - 1 on the other sides,
  // so that there is one for each pixel. Stride P: not padded, one for each patch.
  function answer(pixels, P, stride) {
    const weights = kernel(P), edge = stride === 1 ? P / 2 : 0, across = SIDE / stride;
    return Float64Array.from({length: across * across}, (_, i) => {
      const top = stride * Math.floor(i / across) - edge, left = stride * (i % across) - edge;
      let sum = 0;
      for (let v = 0; v < P; v++) {
        for (let u = 0; u < P; u++) {
          const y = top + v, x = left + u;
          if (y >= 0 && y < SIDE && x >= 0 && x < SIDE) sum += weights[v * P + u] * pixels[y * SIDE + x];
        }
      }
      return sum;
    });
  }

  // A grid of answers moved by whole positions; zeros move in.
  function moved(grid, right, down) {
    const across = Math.sqrt(grid.length);
    return grid.map((_, i) => {
      const y = Math.floor(i / across) - down, x = (i % across) - right;
      return y >= 0 && y < across && x >= 0 && x < across ? grid[y * across + x] : 0;
    });
  }

  const length = (grid) => Math.sqrt(grid.reduce((sum, value) => sum + value * value, 0));

  // What is left over when the shape moves: its answer minus the old answer moved along, by the whole number of positions
  // that leaves least; and its length, relative to that of the old answer: the chapter's equivariance error.
  function compare(dx, dy, P, stride) {
    const before = answer(image(0, 0), P, stride), now = answer(image(dx, dy), P, stride), whole = (d) => [Math.floor(d / stride), Math.ceil(d / stride)];
    let best = null;
    for (const right of whole(dx)) {
      for (const down of whole(dy)) {
        const old = moved(before, right, down), left = now.map((value, i) => value - old[i]), error = length(left) / length(before);
        if (!best || error < best.error) best = {now, left, error, by: [right, down]};
      }
    }
    return best;
  }

  function begin(stage, {COLOURS, make, draw, panel, picture, slider, choice, speaker, drag}) {
    let dx = 0, dy = 0, size = 0;
    const CELL = 10, FULL = SIDE * CELL, {row: said, say} = speaker(), why = make("p", {class: "moving-sum"});
    const clamp = (d) => Math.max(-FAR, Math.min(FAR, d));
    const rect = (x, y, w, h, more) => draw("rect", {x, y, width: w, height: h, ...more});

    // --- the image ---
    const board = picture(FULL, FULL, "");
    board.setAttribute("role", "application"); // arrow keys are its own
    board.setAttribute("tabindex", 0);
    const squares = (more) => SHAPE.flatMap((line, y) => [...line].map((sign, x) => (sign === "#"
      ? rect((START + x) * CELL, (START + y) * CELL, CELL, CELL, more) : ""))).filter(Boolean);
    const shape = draw("g", {"shape-rendering": "crispEdges"}, ...squares({fill: "#ffffff"})), lines = draw("g", {stroke: COLOURS[1], "stroke-width": 2});
    const handle = rect(0, 0, FULL, FULL, {fill: "transparent", class: "moving-handle"});
    board.append(rect(0, 0, FULL, FULL, {fill: "#000000"}), draw("g", {"shape-rendering": "crispEdges"}, ...squares({fill: "#4d4d4d"})), shape, lines, handle);

    // --- answers and what is left over of them: red above 0, blue below ---
    function map(name) {
      const node = make("canvas", {width: 256, height: 256, role: "img"});
      return {row: make("div", {}, make("span", {}, name), node), paint(grid, label) {
        const across = Math.sqrt(grid.length), cell = 256 / across, context = node.getContext("2d");
        grid.forEach((value, i) => {
          const pale = Math.round(255 * (1 - Math.min(1, 1.5 * Math.abs(value))));
          context.fillStyle = value < 0 ? `rgb(${pale}, ${pale}, 255)` : `rgb(255, ${pale}, ${pale})`;
          context.fillRect(cell * (i % across), cell * Math.floor(i / across), cell, cell);
        });
        context.fillStyle = "#b0b0b0"; // the patches
        for (let i = 1; across < SIDE && i < across; i++) {
          context.fillRect(cell * i - 1, 0, 2, 256);
          context.fillRect(0, cell * i - 1, 256, 2);
        }
        node.setAttribute("aria-label", label);
      }};
    }
    const maps = [1, 0].flatMap(() => [map("answer"), map("left over")]);
    const titles = [0, 1].map(() => make("p", {class: "moving-title"}));
    const pair = (i) => make("div", {}, titles[i], make("div", {class: "moving-maps moving-framed"}, maps[2 * i].row, maps[2 * i + 1].row));

    // --- the errors of all moves to the right or left ---
    const chart = picture(340, 220, "");
    function drawChart(P) {
      const x = (d) => 190 + d * 16, y = (error) => 170 - error * 105;
      chart.replaceChildren(rect(x(dx) - 8, 10, 16, 160, {class: "moving-here"}));
      for (const error of [0, 0.5, 1, 1.5]) {
        chart.append(draw("line", {x1: 54, x2: 326, y1: y(error), y2: y(error), class: "moving-line"}));
        chart.append(draw("text", {x: 46, y: y(error) + 5, "text-anchor": "end"}, error.toFixed(1)));
      }
      for (const d of [-8, -4, 0, 4, 8]) chart.append(draw("text", {x: x(d), y: 192, "text-anchor": "middle"}, String(d).replace("-", "−")));
      chart.append(draw("text", {x: 190, y: 214, "text-anchor": "middle"}, "pixels to the right"));
      const all = Array.from({length: 2 * FAR + 1}, (_, i) => i - FAR);
      [[1, 0], [P, 5]].forEach(([stride, colour]) => {
        const points = all.map((d) => [x(d), y(compare(d, dy, P, stride).error)]);
        chart.append(draw("polyline", {points: points.join(" "), fill: "none", stroke: COLOURS[colour], "stroke-width": 2}));
        for (const [px, py] of points) {
          chart.append(stride === 1 ? draw("circle", {cx: px, cy: py, r: 4, fill: COLOURS[colour], class: "moving-edge"})
            : rect(px - 4, py - 4, 8, 8, {fill: COLOURS[colour], class: "moving-edge"}));
        }
      });
      chart.setAttribute("aria-label", `Error against the move to the right, from 8 pixels left to 8 right, ${dy} down. Stride 1: 0 everywhere. Stride ${P}: ` +
        all.map((d) => compare(d, dy, P, P).error.toFixed(2)).join(", ") + ".");
    }

    function reason(P) {
      if (!dx && !dy) return "Not moved yet.";
      if (dx % P || dy % P) return `The shape has moved, but the kernel is computed over the same patches as before. They now cut the shape in other places, so they hold pixels that no patch held before. Only a move by a multiple of ${P} pixels, across and down, brings the old patches back. The rest of a ViT sees nothing but these answers.`;
      return "A move by whole patches: each patch holds the very pixels that another one held before, so it gets that patch's answer, and all answers have moved along.";
    }

    function show() {
      const P = PATCHES[size], way = [1, P].map((stride) => compare(dx, dy, P, stride));
      shape.setAttribute("transform", `translate(${dx * CELL} ${dy * CELL})`);
      lines.replaceChildren(...Array.from({length: SIDE / P - 1}, (_, i) => (i + 1) * P * CELL).flatMap((at) => [
        draw("line", {x1: at, x2: at, y1: 0, y2: FULL}), draw("line", {x1: 0, x2: FULL, y1: at, y2: at})]));
      board.setAttribute("aria-label", `A shape under ${SIDE / P} by ${SIDE / P} patches, moved ${dx} pixels to the right and ${dy} down. Arrow keys move it.`);
      titles[0].textContent = `Stride 1, each pixel: error ${way[0].error.toFixed(2)}`;
      titles[1].textContent = `Stride ${P}, each patch: error ${way[1].error.toFixed(2)}`;
      way.forEach(({now, left, error}, i) => {
        const name = i ? `Stride ${P}` : "Stride 1";
        maps[2 * i].paint(now, `${name}: the answers`);
        maps[2 * i + 1].paint(left, `${name}: what did not move along, ${error === 0 ? "nothing" : `error ${error.toFixed(2)}`}`);
      });
      drawChart(P);
      why.textContent = reason(P);
      across.set(dx);
      down.set(dy);
      say(`Moved ${dx} to the right, ${dy} down. Error at stride 1: ${way[0].error.toFixed(2)}; at stride ${P}: ${way[1].error.toFixed(2)}. ${why.textContent}`);
    }

    const pixels = (v) => `${v} px`.replace("-", "−");
    const across = slider({label: "Right", min: -FAR, max: FAR, value: 0, words: pixels, changed: (v) => { dx = v; show(); }});
    const down = slider({label: "Down", min: -FAR, max: FAR, value: 0, words: pixels, changed: (v) => { dy = v; show(); }});
    const which = choice({legend: "Patches:", names: PATCHES.map((P) => `${P} x ${P} pixels`), changed: (i) => { size = i; show(); }});

    board.addEventListener("keydown", (event) => {
      const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      [dx, dy] = [clamp(dx + by[0]), clamp(dy + by[1])];
      show();
    });
    let held = null; // where the pointer went down, and the move then
    handle.addEventListener("pointerdown", () => { held = null; board.focus(); });
    drag(board, handle, (px, py) => {
      held ||= {px, py, dx, dy};
      [dx, dy] = [clamp(held.dx + Math.round((px - held.px) / CELL)), clamp(held.dy + Math.round((py - held.py) / CELL))];
      show();
    });

    stage.append(
      make("div", {class: "moving-controls"}, across.row, down.row, which.row),
      make("div", {class: "moving-row"},
        panel("The image; lines cut it into patches", board),
        make("div", {class: "moving-panel"}, pair(0), pair(1)),
        panel("Error by move: circles each pixel, squares each patch", chart),
        panel("Why", why, make("p", {class: "moving-note"}, "The same kernel both times: the right half of its square minus the left half. Red is above 0, blue below. “Left over” is the answer minus the old answer, moved along; its length, relative to the answer's, is the error of figure 1.9. At stride 1 it is 0 at every move."))),
      said);
    said.classList.add("moving-hidden"); // the same words stand above it
    show();
  }

  if (typeof module === "object") module.exports = {SIDE, FAR, START, PATCHES, image, kernel, answer, compare};
  else moving.figures.slide = begin;
})();
