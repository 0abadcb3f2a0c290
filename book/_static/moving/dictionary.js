// Chapter 2, "A soft dictionary": a query among five keys on a circle. Turn it, make it longer, leave the scale out.
(function () {
  "use strict";

  const KEYS = [0, 72, 144, 216, 288]; // degrees: the direction of each key, of length 1
  const VALUES = [1, 3, 2, 5, 4];
  const LONGEST = 300, WIDTH = 2; // of a query; Dh

  const at = (degrees) => [Math.cos((degrees * Math.PI) / 180), Math.sin((degrees * Math.PI) / 180)];

  // One query by the four lines of attention(): compare, scale, softmax, mean.
  function attend(degrees, length, scaled = true) {
    const [x, y] = at(degrees);
    let scores = KEYS.map((key) => length * (x * at(key)[0] + y * at(key)[1]));
    if (scaled) scores = scores.map((score) => score / Math.sqrt(WIDTH));
    const most = Math.max(...scores), parts = scores.map((score) => Math.exp(score - most));
    const sum = parts.reduce((a, b) => a + b, 0), weights = parts.map((part) => part / sum);
    return {scores, weights, answer: weights.reduce((total, w, i) => total + w * VALUES[i], 0)};
  }

  // Where the slider stands (0 to 100) -> the query's length, finely for short ones: 0 to 300.
  const lengthAt = (stand) => (LONGEST + 1) ** (stand / 100) - 1;
  const short = (length) => (length < 10 ? length.toFixed(1) : length.toFixed(0));

  function begin(stage, {COLOURS, percent, make, draw, panel, picture, slider, tick, speaker, drag}) {
    let degrees = 40, stand = 39, scaled = true;
    const R = 100, MIDDLE = [160, 140], RED = COLOURS[5];

    // --- the circle ---
    const circle = picture(320, 280, "");
    const point = (angle, far) => {
      const [x, y] = at(angle);
      return [MIDDLE[0] + far * x, MIDDLE[1] - far * y];
    };
    const [cx, cy] = MIDDLE;
    const disc = draw("circle", {cx, cy, r: R + 38, class: "moving-handle", fill: "transparent"});
    circle.append(draw("circle", {cx, cy, r: R, class: "moving-line", fill: "none"}));
    const dots = KEYS.map((key, i) => {
      const [x, y] = point(key, R), [tx, ty] = point(key, R + 27);
      const dot = draw("circle", {cx: x, cy: y, fill: COLOURS[i], class: "moving-edge"});
      circle.append(draw("line", {x1: cx, y1: cy, x2: x, y2: y, class: "moving-line"}), dot);
      circle.append(draw("text", {x: tx, y: ty + 5, "text-anchor": "middle", class: "moving-strong"}, String(VALUES[i])));
      return dot;
    });
    const arrow = draw("line", {x1: cx, y1: cy, stroke: RED, "stroke-width": 4});
    const head = draw("path", {d: "M 0 0 L -14 -7 L -14 7 Z", fill: RED});
    circle.append(arrow, head, disc);

    // --- the weights, and the answer ---
    const bars = picture(320, 280, "");
    const rows = KEYS.map((key, i) => {
      const y = 34 + 34 * i;
      const bar = draw("rect", {x: 62, y: y - 15, height: 22, fill: COLOURS[i], class: "moving-edge"});
      const share = draw("text", {y, class: "moving-number"});
      bars.append(draw("text", {x: 52, y, "text-anchor": "end"}, `value ${VALUES[i]}`), bar, share);
      return {bar, share};
    });
    const answerAt = (answer) => 62 + (answer - 1) * 48; // 1 to 5
    bars.append(draw("line", {x1: 62, x2: 254, y1: 240, y2: 240, class: "moving-line"}));
    VALUES.forEach((value, i) => {
      bars.append(draw("circle", {cx: answerAt(value), cy: 240, r: 5, fill: COLOURS[i], class: "moving-edge"}));
      bars.append(draw("text", {x: answerAt(value), y: 265, "text-anchor": "middle"}, String(value)));
    });
    bars.append(draw("text", {x: 52, y: 245, "text-anchor": "end"}, "answer"));
    const mark = draw("path", {d: "M 0 -6 L -7 -20 L 7 -20 Z", fill: RED});
    const marked = draw("text", {y: 215, "text-anchor": "middle", class: "moving-strong"});
    bars.append(mark, marked);

    // --- the answer all the way round: the curve of the figure above, for this length ---
    const round = picture(340, 180, "");
    const across = (angle) => 34 + (angle / 360) * 284, up = (answer) => 142 - (answer - 1) * 31;
    for (const value of [1, 2, 3, 4, 5]) {
      round.append(draw("line", {x1: 34, x2: 318, y1: up(value), y2: up(value), class: "moving-line"}));
      round.append(draw("text", {x: 26, y: up(value) + 5, "text-anchor": "end"}, String(value)));
    }
    KEYS.forEach((key, i) => {
      round.append(draw("circle", {cx: across(key), cy: up(VALUES[i]), r: 5, fill: COLOURS[i], class: "moving-edge"}));
    });
    for (const angle of [0, 90, 180, 270, 360]) {
      round.append(draw("text", {x: across(angle), y: 168, "text-anchor": "middle"}, `${angle}°`));
    }
    const curve = draw("polyline", {fill: "none", class: "moving-curve"});
    const here = draw("circle", {r: 7, fill: RED, class: "moving-edge"});
    round.append(curve, here);

    // --- all of it, for the query as it stands ---
    const {row: said, say} = speaker();
    const sum = make("p", {class: "moving-sum"});
    function show() {
      const length = lengthAt(stand), {weights, answer} = attend(degrees, length, scaled);
      const far = 0.86 * R * (Math.log(1 + length) / Math.log(1 + LONGEST)) ** 0.6, [x, y] = point(degrees, far);
      for (const [name, value] of [["x2", x], ["y2", y]]) arrow.setAttribute(name, value);
      const [hx, hy] = point(degrees, far + 8);
      head.setAttribute("transform", `translate(${hx} ${hy}) rotate(${-degrees})`);
      weights.forEach((weight, i) => {
        dots[i].setAttribute("r", 5 + 13 * Math.sqrt(weight)); // its area beyond a small dot is the weight
        rows[i].bar.setAttribute("width", Math.max(1, 190 * weight));
        rows[i].share.setAttribute("x", 70 + 190 * weight);
        rows[i].share.textContent = percent(weight);
      });
      mark.setAttribute("transform", `translate(${answerAt(answer)} 240)`);
      marked.setAttribute("x", answerAt(answer));
      marked.textContent = answer.toFixed(2);
      const angles = Array.from({length: 121}, (_, i) => 3 * i);
      curve.setAttribute("points", angles.map((a) => `${across(a)},${up(attend(a, length, scaled).answer)}`).join(" "));
      here.setAttribute("cx", across(degrees));
      here.setAttribute("cy", up(answer));
      const terms = weights.map((weight, i) => `${weight.toFixed(2)} × ${VALUES[i]}`).join(" + ");
      sum.textContent = `answer = ${terms} = ${answer.toFixed(2)}`;
      const most = weights.indexOf(Math.max(...weights));
      const words = `Query at ${degrees} degrees, length ${short(length)}`;
      circle.setAttribute("aria-label", `Five keys on a circle. ${words}.`);
      bars.setAttribute("aria-label", weights.map((w, i) => `value ${VALUES[i]}: weight ${percent(w)}`).join("; "));
      round.setAttribute("aria-label", `The answer against the direction of the query, from 0 to 360 degrees, at length ${short(length)}; here ${answer.toFixed(2)}.`);
      say(`${words}: ${percent(weights[most])} of the weight on the key whose value is ${VALUES[most]}; the answer is ${answer.toFixed(2)}.`);
    }

    const turn = slider({
      label: "Direction", min: 0, max: 359, value: degrees, words: (v) => `${v}°`,
      changed: (v) => { degrees = v; show(); },
    });
    const stretch = slider({
      label: "Length", min: 0, max: 100, value: stand, words: (v) => short(lengthAt(v)),
      changed: (v) => { stand = v; show(); },
    });
    const scale = tick({
      label: "Divide the scores by √Dh, here √2", checked: scaled,
      changed: (on) => { scaled = on; show(); },
    });
    drag(circle, disc, (px, py) => {
      degrees = (Math.round((Math.atan2(cy - py, px - cx) * 180) / Math.PI) + 360) % 360;
      turn.set(degrees);
      show();
    });
    stage.append(
      make("div", {class: "moving-controls"}, turn.row, stretch.row, scale.row),
      make("div", {class: "moving-row"},
        panel("The query (red) among five keys", circle),
        panel("The weights, and the mean they give", bars),
        panel("The answer in every direction", round),
        panel("The same as a sum", sum)),
      said);
    show();
  }

  if (typeof module === "object") module.exports = {KEYS, VALUES, attend, lengthAt};
  else moving.figures.dictionary = begin;
})();
