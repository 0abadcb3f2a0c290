// The page "Attention in 3-D": turn a cloud of points, pick one, and see where it attends.
// clouds.js holds the numbers, and is loaded when the view comes near; the page's Markdown holds the frame.
(function () {
  "use strict";

  const place = (id) => document.getElementById("points-" + id);
  const stage = place("stage"), still = place("still"), canvas = place("canvas"), said = place("said");
  if (!stage || !still || !canvas) return;
  // viridis, dark to bright
  const COLOURS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
  const RING = "#d55e00", TURN = Math.PI / 24, NEAR = 3.2; // of the eye, in radii of the cloud
  const context = canvas.getContext("2d");

  let data = null; // what clouds.js holds, unpacked
  let kind = 0, net = 0, asked = 0; // which cloud, which net, which point
  let yaw = 0.6, pitch = 0.35;
  let drag = null; // where the pointer went down and was last seen

  const percent = (share) => (100 * share).toFixed(1) + " %";

  // --- the numbers ---

  function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.bytes.replace(/\s/g, "")), (c) => c.charCodeAt(0));
    const N = packed.count, kinds = packed.kinds.length;
    const at = (start, length) => bytes.subarray(start, start + length);
    const clouds = packed.kinds.map((_, k) => {
      const signed = new Int8Array(at(3 * N * k, 3 * N));
      return Float32Array.from(signed, (v) => v / 127);
    });
    const maps = packed.nets.map((_, n) => packed.kinds.map((_, k) =>
      at(3 * N * kinds + N * N * (n * kinds + k), N * N)));
    return {...packed, clouds, maps};
  }

  function load() {
    const node = document.createElement("script");
    node.src = stage.dataset.clouds;
    node.onload = () => begin(unpack(pointClouds));
    node.onerror = () => { place("missing").textContent = "A file of this page did not load. Load the page again."; };
    document.head.append(node);
  }

  // --- the picture ---

  // Where the points of the cloud stand on the canvas: x, y, how near (larger is nearer), in CSS pixels.
  function projected() {
    const points = data.clouds[kind], side = canvas.clientWidth, scale = 0.46 * side;
    const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch), out = [];
    for (let i = 0; i < data.count; i++) {
      const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
      const across = cy * x - sy * y, away = sy * x + cy * y;
      const up = cp * z + sp * away, near = sp * z - cp * away;
      const size = (NEAR - 1) / (NEAR - near);
      out.push({i, x: side / 2 + scale * across * size, y: side / 2 - scale * up * size, near, size});
    }
    return out;
  }

  const row = () => data.maps[net][kind].subarray(data.count * asked, data.count * (asked + 1));

  function draw() {
    const side = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    if (!data || !side) return;
    if (canvas.width !== Math.round(side * ratio)) canvas.width = canvas.height = Math.round(side * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, side, side);
    const weights = row(), spots = projected().sort((a, b) => a.near - b.near);
    for (const spot of spots) {
      const share = weights[spot.i] / 255, radius = (2.2 + 5 * share) * spot.size * side / 480;
      context.beginPath();
      context.arc(spot.x, spot.y, radius, 0, 2 * Math.PI);
      context.fillStyle = "#" + COLOURS[Math.round(9 * share)];
      context.fill();
      if (share > 0.6) { // bright on white: an edge
        context.lineWidth = 0.7;
        context.strokeStyle = "#333333";
        context.stroke();
      }
    }
    const own = spots.find((spot) => spot.i === asked);
    context.beginPath();
    context.arc(own.x, own.y, 10, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = RING;
    context.stroke();
  }

  // --- the words ---

  function tell() {
    const weights = row(), peak = data.peaks[data.nets[net]][kind][asked];
    let most = 0, some = 0;
    for (let i = 0; i < data.count; i++) {
      if (weights[i] > weights[most]) most = i;
      if (weights[i] >= 128) some++;
    }
    const points = data.clouds[kind], reach = Math.hypot(...[0, 1, 2].map((a) => points[3 * asked + a] - points[3 * most + a]));
    const where = most === asked ? "to itself" : `to a point ${reach.toFixed(2)} away`;
    said.textContent = `Point ${asked + 1} of ${data.count} attends most ${where}, with ${percent(peak)}; ` +
      `${some} point${some === 1 ? " has" : "s have"} at least half of that.`;
    place("answer").textContent = `${data.names[kind]}. The network's answer: ${data.answers[data.nets[net]][kind]}.`;
    canvas.setAttribute("aria-label", `A ${data.kinds[kind]} as ${data.count} points. ${said.textContent}`);
  }

  function show() {
    tell();
    draw();
  }

  // --- pointer and keys ---

  function pick(event) {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, far = 24; // CSS pixels
    for (const spot of projected()) {
      const away = Math.hypot(spot.x - x, spot.y - y) - 3 * spot.near; // of two that lie together, the nearer
      if (away < far) [best, far] = [spot, away];
    }
    if (best) asked = best.i;
    show();
  }

  function turn(across, up) {
    yaw += across;
    pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, pitch + up));
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = {x: event.clientX, y: event.clientY, moved: 0};
    try { canvas.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that is gone */ }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const across = event.clientX - drag.x, down = event.clientY - drag.y;
    drag = {x: event.clientX, y: event.clientY, moved: drag.moved + Math.abs(across) + Math.abs(down)};
    if (drag.moved > 4) turn(across / 120, down / 120);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && drag.moved <= 4) pick(event);
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  const KEYS = {
    ArrowLeft: () => turn(-TURN, 0), ArrowRight: () => turn(TURN, 0),
    ArrowUp: () => turn(0, -TURN), ArrowDown: () => turn(0, TURN),
    n: () => step(1), p: () => step(-1), Home: () => { yaw = 0; pitch = 0; draw(); },
  };
  canvas.addEventListener("keydown", (event) => {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  function step(by) {
    asked = (asked + by + data.count) % data.count;
    show();
  }

  // --- begin ---

  function choices(id, names, changed) {
    names.forEach((name, i) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, {type: "radio", name: "points-" + id, value: String(i), checked: i === 0});
      input.addEventListener("change", () => { changed(i); show(); });
      label.append(input, " " + name);
      place(id).append(label);
    });
  }

  // The point that stands highest: the one that the still picture asks.
  function highest() {
    const points = data.clouds[kind];
    asked = 0;
    for (let i = 1; i < data.count; i++) if (points[3 * i + 2] > points[3 * asked + 2]) asked = i;
  }

  function begin(found) {
    data = found;
    stage.hidden = false;
    still.hidden = true;
    choices("kinds", data.kinds, (k) => { kind = k; highest(); });
    choices("nets", data.nets, (n) => { net = n; });
    place("next").addEventListener("click", () => step(1));
    place("previous").addEventListener("click", () => step(-1));
    window.addEventListener("resize", draw);
    highest();
    show();
  }

  if (!("IntersectionObserver" in window)) load();
  else {
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      watch.disconnect();
      load();
    }, {rootMargin: "300px"});
    watch.observe(still);
  }
})();
