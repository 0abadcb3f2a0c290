// Chapter 10, "Deletion": choose a map, bet, and cover the image's squares in the map's order. Does the answer fall?
// Orders and curves come with the frame, made at build by the chapter's own functions (see book/_ext/moving.py).
(function () {
  "use strict";

  // After how many squares is the probability below half of what it was at first? null: never.
  function halved(curve) {
    const found = curve.findIndex((value) => value < curve[0] / 2);
    return found < 0 ? null : found;
  }

  const area = (curve) => curve.reduce((sum, value) => sum + value, 0) / curve.length;

  // The image, 0 to 1 row by row, with the first `count` squares of an order covered.
  function covered(pixels, order, count, fill) {
    const S = Math.sqrt(pixels.length), G = Math.sqrt(order.length), side = S / G, out = Float64Array.from(pixels);
    for (const square of order.slice(0, count)) {
      const top = side * Math.floor(square / G), left = side * (square % G);
      for (let y = top; y < top + side; y++) out.fill(fill, y * S + left, y * S + left + side);
    }
    return out;
  }

  const pixelsOf = (text) => Float64Array.from(atob(text), (sign) => sign.charCodeAt(0) / 255);

  function begin(stage, {COLOURS, make, draw, panel, percent, picture, viridis, slider, choice, button, speaker}, place) {
    const {maps, fill, images, mean, areas, many} = JSON.parse(place.dataset.runs), N = images[0].orders[0].length, G = Math.sqrt(N);
    const {row: said, say} = speaker(), told = make("p", {class: "moving-sum"}), list = make("ul", {class: "moving-note"});
    const tried = images.map(() => maps.map(() => ({far: 0, bet: null}))); // how far each map was slid, and the bet
    let image = 0, map = 0, count = 0, bet = 10;

    // --- the image and the map ---
    const photo = make("canvas", {width: 280, height: 280, role: "img"}), ranks = make("canvas", {width: 280, height: 280, role: "img"});
    function drawImage() {
      const {pixels, orders, answer} = images[image], order = orders[map], whole = pixelsOf(pixels), S = Math.sqrt(whole.length);
      const context = photo.getContext("2d"), cell = 280 / S, square = 280 / G, other = ranks.getContext("2d");
      covered(whole, order, count, fill).forEach((value, i) => {
        context.fillStyle = `rgb(${Array(3).fill(Math.round(255 * value))})`;
        context.fillRect(cell * (i % S), cell * Math.floor(i / S), cell, cell);
      });
      order.forEach((at, rank) => {
        const x = square * (at % G), y = square * Math.floor(at / G);
        other.fillStyle = viridis(1 - rank / (N - 1));
        other.fillRect(x, y, square, square);
        if (rank >= count) return;
        for (const one of [context, other]) {
          one.strokeStyle = COLOURS[5];
          one.lineWidth = 2;
          one.strokeRect(x + 2, y + 2, square - 4, square - 4);
        }
      });
      photo.setAttribute("aria-label", `The image, ${answer}, with ${count} of ${N} squares covered`);
      ranks.setAttribute("aria-label", `The order of the map ${maps[map]}: first row ${Math.floor(order[0] / G) + 1}, column ${(order[0] % G) + 1}`);
    }

    // --- the curve, as far as the reader has slid ---
    const chart = picture(340, 230, "");
    function drawCurve() {
      const x = (n) => 54 + (n / N) * 272, y = (p) => 186 - p * 160, {curves, answer} = images[image];
      const line = (curve, upto, more) => draw("polyline", {points: curve.slice(0, upto + 1).map((p, n) => `${x(n)},${y(p)}`).join(" "), fill: "none", ...more});
      const text = (tx, ty, words, anchor = "middle") => draw("text", {x: tx, y: ty, "text-anchor": anchor}, words);
      chart.replaceChildren();
      for (const p of [0, 0.5, 1]) {
        chart.append(draw("line", {x1: 54, x2: 326, y1: y(p), y2: y(p), class: "moving-line"}), text(46, y(p) + 5, `${100 * p} %`, "end"));
      }
      for (const n of [0, 10, 20, 30, 40, N]) chart.append(text(x(n), 206, String(n)));
      chart.append(text(190, 226, "squares covered"), text(x(bet), 16, "bet"));
      chart.append(draw("line", {x1: x(bet), x2: x(bet), y1: 21, y2: 186, class: "moving-curve", "stroke-dasharray": "5 4"}));
      curves.forEach((curve, m) => { if (m !== map) chart.append(line(curve, tried[image][m].far, {class: "moving-before"})); });
      const {far} = tried[image][map];
      chart.append(line(mean[map], far, {stroke: COLOURS[0], "stroke-width": 2, "stroke-dasharray": "2 4"}));
      chart.append(line(curves[map], far, {stroke: COLOURS[0], "stroke-width": 2.5}));
      chart.append(draw("circle", {cx: x(count), cy: y(curves[map][count]), r: 6, fill: COLOURS[5], class: "moving-edge"}));
      chart.setAttribute("aria-label", `Probability of ${answer} against squares covered in the order of ${maps[map]}, as far as you have slid: ` +
        curves[map].slice(0, far + 1).map((p) => Math.round(100 * p)).join(", ") + " per cent.");
    }

    const short = (value) => value.toFixed(2).replace("-", "−");
    function drawList() {
      const items = maps.map((name, m) => {
        const {far, bet: had} = tried[image][m], curve = images[image].curves[m], half = halved(curve);
        if (!far) return "";
        const when = half !== null && half <= far ? `halved after ${half}, your bet ${had}` : `not halved after ${far}`;
        const {area: all, minus: [gap, low, high]} = areas[m];
        const end = far < N ? "" : `; area ${short(area(curve))}. Over ${many} images ${short(all)}` +
          (name === "chance" ? "" : `, minus chance ${short(gap)} [${short(low)}, ${short(high)}]`);
        return make("li", {}, make("strong", {}, name), `: ${when}${end}.`);
      }).filter(Boolean);
      list.replaceChildren(...(items.length ? items : [make("li", {}, "Nothing yet: bet, then slide.")]));
    }

    function show() {
      const now = tried[image][map], curve = images[image].curves[map], half = halved(curve);
      now.far = Math.max(now.far, count);
      if (half === null || half > now.far) now.bet = bet; // from then on it stands
      const {answer, label} = images[image];
      drawImage();
      drawCurve();
      drawList();
      told.textContent = `${count} of ${N} squares covered: ${answer} ${percent(curve[count])}, at first ${percent(curve[0])} (label: ${label}).` +
        (half !== null && half <= now.far ? ` Halved after ${half} square${half === 1 ? "" : "s"}; your bet was ${now.bet}.` : "") + (count === N ? " Nothing of the image is left." : "");
      say(`Map ${maps[map]}. ${told.textContent}`);
    }

    const guess = slider({label: "Your bet", min: 1, max: N, value: bet, changed: (v) => { bet = v; show(); }});
    const cover = slider({label: "Squares covered", min: 0, max: N, value: 0, changed: (v) => { count = v; show(); }});
    const begun = (what) => { what(); count = 0; cover.set(0); show(); };
    const which = choice({legend: "Map:", names: maps, changed: (i) => begun(() => { map = i; })});
    const another = button("Another image", () => begun(() => { image = (image + 1) % images.length; }));
    const part = (title, node) => make("div", {}, make("span", {}, title), node);
    stage.append(
      make("div", {class: "moving-controls"}, which.row, guess.row, cover.row, make("div", {class: "moving-buttons"}, another)),
      make("div", {class: "moving-row"},
        make("div", {class: "moving-panel"}, make("div", {class: "moving-maps"}, part("the image", photo), part("yellow comes first", ranks)), told),
        panel("The probability of its answer", chart),
        panel("The maps that you tried on this image", list),
        panel("How to read it", make("p", {class: "moving-note"}, `Solid: this image; dotted: the mean over ${many} images, two per class; thin: maps you tried before. Brackets: 95 % interval over the images; below 0 is better than chance. Always the pocket ViT, its squares are its patches, and the cover is the mean grey of its training images.`))),
      said);
    said.classList.add("moving-hidden"); // the same words stand above it
    show();
  }

  if (typeof module === "object") module.exports = {halved, area, covered, pixelsOf};
  else moving.figures.deletion = begin;
})();
