// Chapter 6: a peak rate and a schedule, and what the runs that were recorded with them reached.
// The runs come with the frame, from results/ (see book/_ext/moving.py).
(function () {
  "use strict";

  const RATES = [0.0005, 0.001, 0.002, 0.004, 0.008];
  const SCHEDULES = ["warm-up, then cosine", "cosine alone", "warm-up, then constant"];
  const EPOCHS = 11, STEPS = 94 * EPOCHS, WARMUP = 0.1, HELD_OUT = 5000;

  // The rate of step `step` (from 0) of `steps`, as make_schedule() gives it.
  function rateAt(step, steps, schedule, peak) {
    const rising = schedule === "cosine alone" ? 0 : Math.round(WARMUP * steps);
    if (step < rising) return (peak * (step + 1)) / rising;
    if (schedule === "warm-up, then constant") return peak;
    return (peak * (1 + Math.cos((Math.PI * (step - rising)) / Math.max(1, steps - rising)))) / 2;
  }

  // The runs with this rate and schedule: their number, mean, standard deviation (null for a single one),
  // and the error that comes from looking at so few images.
  function recorded(runs, rate, schedule) {
    const found = runs.filter((run) => run.lr === rate && run.schedule === schedule), n = found.length;
    if (!n) return {runs: found, mean: null, std: null, images: null};
    const mean = found.reduce((sum, run) => sum + run.accuracy, 0) / n;
    const squares = found.reduce((sum, run) => sum + (run.accuracy - mean) ** 2, 0);
    return {
      runs: found, mean, std: n > 1 ? Math.sqrt(squares / (n - 1)) : null,
      // half of Wilson's interval of one standard error, as the book's binomial_error()
      images: Math.sqrt((mean * (1 - mean)) / HELD_OUT + 1 / (4 * HELD_OUT ** 2)) / (1 + 1 / HELD_OUT),
    };
  }

  function begin(stage, {COLOURS, draw, make, panel, picture, slider, choice, speaker}, place) {
    const runs = JSON.parse(place.dataset.runs), {row: said, say} = speaker();
    let rate = 2, schedule = 0;
    const tried = new Set();
    const colour = (s) => COLOURS[[0, 2, 5][s]];
    // A mark of its own for each schedule, so that colour is not needed.
    const mark = (s, x, y) => [
      () => draw("circle", {cx: x, cy: y, r: 6, fill: colour(s), class: "moving-edge"}),
      () => draw("rect", {x: x - 5.5, y: y - 5.5, width: 11, height: 11, fill: colour(s), class: "moving-edge"}),
      () => draw("path", {d: `M ${x} ${y - 7} l 7 12 l -14 0 Z`, fill: colour(s), class: "moving-edge"}),
    ][s]();
    const text = (x, y, words, anchor = "middle") => draw("text", {x, y, "text-anchor": anchor}, words);
    const rule = (x1, y1, x2, y2) => draw("line", {x1, y1, x2, y2, class: "moving-line"});

    const curve = picture(340, 220, ""), dots = picture(340, 260, ""), epochs = picture(340, 220, "");

    // The rate against the epoch.
    function drawCurve() {
      const x = (step) => 58 + (step / STEPS) * 270, y = (r) => 180 - (r / 0.008) * 160;
      curve.replaceChildren();
      for (const r of [0, 0.002, 0.004, 0.006, 0.008]) curve.append(rule(58, y(r), 328, y(r)), text(50, y(r) + 5, String(r), "end"));
      for (const e of [0, 5, 11]) curve.append(text(x((e / EPOCHS) * STEPS), 200, String(e)));
      curve.append(text(190, 216, "epoch"));
      const points = Array.from({length: 236}, (_, i) => Math.min(STEPS - 1, Math.round((i * STEPS) / 235)));
      const line = points.map((s) => `${x(s)},${y(rateAt(s, STEPS, SCHEDULES[schedule], RATES[rate]))}`).join(" ");
      curve.append(draw("polyline", {points: line, fill: "none", stroke: colour(schedule), "stroke-width": 3}));
      curve.setAttribute("aria-label", `The learning rate over ${EPOCHS} epochs: ${SCHEDULES[schedule]}, peak ${RATES[rate]}.`);
    }

    // Held-out accuracy against the peak rate. What was not tried yet is a question mark.
    function drawDots() {
      const x = (i, s) => 75 + 56 * i + 14 * (s - 1), y = (a) => 200 - (a - 0.78) * 2500;
      dots.replaceChildren(draw("rect", {x: 75 + 56 * rate - 26, y: 10, width: 52, height: 200, class: "moving-here"}));
      for (const a of [0.78, 0.8, 0.82, 0.84]) dots.append(rule(46, y(a), 336, y(a)), text(40, y(a) + 5, `${Math.round(100 * a)} %`, "end"));
      RATES.forEach((r, i) => {
        dots.append(text(75 + 56 * i, 230, String(r)));
        SCHEDULES.forEach((name, s) => {
          const found = recorded(runs, r, name).runs;
          if (tried.has(`${i} ${s}`)) dots.append(...found.map((run) => mark(s, x(i, s), y(run.accuracy))));
          else if (found.length) dots.append(text(x(i, s), 30, "?"));
        });
      });
      dots.append(text(190, 250, "peak learning rate"));
      dots.setAttribute("aria-label", `Held-out accuracy against the peak rate, for the settings tried so far: ${tried.size}.`);
    }

    // Held-out accuracy after each epoch, where that was recorded.
    function drawEpochs(found) {
      const x = (e) => 46 + (e / EPOCHS) * 284, y = (a) => 180 - (a - 0.4) * 340, withCurve = found.filter((run) => run.byEpoch.length);
      epochs.replaceChildren();
      for (const a of [0.4, 0.5, 0.6, 0.7, 0.8]) epochs.append(rule(46, y(a), 330, y(a)), text(40, y(a) + 5, `${Math.round(100 * a)} %`, "end"));
      for (const e of [1, 6, 11]) epochs.append(text(x(e), 200, String(e)));
      epochs.append(text(190, 216, "epoch"));
      for (const run of withCurve) {
        const line = run.byEpoch.map((a, i) => `${x(i + 1)},${y(a)}`).join(" ");
        epochs.append(draw("polyline", {points: line, fill: "none", stroke: colour(schedule), "stroke-width": 2}));
      }
      if (!withCurve.length) epochs.append(text(188, 100, "not recorded for this setting"));
      epochs.setAttribute("aria-label", withCurve.length
        ? `Held-out accuracy after each epoch, ${withCurve.length} runs.` : "Accuracy after each epoch was not recorded for this setting.");
    }

    function show() {
      const {runs: found, mean, std, images} = recorded(runs, RATES[rate], SCHEDULES[schedule]);
      if (found.length) tried.add(`${rate} ${schedule}`);
      drawCurve();
      drawDots();
      drawEpochs(found);
      const shown = (value) => (100 * value).toFixed(1), setting = `Peak rate ${RATES[rate]}, ${SCHEDULES[schedule]}`;
      const what = std === null ? `${mean === null ? "" : shown(mean)}\u00a0% in a single run` : `${shown(mean)} ± ${shown(std)}\u00a0% over ${found.length} seeds`;
      say(mean === null ? `${setting}: no run was recorded with this setting.`
        : `${setting}: ${what}; looking at ${HELD_OUT} images adds ±\u00a0${shown(images)} points.`);
    }

    const rates = slider({
      label: "Peak rate", min: 0, max: RATES.length - 1, value: rate, words: (i) => String(RATES[i]),
      changed: (i) => { rate = i; show(); },
    });
    const kinds = choice({legend: "Schedule:", names: SCHEDULES, changed: (s) => { schedule = s; show(); }});
    const note = make("p", {class: "moving-note"}, "Runs of this chapter's ViT on 6,000 images of Fashion-MNIST, from two of its studies. Circles: warm-up, then cosine; squares: cosine alone; triangles: warm-up, then constant.");
    stage.append(
      make("div", {class: "moving-controls"}, rates.row, kinds.row),
      make("div", {class: "moving-row"},
        panel("The schedule", curve),
        panel("Held-out accuracy of recorded runs", dots),
        panel("Their accuracy epoch by epoch", epochs),
        panel("In numbers", said, note)));
    show();
  }

  if (typeof module === "object") module.exports = {RATES, SCHEDULES, EPOCHS, STEPS, WARMUP, HELD_OUT, rateAt, recorded};
  else moving.figures.rates = begin;
})();
