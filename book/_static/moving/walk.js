// Chapter 5: one image on its way through the pocket ViT, step by step, beside a copy of which one patch is changed.
// vit.js computes; weights.js and images.js, beside it, hold its numbers.
(function () {
  "use strict";

  // The steps by name; `at` says which of vit.js's `steps` (the tokens at some point) a step ends with.
  function stepsOf({depth}) {
    const list = [{kind: "image"}, {kind: "patches"}, {kind: "tokens", at: 0}];
    for (let layer = 0; layer < depth; layer++) {
      list.push({kind: "attention", layer, at: 2 * layer + 1}, {kind: "mlp", layer, at: 2 * layer + 2});
    }
    return [...list, {kind: "logits", at: 2 * depth}];
  }

  // The same image with one patch inverted; patch counts from 0, row by row.
  function inverted(pixels, patch, {img_size: S, patch_size: P}) {
    const top = P * Math.floor(patch / (S / P)), left = P * (patch % (S / P)), copy = Float32Array.from(pixels);
    for (let y = top; y < top + P; y++) for (let x = left; x < left + P; x++) copy[y * S + x] = 1 - copy[y * S + x];
    return copy;
  }

  // How far each token of `other` is from the same of `tokens`, relative to its length: T numbers.
  function apart(tokens, other, D) {
    return Array.from({length: tokens.length / D}, (_, t) => {
      let gap = 0, size = 0;
      for (let i = t * D; i < (t + 1) * D; i++) {
        gap += (tokens[i] - other[i]) ** 2;
        size += tokens[i] ** 2;
      }
      return Math.sqrt(gap / size);
    });
  }

  // What is said of a step: its title, its shapes, and what happens in it. mix = false: attention is left out.
  function words(step, mix, {img_size: S, patch_size: P, embed_dim: D, depth, num_heads: h, num_classes: K, mlp_ratio}) {
    const N = (S / P) ** 2, T = N + 1, tokens = `tokens (B, T, D) = (1, ${T}, ${D})`;
    return {
      image: ["The image", `images (B, C, H, W) = (1, 1, ${S}, ${S})`, "Grey values, one channel. Nothing has been computed yet."],
      patches: ["Patches", `patches (B, N, C·P·P) = (1, ${N}, ${P * P})`, `Cut into ${N} squares of ${P} x ${P} pixels. Each becomes a row of ${P * P} numbers.`],
      tokens: ["Tokens", tokens, `One linear layer makes ${D} numbers of each patch. The class token joins them as token 0, and each token gets the vector of its position added. No token knows of another.`],
      attention: [`Block ${step.layer + 1} of ${depth}: attention`, `attn (B, h, T, T) = (1, ${h}, ${T}, ${T}); ${tokens}`, mix
        ? "Each token takes from all tokens, by the weights of its row of each head's map, and adds that to itself. No other kind of step mixes tokens."
        : "Left out: the maps are computed, but nothing is taken. Each token stays as it was."],
      mlp: [`Block ${step.layer + 1} of ${depth}: MLP`, `hidden (1, ${T}, ${mlp_ratio * D}); ${tokens}`, "The same small network works on each token by itself, and its output is added. No token learns anything of another."],
      logits: ["Logits", `logits (B, K) = (1, ${K})`, "The class token alone is normalised and goes through the last linear layer. (A ViT without a class token takes the mean of its tokens here.) The patches count only through what attention brought to the class token" + (mix ? "." : ": without attention, nothing.")],
    }[step.kind];
  }

  function begin(stage, {make, panel, viridis, percent, slider, tick, button, speaker, grid}) {
    const model = pocketViT.load(pocketWeights), {config} = model, steps = stepsOf(config);
    const S = config.img_size, P = config.patch_size, G = S / P, N = G * G, D = config.embed_dim;
    const all = pocketViT.bytes(pocketImages.pixels);
    let step = 0, patch = 24, asksClass = false, mix = true, image = 0, pixels, run, other;

    const nameOf = (token) => (token ? `row ${Math.ceil(token / G)}, column ${((token - 1) % G) + 1}` : "the class token");
    const canvas = (width, height) => make("canvas", {width, height, role: "img"});

    function compute() {
      pixels = Float32Array.from(all.subarray(image * S * S, (image + 1) * S * S), (v) => v / 255);
      run = pocketViT.forward(model, pixels, mix);
      change();
    }
    function change() {
      other = pocketViT.forward(model, inverted(pixels, patch, config), mix);
    }

    // --- pictures ---

    function greys(node, values, side) {
      const context = node.getContext("2d"), picture = context.createImageData(side, side);
      values.forEach((v, i) => picture.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
      context.putImageData(picture, 0, 0);
    }
    const pixelsOf = (source, p) => Array.from({length: P * P}, (_, i) =>
      source[(P * Math.floor(p / G) + Math.floor(i / P)) * S + P * (p % G) + (i % P)]);

    // T numbers between 0 and 1 as squares: the class token above the patches. null: left empty.
    function squares(node, shares, marked) {
      const cell = 14, context = node.getContext("2d");
      const corner = (t) => (t ? [((t - 1) % G) * cell, Math.ceil(t / G) * cell + 4] : [0, 0]);
      node.width = G * cell;
      node.height = (G + 1) * cell + 4;
      shares.forEach((share, t) => {
        const [x, y] = corner(t);
        context.fillStyle = share === null ? "#ffffff" : viridis(share);
        context.fillRect(x, y, cell, cell);
        if (share === null) {
          context.strokeStyle = "#999999";
          context.strokeRect(x + 0.5, y + 0.5, cell - 1, cell - 1);
        }
      });
      const [x, y] = corner(marked);
      for (const [inset, style] of [[1, "#ffffff"], [2.5, "#d55e00"]]) {
        context.strokeStyle = style;
        context.lineWidth = 2;
        context.strokeRect(x + inset, y + inset, cell - 2 * inset, cell - 2 * inset);
      }
    }

    // --- what a step shows ---

    const figure = make("div", {class: "moving-walk"});

    function showPatch() {
      const node = canvas(P, P);
      greys(node, pixelsOf(pixels, patch), P);
      const list = pixelsOf(pixels, patch).map((v) => Math.round(255 * v)).join(", ");
      node.setAttribute("aria-label", `The patch in ${nameOf(patch + 1)}, enlarged`);
      figure.replaceChildren(node, make("p", {}, `The chosen patch as a row: ${list}`));
    }

    function showImage() {
      const node = canvas(S, S);
      greys(node, pixels, S);
      node.setAttribute("aria-label", "The image");
      figure.replaceChildren(node);
    }

    // The tokens as they are: a row each, a column each number.
    function showTokens(at) {
      const tokens = run.steps[at], node = canvas(D * 4, (N + 1) * 4), context = node.getContext("2d");
      const most = Math.max(...tokens.map(Math.abs)) / 2;
      tokens.forEach((v, i) => {
        const t = Math.floor(i / D), share = Math.min(1, Math.abs(v) / most), pale = Math.round(255 * (1 - share));
        context.fillStyle = v < 0 ? `rgb(${pale}, ${pale}, 255)` : `rgb(255, ${pale}, ${pale})`;
        context.fillRect(4 * (i % D), 4 * t, 4, 4);
      });
      context.strokeStyle = "#000000";
      context.strokeRect(0.5, 4 * (asksClass ? 0 : patch + 1) - 0.5, 4 * D - 1, 5);
      node.setAttribute("aria-label", `${N + 1} tokens, one a row, of ${D} numbers each; red is positive, blue negative`);
      figure.replaceChildren(node, make("p", {}, `One row per token, the class token on top; ${D} numbers each, red above 0, blue below. The line frames the chosen token.`));
    }

    function showMaps(layer) {
      const T = N + 1, asks = asksClass ? 0 : patch + 1;
      const maps = run.attn[layer].map((attn, head) => {
        const row = attn.subarray(asks * T, (asks + 1) * T), most = Math.max(...row), node = canvas(1, 1);
        squares(node, Array.from(row, (w) => w / most), asks);
        node.setAttribute("aria-label", `Head ${head + 1}: from ${nameOf(asks)}, most to ${nameOf(row.indexOf(most))}, ${percent(most)}`);
        return make("div", {}, make("span", {}, `head ${head + 1}`), node, make("span", {}, `up to ${percent(most)}`));
      });
      figure.replaceChildren(make("div", {class: "moving-maps"}, ...maps),
        make("p", {}, `Where ${nameOf(asks)} takes from: one row of each head's map, dark none, yellow most.`));
    }

    function showLogits() {
      const shares = (logits) => Array.from(pocketViT.softmax(Float64Array.from(logits)));
      const list = make("ul", {class: "moving-bars"}), before = shares(run.logits), after = shares(other.logits);
      pocketWeights.classes.forEach((name, k) => list.append(make("li", {},
        make("span", {}, name), make("span", {class: "moving-bar", "aria-hidden": "true"}, make("span", {style: `width: ${100 * before[k]}%`})),
        make("span", {class: "moving-number"}, percent(before[k])))));
      const moved = Math.max(...before.map((share, k) => Math.abs(share - after[k])));
      const truth = pocketWeights.classes[pocketImages.labels[image]];
      figure.replaceChildren(list, make("p", {}, `The softmax of the logits; the label says ${truth}. With the patch inverted, a probability moves by up to ${(100 * moved).toFixed(1)} points.`));
    }

    const SHOW = {
      image: showImage, patches: showPatch, tokens: ({at}) => showTokens(at),
      attention: ({layer}) => showMaps(layer), mlp: ({at}) => showTokens(at), logits: showLogits,
    };

    // --- how far the change has come ---

    const reach = canvas(1, 1), counted = make("p", {class: "moving-sum"}), {row: said, say} = speaker();
    function showReach(now) {
      let far = Array.from({length: N + 1}, (_, t) => (t === patch + 1 ? 1 : 0)); // before there are tokens
      if (now.at !== undefined) far = apart(run.steps[now.at], other.steps[now.at], D);
      const count = far.filter((gap) => gap > 0).length;
      // on a scale of powers of ten: 0.01 % dark, 100 % bright
      squares(reach, far.map((gap) => (gap > 0 ? Math.max(0, Math.min(1, 1 + Math.log10(gap) / 4)) : null)), patch + 1);
      counted.textContent = `${count} of ${N + 1} tokens ${count === 1 ? "has" : "have"} changed. White: not at all; dark: by 0.01 %; yellow: by 100 %.`;
      reach.setAttribute("aria-label", `What the inverted patch has reached: ${counted.textContent}`);
      return `${count} of ${N + 1} tokens changed.`;
    }

    // --- controls ---

    const title = make("p", {class: "moving-title"}), shape = make("p", {class: "moving-shape"}), what = make("p", {class: "moving-note"});
    const patches = grid({rows: G, columns: G, name: "Patches", chosen: patch, changed: (i) => {
      patch = i;
      asksClass = false;
      change();
      show();
    }});
    const token = button("Class token", () => { asksClass = !asksClass; show(); });
    const walk = slider({
      label: "Step", min: 0, max: steps.length - 1, value: 0, words: (v) => `${v + 1} of ${steps.length}`,
      changed: (v) => { step = v; show(); },
    });
    const go = (by) => {
      step = Math.max(0, Math.min(steps.length - 1, step + by));
      walk.set(step);
      show();
    };
    const back = button("Back", () => go(-1)), next = button("Next", () => go(1));
    const another = button("Another image", () => { image = (image + 5) % pocketImages.labels.length; compute(); paint(); show(); });

    const attends = tick({label: "Attention", checked: true, changed: (on) => { mix = on; compute(); show(); }});

    function paint() {
      patches.cells.forEach((cell, p) => {
        const node = make("canvas", {width: P, height: P, "aria-hidden": "true"});
        greys(node, pixelsOf(pixels, p), P);
        cell.replaceChildren(node);
        cell.setAttribute("aria-label", `patch in ${nameOf(p + 1)}`);
      });
    }

    function show() {
      const now = steps[step], [head, sizes, about] = words(now, mix, config);
      title.textContent = `${step + 1}. ${head}`;
      shape.textContent = sizes;
      what.textContent = about;
      token.setAttribute("aria-pressed", String(asksClass));
      patches.row.classList.toggle("moving-apart", step > 0);
      patches.cells.forEach((cell, p) => cell.classList.toggle("moving-chosen", p === patch));
      back.setAttribute("aria-disabled", String(step === 0));
      next.setAttribute("aria-disabled", String(step === steps.length - 1));
      SHOW[now.kind](now);
      say(`${head}. ${sizes}. ${showReach(now)}`);
    }

    const part = (title, ...parts) => make("div", {}, make("p", {class: "moving-title"}, title), ...parts);
    const choose = make("div", {class: "moving-panel"}, make("div", {class: "moving-pair"},
      part("Choose a token", patches.row, make("div", {class: "moving-buttons"}, token)),
      part("Changed so far", reach)), counted);
    stage.append(
      make("div", {class: "moving-controls"}, walk.row, make("div", {class: "moving-buttons"}, back, next, another), attends.row),
      title, shape, what,
      make("div", {class: "moving-row"},
        choose,
        panel("What there is at this step", figure)),
      said);
    said.classList.add("moving-hidden"); // the same words stand above it
    compute();
    paint();
    show();
  }

  if (typeof module === "object") module.exports = {stepsOf, inverted, apart, words};
  else moving.figures.walk = begin;
})();
