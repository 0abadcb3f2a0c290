// A Vision Transformer's forward pass in plain JavaScript: the modules of
// chapter 5 in their order, one image at a time. Tokens (T, D) lie row by row
// in one Float32Array. No dependency; for a browser and for node.
(function (root) {
  "use strict";

  // 16 bits -> number: sign, 5 bits of exponent, 10 of fraction.
  function half(bits) {
    const e = (bits >> 10) & 31, m = bits & 1023;
    const size = e ? 2 ** (e - 25) * (1024 + m) : 2 ** -24 * m;
    return bits >> 15 ? -size : size;
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  }

  // weights.js -> {config, w}; w has every tensor under its name in PyTorch.
  function load(file) {
    const raw = bytes(file.halves), w = {};
    let at = 0;
    for (const [name, size] of Object.entries(file.tensors)) {
      w[name] = new Float32Array(size);
      for (let i = 0; i < size; i++, at += 2)
        w[name][i] = half(raw[at] | (raw[at + 1] << 8));
    }
    if (at !== raw.length)
      throw new Error(`expected ${at} bytes of weights, got ${raw.length}`);
    return {config: file.config, w};
  }

  // x[p], x[p + 1], ... times y[q], y[q + 1], ...: n products, summed.
  // Four sums that need not wait for each other are faster than one.
  function dot(x, p, y, q, n) {
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < n; i += 4) {
      a += x[p + i] * y[q + i];
      b += x[p + i + 1] * y[q + i + 1];
      c += x[p + i + 2] * y[q + i + 2];
      d += x[p + i + 3] * y[q + i + 3];
    }
    return a + b + c + d;
  }

  // Every row of x (T, I) times W (O, I), plus b (O): (T, O).
  function linear(x, W, b) {
    const O = b.length, I = W.length / O, T = x.length / I;
    const y = new Float32Array(T * O);
    for (let t = 0; t < T; t++)
      for (let o = 0; o < O; o++)
        y[t * O + o] = dot(x, t * I, W, o * I, I) + b[o];
    return y;
  }

  function layerNorm(x, scale, shift, eps) {
    const D = scale.length, y = new Float32Array(x.length);
    for (let t = 0; t < x.length; t += D) {
      let mean = 0, variance = 0;
      for (let i = 0; i < D; i++) mean += x[t + i] / D;
      for (let i = 0; i < D; i++) variance += (x[t + i] - mean) ** 2 / D;
      const std = Math.sqrt(variance + eps);
      for (let i = 0; i < D; i++)
        y[t + i] = ((x[t + i] - mean) / std) * scale[i] + shift[i];
    }
    return y;
  }

  function softmax(x) {
    const most = Math.max(...x);
    const e = x.map((v) => Math.exp(v - most));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  }

  // x times the share of a normal distribution below x. The error function
  // by Abramowitz and Stegun's formula 7.1.26, off by at most 1.5e-7.
  function gelu(x) {
    const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
    let sum = 1.061405429;
    for (const a of [-1.453152027, 1.421413741, -0.284496736, 0.254829592])
      sum = sum * t + a;
    const erf = 1 - sum * t * Math.exp(-z * z);
    return 0.5 * x * (1 + (x < 0 ? -erf : erf));
  }

  const add = (x, y) => x.map((v, i) => v + y[i]);

  // Pixels, 0 (black) to 1 -> tokens (T, D): the class token, then the
  // patches, row by row; positions added.
  function embed({config, w}, pixels) {
    const S = config.img_size, P = config.patch_size;
    const patches = new Float32Array(S * S); // (N, P * P)
    for (let y = 0; y < S; y++)
      for (let x = 0; x < S; x++) {
        const patch = Math.floor(y / P) * (S / P) + Math.floor(x / P);
        const place = (y % P) * P + (x % P);
        patches[patch * P * P + place] =
          (pixels[y * S + x] - config.mean) / config.std;
      }
    const name = "patch_embed.proj";
    const tokens = linear(patches, w[name + ".weight"], w[name + ".bias"]);
    return add(Float32Array.of(...w.cls_token, ...tokens), w.pos_embed);
  }

  // tokens (T, D) -> [tokens (T, D), one map (T, T) a head].
  // In a map, row = query, column = key; every row sums to 1.
  function attention({config, w}, name, tokens) {
    const D = config.embed_dim, h = config.num_heads, Dh = D / h;
    const T = tokens.length / D, mixed = new Float32Array(T * D), maps = [];
    // A token's row: q of every head, then k of every head, then v.
    const qkv = linear(tokens, w[name + ".qkv.weight"], w[name + ".qkv.bias"]);
    for (let head = 0; head < h; head++) {
      const attn = new Float32Array(T * T);
      const q = head * Dh, k = D + q, v = D + k;
      for (let t = 0; t < T; t++) {
        const scores = new Float64Array(T);
        for (let s = 0; s < T; s++)
          scores[s] = dot(qkv, t * 3 * D + q, qkv, s * 3 * D + k, Dh);
        attn.set(softmax(scores.map((x) => x / Math.sqrt(Dh))), t * T);
        for (let s = 0; s < T; s++)
          for (let i = 0; i < Dh; i++)
            mixed[t * D + q + i] += attn[t * T + s] * qkv[s * 3 * D + v + i];
      }
      maps.push(attn);
    }
    const proj = name + ".proj";
    return [linear(mixed, w[proj + ".weight"], w[proj + ".bias"]), maps];
  }

  // 28 x 28 pixels -> {logits: K numbers, attn: [layer][head] -> (T, T),
  // steps: the tokens at first, then after each attention and each MLP}.
  // Token 0 is the class token. mix = false leaves attention out.
  function forward(model, pixels, mix = true) {
    const {config, w} = model, attn = [], wanted = config.img_size ** 2;
    if (pixels.length !== wanted)
      throw new Error(`expected ${wanted} pixels, got ${pixels.length}`);
    const norm = (x, name) =>
      layerNorm(x, w[name + ".weight"], w[name + ".bias"], config.norm_eps);
    const fc = (x, name) => linear(x, w[name + ".weight"], w[name + ".bias"]);
    let tokens = embed(model, pixels);
    const steps = [tokens];
    for (let layer = 0; layer < config.depth; layer++) {
      const block = "blocks." + layer;
      const normed = norm(tokens, block + ".norm1");
      const [update, maps] = attention(model, block + ".attn", normed);
      if (mix) tokens = add(tokens, update);
      attn.push(maps);
      steps.push(tokens);
      const hidden = fc(norm(tokens, block + ".norm2"), block + ".mlp.fc1");
      tokens = add(tokens, fc(hidden.map(gelu), block + ".mlp.fc2"));
      steps.push(tokens);
    }
    const first = tokens.slice(0, config.embed_dim); // the class token
    return {logits: fc(norm(first, "norm"), "head"), attn, steps};
  }

  root.pocketViT = {load, forward, softmax, bytes};
  if (typeof module === "object") module.exports = root.pocketViT;
})(globalThis);
