// Chapter 4: swap patches of an image, with positions and without, and read the pocket ViT's answer.
// vit.js computes; weights.js and images.js, beside it, hold its numbers.
(function () {
  "use strict";

  // The same network with nothing added to tell the positions apart.
  const blind = (model) => ({...model, w: {...model.w, pos_embed: new Float32Array(model.w.pos_embed.length)}});

  // The image whose patch p is patch order[p] of `pixels`.
  function arranged(pixels, order, {img_size: S, patch_size: P}) {
    const G = S / P, out = new Float32Array(S * S);
    order.forEach((from, to) => {
      for (let i = 0; i < P * P; i++) {
        const y = Math.floor(i / P), x = i % P;
        const at = (p) => (P * Math.floor(p / G) + y) * S + P * (p % G) + x;
        out[at(to)] = pixels[at(from)];
      }
    });
    return out;
  }

  // A shuffle that comes out the same for the same seed: Fisher and Yates, with a small generator of numbers.
  function shuffled(count, seed) {
    const order = Array.from({length: count}, (_, i) => i);
    let state = seed;
    for (let i = count - 1; i > 0; i--) {
      state = (1664525 * state + 1013904223) % 2 ** 32;
      const j = Math.floor((state / 2 ** 32) * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  function begin(stage, {make, panel, percent, tick, button, speaker, grid}) {
    const model = pocketViT.load(pocketWeights), {config} = model, nets = {true: model, false: blind(model)};
    const S = config.img_size, P = config.patch_size, G = S / P, N = G * G;
    const all = pocketViT.bytes(pocketImages.pixels), classes = pocketWeights.classes;
    let image = 4, positions = true, order, held = null, seed = 0, pixels;

    const shares = (logits) => Array.from(pocketViT.softmax(Float64Array.from(logits)));
    const nameOf = (p) => `row ${Math.floor(p / G) + 1}, column ${(p % G) + 1}`;
    const inOrder = () => Array.from({length: N}, (_, i) => i);

    function pick() {
      pixels = Float32Array.from(all.subarray(image * S * S, (image + 1) * S * S), (v) => v / 255);
      order = inOrder();
      held = null;
    }

    // --- the patches: pick two, or drag one onto another ---

    const board = grid({rows: G, columns: G, name: "Patches: pick two to swap them", chosen: 24, changed: () => {}});
    function swap(a, b) {
      if (a !== b) [order[a], order[b]] = [order[b], order[a]];
      held = null;
      show();
    }
    const take = (p) => {
      if (held === null) { held = p; show(); } else swap(held, p);
    };
    const under = (event) => board.cells.indexOf(document.elementFromPoint(event.clientX, event.clientY)?.closest("[role=gridcell]"));
    let from = null; // where a pointer went down
    board.row.addEventListener("pointerdown", (event) => {
      if (event.button === 0) from = under(event);
      if (event.target.releasePointerCapture) try { event.target.releasePointerCapture(event.pointerId); } catch (error) { /* none */ }
    });
    board.row.addEventListener("pointerup", (event) => {
      const to = under(event);
      if (from !== null && from >= 0 && to >= 0) {
        if (from === to) take(to);
        else swap(from, to);
      }
      from = null;
    });
    board.row.addEventListener("pointercancel", () => { from = null; });
    board.cells.forEach((cell, p) => cell.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      take(p);
    }));

    // --- the answer ---

    const bars = make("ul", {class: "moving-bars"}), {row: said, say} = speaker(), told = make("p", {class: "moving-sum"});
    const rows = classes.map((name) => {
      const bar = make("span"), ghost = make("i"), share = make("span", {class: "moving-number"});
      bars.append(make("li", {}, make("span", {}, name), make("span", {class: "moving-bar", "aria-hidden": "true"}, bar, ghost), share));
      return {bar, ghost, share};
    });

    function paint() {
      board.cells.forEach((cell, p) => {
        const node = make("canvas", {width: P, height: P, "aria-hidden": "true"}), context = node.getContext("2d");
        const picture = context.createImageData(P, P), q = order[p];
        for (let i = 0; i < P * P; i++) {
          const v = 255 * pixels[(P * Math.floor(q / G) + Math.floor(i / P)) * S + P * (q % G) + (i % P)];
          picture.data.set([v, v, v, 255], 4 * i);
        }
        context.putImageData(picture, 0, 0);
        cell.replaceChildren(node);
        cell.classList.toggle("moving-chosen", p === held);
        const away = q === p ? "in its place" : `from ${nameOf(q)}`;
        cell.setAttribute("aria-label", `${nameOf(p)}: patch ${away}${p === held ? ", picked" : ""}`);
      });
    }

    function show() {
      const net = nets[positions];
      paint();
      const before = pocketViT.forward(net, pixels).logits, after = pocketViT.forward(net, arranged(pixels, order, config)).logits;
      const was = shares(before), is = shares(after);
      is.forEach((share, k) => {
        rows[k].bar.style.width = 100 * share + "%";
        rows[k].ghost.style.left = 100 * was[k] + "%";
        rows[k].share.textContent = percent(share);
      });
      const moved = Math.max(...after.map((v, k) => Math.abs(v - before[k]))), first = is.indexOf(Math.max(...is));
      const out = order.filter((q, p) => q !== p).length, truth = classes[pocketImages.labels[image]];
      const size = moved === 0 ? "not at all" : moved < 1e-3 ? `by ${moved.toExponential(0)}, which is rounding` : `by up to ${moved.toFixed(2)}`;
      told.textContent = `${positions ? "With" : "Without"} positions, ${out} of ${N} patches moved: first answer ${classes[first]}, ${percent(is[first])} (label: ${truth}). ` +
        (out ? `The logits moved ${size}.` : "");
      say((held === null ? "" : `Patch in ${nameOf(held)} picked. `) + told.textContent);
    }

    const use = tick({label: "Positions", checked: true, changed: (on) => { positions = on; show(); }});
    stage.append(
      make("div", {class: "moving-controls"}, use.row, make("div", {class: "moving-buttons"},
        button("Shuffle all", () => { order = shuffled(N, ++seed); held = null; show(); }),
        button("Put back", () => { order = inOrder(); held = null; show(); }),
        button("Another image", () => { image = (image + 5) % pocketImages.labels.length; pick(); show(); }))),
      make("div", {class: "moving-row"},
        panel("The patches", board.row),
        panel("The answer; a line marks the intact image's", bars, told)),
      make("p", {class: "moving-note"}, "The pocket ViT was trained with positions. Without them its answers are often wrong; what counts here is that moving patches cannot change them."),
      said);
    board.row.classList.add("moving-apart", "moving-board");
    said.classList.add("moving-hidden"); // the same words stand above it
    pick();
    show();
  }

  if (typeof module === "object") module.exports = {blind, arranged, shuffled};
  else moving.figures.shuffle = begin;
})();
