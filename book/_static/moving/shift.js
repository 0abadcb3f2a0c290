// Chapter 12, "The shift joins what the windows cut": slide the shift, pick a token, see which tokens it may see.
(function () {
  "use strict";

  const SIDE = 8, M = 4; // tokens a side of the grid and of a window
  const N = SIDE * SIDE;
  // Light enough for black numbers; a region's number says the same.
  const TINTS = ["#8ec6e8", "#f2c46d", "#7fcfb2", "#e3b5cf", "#f0a27a", "#d9d07a", "#b9a7e0", "#c4c4c4", "#a9d46f"];

  // Where the roll brings the token of the image's square i, and from where a square of the rolled grid came.
  const roll = (i, by) => {
    const move = (place) => (place + by + SIDE) % SIDE;
    return SIDE * move(Math.floor(i / SIDE)) + move(i % SIDE);
  };
  const rolled = (i, shift) => roll(i, -shift), unrolled = (i, shift) => roll(i, shift);

  // Of a square of the rolled grid: its window, and the region in shifted_mask()'s words.
  const windowOf = (i) => (SIDE / M) * Math.floor(i / SIDE / M) + Math.floor((i % SIDE) / M);
  const label = (place, shift) => (place >= SIDE - M) + (place >= SIDE - shift);
  const regionOf = (i, shift) => 3 * label(Math.floor(i / SIDE), shift) + label(i % SIDE, shift);

  // Which tokens of the image may token i see in a block with this shift? N answers.
  function sees(i, shift, masked = true) {
    const own = rolled(i, shift);
    return Array.from({length: N}, (_, j) => {
      const other = rolled(j, shift);
      return windowOf(own) === windowOf(other) && (!masked || regionOf(own, shift) === regionOf(other, shift));
    });
  }

  // The same after a plain block: whatever a token that is seen has itself seen there.
  function reaches(i, shift, masked = true) {
    const now = sees(i, shift, masked);
    return Array.from({length: N}, (_, j) => now.some((seen, k) => seen && sees(k, 0)[j]));
  }

  // The regions of the image numbered as they lie there, row by row from 1: (N,).
  function numbered(shift) {
    const part = (place) => Math.floor((place - shift + M) / M) - (shift === 0 ? 1 : 0); // from 0
    const across = 1 + part(SIDE - 1);
    return Array.from({length: N}, (_, i) => 1 + across * part(Math.floor(i / SIDE)) + part(i % SIDE));
  }

  const nameOf = (i) => `row ${Math.floor(i / SIDE) + 1}, column ${(i % SIDE) + 1}`;

  function begin(stage, {make, panel, slider, tick, choice, speaker, grid}) {
    let shift = 2, chosen = 9, masked = true, blocks = 0;
    const {row: said, say} = speaker();
    const options = {rows: SIDE, columns: SIDE};
    const image = grid({...options, name: "Tokens of the image", chosen, changed: (i) => pick(i)});
    const cut = grid({...options, name: "Tokens after the roll", chosen: rolled(chosen, shift), changed: (i) => pick(unrolled(i, shift))});

    function pick(i) {
      chosen = i;
      show();
    }

    // A line where a window begins, and a broken one where the roll has joined two ends of the image.
    function edges(cell, i, starts, seam) {
      const rowAt = Math.floor(i / SIDE), columnAt = i % SIDE;
      const kind = (place) => (place === seam ? "seam" : place === 0 || place % M === starts ? "window" : "");
      cell.dataset.top = kind(rowAt);
      cell.dataset.left = kind(columnAt);
      cell.dataset.last = (rowAt === SIDE - 1 ? "row " : "") + (columnAt === SIDE - 1 ? "column" : "");
    }

    function show() {
      const seen = (blocks ? reaches : sees)(chosen, shift, masked), regions = numbered(shift);
      const kinds = [...new Set(regions)];
      const paint = (cell, token) => {
        const tint = TINTS[kinds.indexOf(regions[token]) % TINTS.length];
        cell.textContent = regions[token];
        cell.style.background = seen[token] ? tint : `color-mix(in srgb, ${tint} 22%, transparent)`;
        cell.classList.toggle("moving-seen", seen[token]);
        cell.classList.toggle("moving-chosen", token === chosen);
        cell.setAttribute("aria-label", `${nameOf(token)}, region ${regions[token]}, ${seen[token] ? "seen" : "not seen"}`);
      };
      image.cells.forEach((cell, i) => { paint(cell, i); edges(cell, i, shift, -1); });
      cut.cells.forEach((cell, i) => { paint(cell, unrolled(i, shift)); edges(cell, i, 0, shift ? SIDE - shift : -1); });
      image.set(chosen);
      cut.set(rolled(chosen, shift));
      const count = seen.filter(Boolean).length, way = masked ? "with the mask" : "without the mask";
      say(`The token in ${nameOf(chosen)}, shift ${shift}, ${way}: ` + (blocks
        ? `after a plain block and this one it depends on ${count} of ${N} tokens.`
        : `in this block it may see ${count} of the ${M * M} tokens of its window, itself among them.`));
    }

    const slide = slider({label: "Shift", min: 0, max: M - 1, value: shift, changed: (v) => { shift = v; show(); }});
    const mask = tick({label: "Mask", checked: masked, changed: (on) => { masked = on; show(); }});
    const which = choice({
      legend: "Blocks:", names: ["this one", "a plain one, then this one"], changed: (i) => { blocks = i; show(); },
    });
    stage.append(
      make("div", {class: "moving-controls"}, slide.row, mask.row, which.row),
      make("div", {class: "moving-row"},
        panel("The image and its windows", image.row),
        panel("Rolled, as the block cuts it", cut.row)),
      make("p", {class: "moving-note"}, "Thick lines: windows. Broken lines: seams, where the roll has joined two ends of the image."),
      said);
    show();
  }

  if (typeof module === "object") module.exports = {SIDE, M, sees, reaches, numbered};
  else moving.figures.shift = begin;
})();
