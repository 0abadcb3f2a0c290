// The page "A ViT in your browser": pick or draw a picture, read the answer, ask a patch where its heads attend.
// vit.js computes; weights.js and images.js hold numbers; the page's Markdown holds the frame that is filled here. The
// home page has less of that frame, and names the images to pick from: what is not there is left out.
(function () {
  "use strict";

  const place = (id) => document.getElementById("pocket-" + id);
  const stage = place("stage"), missing = place("missing");
  if (!stage || !missing) return;
  if (typeof pocketViT === "undefined" || typeof pocketWeights === "undefined" || typeof pocketImages === "undefined") {
    missing.textContent = "A file of this page did not load. Load the page again.";
    return;
  }

  const {classes, config} = pocketWeights;
  const S = config.img_size, G = S / config.patch_size, T = G * G + 1; // pixels, patches a side, tokens
  const CELL = 20; // of a small map, in its canvas's pixels
  const PENS = {light: 1, grey: 0.5, dark: 0};
  // viridis, dark to bright
  const COLOURS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
  const percent = (share) => (share < 0.0005 ? "< 0.1" : (100 * share).toFixed(1)) + " %";

  let model = null;
  const pixels = new Float32Array(S * S); // 0 (black) to 1
  let truth = null; // the label of a picked image
  let touched = false; // drawn on since it was picked
  let attn = null;
  let chosen = 0, hovered = null; // tokens that ask: 0 is the class token
  let due = 0, saying = 0;

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // --- pictures and colours ---

  function paint(canvas, values) {
    const context = canvas.getContext("2d"), image = context.createImageData(S, S);
    values.forEach((v, i) => image.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
    context.putImageData(image, 0, 0);
  }

  function colour(share) {
    const at = Math.max(0, Math.min(0.9999, share)) * (COLOURS.length - 1), low = Math.floor(at);
    const part = (i, c) => parseInt(COLOURS[i].slice(2 * c, 2 * c + 2), 16);
    const mixed = [0, 1, 2].map((c) => Math.round(part(low, c) + (at - low) * (part(low + 1, c) - part(low, c))));
    return `rgb(${mixed})`;
  }

  function nameOf(token) {
    return token ? `row ${Math.ceil(token / G)}, column ${((token - 1) % G) + 1}` : "the class token";
  }

  // --- the answer ---

  function bars() {
    classes.forEach((name) => {
      const bar = make("span", {class: "pocket-bar", "aria-hidden": "true"}, make("span", {}));
      place("bars").append(make("li", {}, make("span", {class: "pocket-name"}, name), bar, make("span", {class: "pocket-share"})));
    });
  }

  function answer(logits, milliseconds) {
    const shares = Array.from(pocketViT.softmax(Float64Array.from(logits)));
    const first = shares.indexOf(Math.max(...shares));
    [...place("bars").children].forEach((row, k) => {
      row.classList.toggle("pocket-first", k === first);
      row.querySelector(".pocket-bar > span").style.width = 100 * shares[k] + "%";
      row.querySelector(".pocket-share").textContent = percent(shares[k]);
    });
    if (place("time")) place("time").textContent = `Computed here in ${Math.round(milliseconds)} ms.`;
    let words = `First answer: ${classes[first]}, ${percent(shares[first]).replace(" ", "\u00a0")}. `;
    if (truth === null) words += pixels.some((v) => v > 0) ? "Your own picture has no label." : "The picture is empty.";
    else if (touched) words += `You changed the picture; its label was ${classes[truth]}.`;
    else words += truth === first ? "The label says the same." : `The label says ${classes[truth]}.`;
    // While someone draws, a screen reader should hear the last answer and not forty.
    clearTimeout(saying);
    saying = setTimeout(() => {
      place("answer").textContent = words;
      place("answer").setAttribute("aria-busy", "false");
    }, 250);
  }

  // --- the maps ---

  function mapsTable() {
    const h = config.num_heads, head = make("tr", {}, make("td", {}));
    for (let i = 1; i <= h; i++) head.append(make("th", {scope: "col"}, `Head ${i}`));
    place("maps").append(make("thead", {}, head));
    const body = make("tbody", {});
    for (let layer = 1; layer <= config.depth; layer++) {
      const row = make("tr", {}, make("th", {scope: "row"}, `Layer ${layer}`));
      for (let i = 0; i < h; i++) {
        const size = {width: G * CELL, height: (G + 1) * CELL + CELL / 4, role: "img"};
        row.append(make("td", {}, make("canvas", size), make("span", {class: "pocket-most"})));
      }
      body.append(row);
    }
    place("maps").append(body);
  }

  // A patch's corner in a map; the class token has a square of its own above the grid.
  function corner(token) {
    if (!token) return [0, 0];
    return [((token - 1) % G) * CELL, Math.ceil(token / G) * CELL + CELL / 4];
  }

  function drawMap(canvas, weights, asks) {
    const context = canvas.getContext("2d"), most = Math.max(...weights);
    context.clearRect(0, 0, canvas.width, canvas.height);
    weights.forEach((weight, token) => {
      context.fillStyle = colour(weight / most);
      context.fillRect(...corner(token), CELL, CELL);
    });
    const [x, y] = corner(asks);
    context.lineWidth = 2;
    for (const [inset, style] of [[1, "#fff"], [3, "#000"]]) {
      context.strokeStyle = style;
      context.strokeRect(x + inset, y + inset, CELL - 2 * inset, CELL - 2 * inset);
    }
  }

  function showMaps() {
    if (!place("maps")) return;
    const asks = hovered === null ? chosen : hovered;
    place("from").textContent = nameOf(asks);
    place("class").setAttribute("aria-pressed", String(asks === 0));
    [...place("grid").querySelectorAll("[role=gridcell]")].forEach((cell, i) => {
      cell.classList.toggle("pocket-asks", asks === i + 1);
      cell.setAttribute("aria-selected", String(chosen === i + 1));
      cell.tabIndex = i + 1 === (chosen || 1) ? 0 : -1;
    });
    if (!attn) return;
    const cells = [...place("maps").querySelectorAll("tbody td")];
    cells.forEach((cell, i) => {
      const layer = Math.floor(i / config.num_heads), head = i % config.num_heads;
      const weights = attn[layer][head].subarray(asks * T, (asks + 1) * T);
      const most = weights.indexOf(Math.max(...weights));
      const canvas = cell.querySelector("canvas");
      drawMap(canvas, weights, asks);
      cell.querySelector(".pocket-most").textContent = percent(weights[most]);
      let words = `Layer ${layer + 1}, head ${head + 1}, from ${nameOf(asks)}: most to ${nameOf(most)}, ${percent(weights[most])}`;
      if (most) words += `; to the class token, ${percent(weights[0])}`;
      canvas.setAttribute("aria-label", words);
    });
  }

  // --- compute ---

  function run() {
    due = 0;
    const begun = performance.now();
    const result = pocketViT.forward(model, pixels);
    const milliseconds = performance.now() - begun;
    attn = result.attn;
    answer(result.logits, milliseconds);
    showMaps();
  }

  // Show the picture at once; compute when the browser is free, once for all that happened until then.
  function changed() {
    paint(place("draw"), pixels);
    if (place("seen")) paint(place("seen"), pixels);
    place("answer").setAttribute("aria-busy", "true");
    if (!due) due = setTimeout(run);
  }

  // --- picking ---

  function picks() {
    const all = pocketViT.bytes(pocketImages.pixels), {labels} = pocketImages;
    const wanted = stage.dataset.picks ? stage.dataset.picks.split(" ").map(Number) : [...labels.keys()];
    wanted.forEach((i) => {
      const k = labels[i], number = labels.slice(0, i + 1).filter((label) => label === k).length;
      const image = Float32Array.from(all.subarray(i * S * S, (i + 1) * S * S), (v) => v / 255);
      const radio = make("input", {type: "radio", name: "pocket-pick", "aria-label": `${classes[k]} ${number}`});
      const canvas = make("canvas", {width: S, height: S, "aria-hidden": "true"});
      paint(canvas, image);
      const pick = () => {
        pixels.set(image);
        truth = k;
        touched = false;
        changed();
      };
      radio.addEventListener("change", pick);
      radio.addEventListener("click", () => touched && pick()); // the same one again: as it was
      place("picks").append(make("label", {}, radio, canvas));
    });
  }

  // --- drawing ---

  function pen() {
    const shade = stage.querySelector("input[name=pocket-pen]:checked")?.value || "light";
    return {value: PENS[shade], radius: Number(place("width")?.value || 3) / 2};
  }

  // Mix the pen's value into the pixels around (x, y), by how far the pen covers them.
  function dab(x, y) {
    const {value, radius} = pen();
    for (let i = 0; i < S * S; i++) {
      const away = Math.hypot((i % S) + 0.5 - x, Math.floor(i / S) + 0.5 - y);
      const cover = Math.max(0, Math.min(1, radius + 0.5 - away));
      pixels[i] += cover * (value - pixels[i]);
    }
  }

  function stroke(from, to) {
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let i = 1; i <= steps; i++) {
      const part = i / steps;
      dab(from[0] + part * (to[0] - from[0]), from[1] + part * (to[1] - from[1]));
    }
    touched = true;
    changed();
  }

  function drawing() {
    const canvas = place("draw"), cursor = place("pen");
    let last = null, at = [S / 2, S / 2];
    const where = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * S, ((event.clientY - box.top) / box.height) * S];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
      last = where(event);
      stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = where(event);
      stroke(last, next);
      last = next;
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      canvas.addEventListener(end, () => (last = null));

    const showPen = () => {
      cursor.style.left = (100 * at[0]) / S + "%";
      cursor.style.top = (100 * at[1]) / S + "%";
    };
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const inside = (v) => Math.max(0, Math.min(S, v));
      if (event.key in moves) {
        const next = at.map((v, i) => inside(v + moves[event.key][i]));
        if (event.shiftKey) stroke(at, next);
        at = next;
        place("where").textContent = `Pen at row ${at[1]}, column ${at[0]}, of ${S}.`;
      } else if (event.key === " ") stroke(at, at);
      else return;
      showPen();
      event.preventDefault();
    });
    showPen();

    place("clear").addEventListener("click", () => {
      pixels.fill(0);
      truth = null;
      touched = false;
      stage.querySelectorAll("input[name=pocket-pick]").forEach((radio) => (radio.checked = false));
      changed();
    });
  }

  // --- asking ---

  function grid() {
    const board = place("grid"), cells = [];
    for (let y = 1; y <= G; y++) {
      const row = make("div", {role: "row"});
      for (let x = 1; x <= G; x++) {
        const cell = make("div", {role: "gridcell", tabindex: "-1", "aria-label": `Patch in row ${y}, column ${x}`});
        const token = cells.push(cell);
        cell.addEventListener("click", () => choose(token));
        cell.addEventListener("focus", () => choose(token));
        row.append(cell);
      }
      board.append(row);
    }
    // By its movement, not by its entering: a page that scrolls under a pointer at rest must not ask.
    board.addEventListener("pointermove", (event) => {
      const at = cells.indexOf(event.target);
      if (event.pointerType !== "touch" && at >= 0 && hovered !== at + 1) hover(at + 1);
    });
    board.addEventListener("pointerleave", () => hovered && hover(null));
    place("class").addEventListener("click", () => choose(0));

    function choose(token) {
      chosen = token;
      hovered = null;
      showMaps();
    }
    function hover(token) {
      hovered = token;
      showMaps();
    }
    board.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const now = cells.indexOf(document.activeElement), x = now % G;
      const next = {
        ArrowLeft: x ? now - 1 : now,
        ArrowRight: x < G - 1 ? now + 1 : now,
        ArrowUp: now >= G ? now - G : now,
        ArrowDown: now < G * (G - 1) ? now + G : now,
        Home: now - x,
        End: now - x + G - 1,
      }[event.key];
      if (now < 0 || next === undefined) return;
      cells[next].focus();
      event.preventDefault();
    });
  }

  // --- begin ---

  bars();
  picks();
  drawing();
  if (place("maps")) {
    mapsTable();
    grid();
  }
  missing.remove();
  stage.hidden = false;
  model = pocketViT.load(pocketWeights);
  stage.querySelector("input[name=pocket-pick]").click();
})();
