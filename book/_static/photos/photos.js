// What the page "Your photos in your browser" computes: a picture's pixels as the book's Python prepares them, and the
// network's probabilities by onnxruntime-web. Nothing here asks another host.
var photos = (function () {
  "use strict";

  // --- a picture becomes numbers: Pillow's resize on 8-bit pixels, then crop and normalise ---
  // Rows first, then columns, with 8 bits between. Pillow 13 takes the columns first where a picture is more than
  // twice as high as wide, and sometimes where both sides shrink unlike: single pixels at hard edges then differ by a few of 255 levels.

  const FILTERS = {
    bilinear: {reach: 1, weigh: (x) => (x < 1 ? 1 - x : 0)},
    bicubic: {reach: 2, weigh: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)},
  };
  const ONE = 2 ** 22; // Pillow's weights are whole numbers of 22 bits

  // For each of `to` places: where its inputs begin, and their weights.
  function weightsFor(from, to, filter) {
    const scale = from / to, wide = Math.max(scale, 1), reach = filter.reach * wide, found = [];
    for (let place = 0; place < to; place++) {
      const middle = (place + 0.5) * scale;
      const first = Math.max(0, Math.trunc(middle - reach + 0.5));
      const last = Math.min(from, Math.trunc(middle + reach + 0.5));
      const weights = [];
      for (let x = first; x < last; x++) weights.push(filter.weigh(Math.abs((x - middle + 0.5) / wide)));
      const sum = weights.reduce((a, b) => a + b, 0);
      found.push({first, weights: weights.map((w) => Math.trunc((w / sum) * ONE + (w < 0 ? -0.5 : 0.5)))});
    }
    return found;
  }

  // pixels: H rows of W places of C bytes. One side is brought to a new length; the other is left.
  function resizeOne(pixels, W, H, C, to, across, filter) {
    const along = across ? W : H;
    if (along === to) return pixels;
    const plan = weightsFor(along, to, filter), w = across ? to : W, h = across ? H : to;
    const out = new Uint8ClampedArray(w * h * C), step = across ? C : W * C;
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const {first, weights} = plan[across ? x : y];
        const start = across ? (y * W + first) * C : (first * W + x) * C;
        for (let c = 0; c < C; c++) {
          let sum = ONE / 2;
          for (let i = 0, at = start + c; i < weights.length; i++, at += step) sum += pixels[at] * weights[i];
          out[(y * w + x) * C + c] = Math.floor(sum / ONE);
        }
      }
    }
    return out;
  }

  const evenHalf = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python rounds

  // pixels: RGB bytes, row by row. Returns Float32Array (C, h, w), normalised. how: what the model's file stores.
  function prepare(pixels, W, H, how) {
    let C = 3;
    if (how.grey) {
      const grey = new Uint8ClampedArray(W * H);
      for (let i = 0; i < grey.length; i++) {
        grey[i] = Math.trunc(0.2989 * pixels[3 * i] + 0.587 * pixels[3 * i + 1] + 0.114 * pixels[3 * i + 2] + 1e-6);
      }
      [pixels, C] = [grey, 1];
    }
    const short = Math.min(W, H), side = how.resize;
    const [h, w] = Array.isArray(side) ? side : [Math.trunc((side * H) / short), Math.trunc((side * W) / short)];
    const filter = FILTERS[how.interpolation];
    pixels = resizeOne(pixels, W, H, C, w, true, filter);
    pixels = resizeOne(pixels, w, H, C, h, false, filter);
    const [rows, columns] = how.crop, top = evenHalf((h - rows) / 2), left = evenHalf((w - columns) / 2);
    const out = new Float32Array(C * rows * columns);
    for (let c = 0; c < C; c++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          const value = pixels[((y + top) * w + x + left) * C + c] / 255;
          out[(c * rows + y) * columns + x] = (value - how.mean[c]) / how.std[c];
        }
      }
    }
    return out;
  }

  // A file as RGB bytes: upright, on white, without a change of its colours.
  async function pixelsOf(file) {
    const picture = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none"});
    const {width, height} = picture, canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, 0, 0);
    picture.close();
    const seen = context.getImageData(0, 0, width, height).data, pixels = new Uint8ClampedArray(3 * width * height);
    for (let i = 0; i < width * height; i++) pixels.set(seen.subarray(4 * i, 4 * i + 3), 3 * i);
    return {pixels, width, height};
  }

  // --- the network ---

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // runtime: {code, wasm}, model: {words, onnx}, as the scripts hold them. Returns pixels -> probabilities.
  async function start(runtime, model) {
    const code = new Blob([await unpack(runtime.code)], {type: "text/javascript"});
    const address = URL.createObjectURL(code);
    const ort = await import(address);
    URL.revokeObjectURL(address);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = await unpack(runtime.wasm);
    const session = await ort.InferenceSession.create(await unpack(model.onnx), {executionProviders: ["wasm"]});
    const how = model.words.preprocessing, [C, H, W] = model.words.input_size;
    return async function probabilities({pixels, width, height}) {
      const images = new ort.Tensor("float32", prepare(pixels, width, height, how), [1, C, H, W]);
      const logits = (await session.run({images})).logits.data;
      const largest = logits.reduce((a, b) => Math.max(a, b));
      const powers = Array.from(logits, (v) => Math.exp((v - largest) / model.words.temperature));
      const sum = powers.reduce((a, b) => a + b, 0);
      return powers.map((v) => v / sum);
    };
  }

  return {prepare, pixelsOf, start};
})();
