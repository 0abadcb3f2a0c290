"""Answers to the exercises of chapters 1 to 4, for tests/test_exercise_checks.py."""

ANSWERS = [
    # --- 1.1 ---
    ("1.1", "right", "counts back from the output", '''
def reach(kernels, strides):
    side = 1
    for k, s in zip(reversed(kernels), reversed(strides)):
        side = (side - 1) * s + k
    return side
'''),
    ("1.1", "right", "numpy's product of the strides before", '''
import numpy as np


def reach(kernels, strides):
    steps = np.cumprod([1, *strides[:-1]])
    return 1 + ((np.array(kernels) - 1) * steps).sum()
'''),
    ("1.1", "wrong", "ignores the strides", '''
def reach(kernels, strides):
    return 1 + sum(k - 1 for k in kernels)
'''),
    ("1.1", "wrong", "adds the kernels up", '''
def reach(kernels, strides):
    return sum(kernels)
'''),
    ("1.1", "wrong", "a layer's own stride counts for its own kernel", '''
def reach(kernels, strides):
    side, step = 1, 1
    for k, s in zip(kernels, strides):
        step *= s
        side += (k - 1) * step
    return side
'''),
    ("1.1", "wrong", "adds strides instead of multiplying", '''
def reach(kernels, strides):
    side, step = 1, 1
    for k, s in zip(kernels, strides):
        side += (k - 1) * step
        step += s - 1
    return side
'''),
    # --- 1.2 ---
    ("1.2", "right", "torch's layer with circular padding", '''
def circular_conv(images, weight):
    out, C, k, _ = weight.shape
    conv = nn.Conv2d(C, out, k, padding=k // 2, padding_mode="circular", bias=False)
    conv.weight = nn.Parameter(weight)
    return conv(images)
'''),
    ("1.2", "right", "a sum of rolled images", '''
def circular_conv(images, weight):
    k, out = weight.shape[-1], 0
    for u in range(k):
        for v in range(k):
            moved = images.roll((k // 2 - u, k // 2 - v), dims=(2, 3))
            out = out + torch.einsum("bchw,oc->bohw", moved, weight[:, :, u, v])
    return out
'''),
    ("1.2", "wrong", "zeros at the border", '''
def circular_conv(images, weight):
    return F.conv2d(images, weight, padding=weight.shape[-1] // 2)
'''),
    ("1.2", "wrong", "mirrors the border", '''
def circular_conv(images, weight):
    return F.conv2d(F.pad(images, [weight.shape[-1] // 2] * 4, mode="reflect"), weight)
'''),
    ("1.2", "wrong", "pads for kernels of 3 only", '''
def circular_conv(images, weight):
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="circular"), weight)
'''),
    ("1.2", "wrong", "goes round the columns only", '''
def circular_conv(images, weight):
    p = weight.shape[-1] // 2
    return F.conv2d(F.pad(F.pad(images, (p, p, 0, 0), mode="circular"), (0, 0, p, p)), weight)
'''),
    ("1.2", "wrong", "pads on one side, so it moves the image", '''
def circular_conv(images, weight):
    k = weight.shape[-1]
    return F.conv2d(F.pad(images, (0, k - 1, 0, k - 1), mode="circular"), weight)
'''),
    ("1.2", "wrong", "turns the kernel round", '''
def circular_conv(images, weight):
    p = weight.shape[-1] // 2
    return F.conv2d(F.pad(images, (p, p, p, p), mode="circular"), weight.flip(2, 3))
'''),
    # --- 1.3 ---
    ("1.3", "right", "in float64", '''
def conv_matrix(kernel, H, W):
    M = torch.zeros(H, W, H, W, dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            for u in range(3):
                for v in range(3):
                    if 0 <= i + u - 1 < H and 0 <= j + v - 1 < W:
                        M[i, j, i + u - 1, j + v - 1] = kernel[u, v]
    return M.reshape(H * W, H * W)
'''),
    ("1.3", "right", "the answers to all unit images", '''
def conv_matrix(kernel, H, W):
    units = torch.eye(H * W).reshape(H * W, 1, H, W)
    return F.conv2d(units, kernel[None, None], padding=1).flatten(1).T
'''),
    ("1.3", "wrong", "transposed", '''
def conv_matrix(kernel, H, W):
    units = torch.eye(H * W).reshape(H * W, 1, H, W)
    return F.conv2d(units, kernel[None, None], padding=1).flatten(1)
'''),
    ("1.3", "wrong", "goes round the border", '''
def conv_matrix(kernel, H, W):
    units = torch.eye(H * W).reshape(H * W, 1, H, W)
    return F.conv2d(F.pad(units, (1, 1, 1, 1), mode="circular"), kernel[None, None]).flatten(1).T
'''),
    ("1.3", "wrong", "nine diagonals, so rows run into each other", '''
def conv_matrix(kernel, H, W):
    M = torch.zeros(H * W, H * W)
    for u in range(3):
        for v in range(3):
            by = (u - 1) * W + v - 1
            M += kernel[u, v] * torch.diag(torch.ones(H * W - abs(by)), by)
    return M
'''),
    ("1.3", "wrong", "column by column", '''
def conv_matrix(kernel, H, W):
    units = torch.eye(H * W).reshape(H * W, 1, W, H).transpose(2, 3)
    return F.conv2d(units, kernel[None, None], padding=1).transpose(2, 3).flatten(1).T
'''),
    ("1.3", "wrong", "without padding", '''
def conv_matrix(kernel, H, W):
    units = torch.eye(H * W).reshape(H * W, 1, H, W)
    return F.conv2d(units, kernel[None, None]).flatten(1).T
'''),
    # --- 2.1 ---
    ("2.1", "right", "two triangles", '''
def window_mask(T, window):
    return torch.ones(T, T).tril().triu(1 - window).bool()
'''),
    ("2.1", "right", "row by row", '''
def window_mask(T, window):
    rows = [[q - window < k <= q for k in range(T)] for q in range(T)]
    return torch.tensor(rows)
'''),
    ("2.1", "wrong", "one token too many", '''
def window_mask(T, window):
    return torch.ones(T, T, dtype=torch.bool).tril().triu(-window)
'''),
    ("2.1", "wrong", "looks into the future", '''
def window_mask(T, window):
    return torch.ones(T, T, dtype=torch.bool).triu().tril(window - 1)
'''),
    ("2.1", "wrong", "no window", '''
def window_mask(T, window):
    return torch.ones(T, T, dtype=torch.bool).tril()
'''),
    ("2.1", "wrong", "both sides", '''
def window_mask(T, window):
    places = torch.arange(T)
    return (places[:, None] - places).abs() < window
'''),
    ("2.1", "wrong", "upside down: True = may not look", '''
def window_mask(T, window):
    return ~torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
'''),
    ("2.1", "wrong", "numbers to add", '''
def window_mask(T, window):
    seen = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
    return torch.zeros(T, T).masked_fill(~seen, -math.inf)
'''),
    # --- 2.2 ---
    ("2.2", "right", "one sequence after the other", '''
def padded_attention(q, k, v, lengths):
    out = torch.zeros_like(q)
    for b, n in enumerate(lengths.tolist()):
        out[b, :n] = attention(q[b, :n], k[b, :n], v[b, :n])[0]
    return out
'''),
    ("2.2", "right", "both masks at once", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    return attention(q, k, v, real[:, None] & real[..., None])[0]
'''),
    ("2.2", "right", "by hand, with a very low score", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1])[None] < lengths[:, None]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~real[:, None, :], -1e9)
    return (scores.softmax(-1) @ v).masked_fill(~real[..., None], 0.0)
'''),
    ("2.2", "wrong", "no keys masked", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    return attention(q, k, v)[0] * real[..., None]
'''),
    ("2.2", "wrong", "outputs at padding left", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    return attention(q, k, v, real[:, None])[0]
'''),
    ("2.2", "wrong", "queries masked instead of keys", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    return attention(q, k, v, real[..., None])[0]
'''),
    ("2.2", "wrong", "keys set to 0, whose weight is not 0", '''
def padded_attention(q, k, v, lengths):
    real = (torch.arange(q.shape[1]) < lengths[:, None])[..., None]
    return attention(q, k * real, v * real)[0] * real
'''),
    ("2.2", "wrong", "masked after the softmax", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    return (attention(q, k, v)[1] * real[:, None]) @ v * real[..., None]
'''),
    ("2.2", "wrong", "one padded token may be looked at", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) <= lengths[:, None]
    return attention(q, k, v, real[:, None])[0] * real[..., None]
'''),
    ("2.2", "wrong", "nan in the rows of padding", '''
def padded_attention(q, k, v, lengths):
    real = torch.arange(q.shape[1]) < lengths[:, None]
    both = real[:, None] & real[..., None]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~both, -math.inf)
    return scores.softmax(-1) @ v
'''),
    # --- 2.3 ---
    ("2.3", "right", "two passes, the largest score first", '''
def attention_in_blocks(q, k, v, block):
    scale = q.shape[-1] ** -0.5
    parts = list(zip(k.split(block), v.split(block)))
    largest = torch.stack([(q @ a.T * scale).amax(1) for a, _ in parts]).amax(0)
    top, below = 0, 0
    for a, b in parts:
        weights = (q @ a.T * scale - largest[:, None]).exp()
        top, below = top + weights @ b, below + weights.sum(1, keepdim=True)
    return top / below
'''),
    ("2.3", "right", "logarithms of the sums, with einsum", '''
def attention_in_blocks(q, k, v, block):
    T, Dh = q.shape
    log_sum, out = torch.full((T,), -math.inf), torch.zeros(T, Dh)
    for start in range(0, T, block):
        a, b = k[start : start + block], v[start : start + block]
        scores = torch.einsum("qd,kd->qk", q, a) / math.sqrt(Dh)
        new = torch.logaddexp(log_sum, scores.logsumexp(dim=1))
        out = (log_sum - new).exp()[:, None] * out
        out += torch.einsum("qk,kd->qd", (scores - new[:, None]).exp(), b)
        log_sum = new
    return out
'''),
    ("2.3", "wrong", "calls attention", '''
def attention_in_blocks(q, k, v, block):
    return attention(q, k, v)[0]
'''),
    ("2.3", "wrong", "calls torch's own", '''
def attention_in_blocks(q, k, v, block):
    return F.scaled_dot_product_attention(q, k, v)
'''),
    ("2.3", "wrong", "collects the whole map, block by block", '''
def attention_in_blocks(q, k, v, block):
    scores = torch.cat([q @ a.T for a in k.split(block)], dim=1)
    return (scores / math.sqrt(q.shape[1])).softmax(dim=1) @ v
'''),
    ("2.3", "wrong", "a largest score that starts at 0", '''
def attention_in_blocks(q, k, v, block):
    T, Dh = q.shape
    largest, total, out = torch.zeros(T, 1), torch.zeros(T, 1), torch.zeros(T, Dh)
    for a, b in zip(k.split(block), v.split(block)):
        scores = q @ a.T / math.sqrt(Dh)
        new = torch.maximum(largest, scores.amax(1, keepdim=True))
        shrink, weights = (largest - new).exp(), (scores - new).exp()
        total = shrink * total + weights.sum(1, keepdim=True)
        out, largest = shrink * out + weights @ b, new
    return out / total
'''),
    ("2.3", "wrong", "no largest score", '''
def attention_in_blocks(q, k, v, block):
    top, below = 0, 0
    for a, b in zip(k.split(block), v.split(block)):
        weights = (q @ a.T / math.sqrt(q.shape[1])).exp()
        top, below = top + weights @ b, below + weights.sum(1, keepdim=True)
    return top / below
'''),
    ("2.3", "wrong", "old sums not made relative to the new largest", '''
def attention_in_blocks(q, k, v, block):
    T, Dh = q.shape
    largest, total, out = torch.full((T, 1), -math.inf), 0, 0
    for a, b in zip(k.split(block), v.split(block)):
        scores = q @ a.T / math.sqrt(Dh)
        largest = torch.maximum(largest, scores.amax(1, keepdim=True))
        weights = (scores - largest).exp()
        total, out = total + weights.sum(1, keepdim=True), out + weights @ b
    return out / total
'''),
    ("2.3", "wrong", "the mean of the blocks' answers", '''
def attention_in_blocks(q, k, v, block):
    parts = [attention(q, a, b)[0] for a, b in zip(k.split(block), v.split(block))]
    return torch.stack(parts).mean(dim=0)
'''),
    ("2.3", "wrong", "leaves out the last, shorter block", '''
def attention_in_blocks(q, k, v, block):
    T, Dh = q.shape
    log_sum, out = torch.full((T,), -math.inf), torch.zeros(T, Dh)
    for start in range(0, T - block + 1, block):
        scores = q @ k[start : start + block].T / math.sqrt(Dh)
        new = torch.logaddexp(log_sum, scores.logsumexp(dim=1))
        out = (log_sum - new).exp()[:, None] * out
        out += (scores - new[:, None]).exp() @ v[start : start + block]
        log_sum = new
    return out
'''),
    ("2.3", "wrong", "blocks of queries, not of keys", '''
def attention_in_blocks(q, k, v, block):
    return torch.cat([attention(a, k, v)[0] for a in q.split(block)])
'''),
    ("2.3", "wrong", "keeps the scores of all blocks in a list", '''
def attention_in_blocks(q, k, v, block):
    scores = [q @ a.T / math.sqrt(q.shape[1]) for a in k.split(block)]
    largest = torch.stack([s.amax(dim=1) for s in scores]).amax(dim=0)[:, None]
    weights = [(s - largest).exp() for s in scores]
    top = sum(w @ b for w, b in zip(weights, v.split(block)))
    return top / sum(w.sum(dim=1, keepdim=True) for w in weights)
'''),
    ("2.3", "wrong", "two blocks, whatever `block` is", '''
def attention_in_blocks(q, k, v, block):
    block = -(-len(k) // 2)
    T, Dh = q.shape
    log_sum, out = torch.full((T,), -math.inf), torch.zeros(T, Dh)
    for start in range(0, T, block):
        a, b = k[start : start + block], v[start : start + block]
        scores = torch.einsum("qd,kd->qk", q, a) / math.sqrt(Dh)
        new = torch.logaddexp(log_sum, scores.logsumexp(dim=1))
        out = (log_sum - new).exp()[:, None] * out
        out += torch.einsum("qk,kd->qd", (scores - new[:, None]).exp(), b)
        log_sum = new
    return out
'''),
    ("2.3", "wrong", "attention itself, one query at a time", '''
def attention_in_blocks(q, k, v, block):
    return torch.stack([attention(one[None], k, v)[0][0] for one in q])
'''),
    ("2.3", "wrong", "the map row by row in a flat tensor", '''
def attention_in_blocks(q, k, v, block):
    scores = torch.zeros(len(q) * len(k))
    for i, one in enumerate(q):
        scores[i * len(k) : (i + 1) * len(k)] = k @ one / math.sqrt(q.shape[1])
    return torch.stack([row.softmax(dim=0) @ v for row in scores.split(len(k))])
'''),
    ("2.3", "right", "in float64, the keys scaled first", '''
def attention_in_blocks(q, k, v, block):
    q, k, v = q.double(), k.double() / math.sqrt(q.shape[1]), v.double()
    largest = torch.full((len(q),), -math.inf, dtype=torch.float64)
    total, out = torch.zeros_like(largest), torch.zeros_like(v)
    for start in range(0, len(k), block):
        rows = torch.arange(start, min(start + block, len(k)))
        scores = k[rows] @ q.T  # (block, T)
        new = torch.maximum(largest, scores.max(dim=0).values)
        weights, shrink = (scores - new).exp(), (largest - new).exp()
        total, out = shrink * total + weights.sum(0), shrink[:, None] * out + weights.T @ v[rows]
        largest = new
    return out / total[:, None]
'''),
    ("2.3", "right", "products and sums instead of @", '''
def attention_in_blocks(q, k, v, block):
    top = total = torch.zeros(len(q), 1)
    largest = total - math.inf
    for a, b in zip(k.split(block), v.split(block)):
        scores = (q[:, None] * a).sum(dim=-1) / q.shape[1] ** 0.5
        new = torch.maximum(largest, scores.max(dim=1, keepdim=True)[0])
        weights, shrink = torch.exp(scores - new), torch.exp(largest - new)
        top = shrink * top + (weights[:, :, None] * b).sum(dim=1)
        total, largest = shrink * total + weights.sum(1, keepdim=True), new
    return top / total
'''),
    # --- 3.1 ---
    ("3.1", "right", "a tensor", '''
def crossing(D):
    return torch.tensor(24 * D**2 / (4 * D))
'''),
    ("3.1", "right", "tries one after the other", '''
def crossing(D):
    T = 1
    while 4 * T**2 * D < 24 * T * D**2:
        T += 1
    return T
'''),
    ("3.1", "right", "a whole number as a float", '''
def crossing(D):
    return 6.0 * D
'''),
    ("3.1", "wrong", "against attention's linear layers only", '''
def crossing(D):
    return 2 * D
'''),
    ("3.1", "wrong", "one product with the map", '''
def crossing(D):
    return 12 * D
'''),
    ("3.1", "wrong", "an MLP twice as wide", '''
def crossing(D):
    return 4 * D
'''),
    ("3.1", "wrong", "the answer at one width", '''
def crossing(D):
    return 384
'''),
    ("3.1", "wrong", "one token too many", '''
def crossing(D):
    return 6 * D + 1
'''),
    ("3.1", "wrong", "a text", '''
def crossing(D):
    return "6 D"
'''),
    ("3.1", "wrong", "nearly a token too many", '''
def crossing(D):
    return 6 * D + 0.4
'''),
    ("3.1", "wrong", "no tokens at all", '''
def crossing(D):
    return 0
'''),
    ("3.1", "wrong", "digits in a text", '''
def crossing(D):
    return str(6 * D)
'''),
    ("3.1", "wrong", "right at multiples of 32 only", '''
def crossing(D):
    return D // 32 * 192
'''),
    ("3.1", "right", "from counts at two lengths", '''
def crossing(D):
    linear, attended = 24 * D**2, 4 * D
    return linear / attended + 1e-9
'''),
    # --- 3.2 ---
    ("3.2", "right", "the head's values, weight and bias", '''
def without_head(attention, n):
    less, h = copy.deepcopy(attention), attention.num_heads
    with torch.no_grad():
        for values in (less.qkv.weight, less.qkv.bias):
            values.unflatten(0, (3, h, -1))[2, n] = 0
    return less
'''),
    ("3.2", "right", "a new module with weights of its own", '''
def without_head(attention, n):
    D, h = attention.proj.in_features, attention.num_heads
    state = {name: value.clone() for name, value in attention.state_dict().items()}
    state["proj.weight"].view(D, h, D // h)[:, n] = 0
    less = SelfAttention(D, h)
    less.load_state_dict(state)
    return less
'''),
    ("3.2", "wrong", "changes the given module", '''
def without_head(attention, n):
    Dh = attention.proj.in_features // attention.num_heads
    attention.proj.weight.data[:, n * Dh : (n + 1) * Dh] = 0
    return attention
'''),
    ("3.2", "wrong", "a shallow copy", '''
def without_head(attention, n):
    less, Dh = copy.copy(attention), attention.proj.in_features // attention.num_heads
    less.proj.weight.data[:, n * Dh : (n + 1) * Dh] = 0
    return less
'''),
    ("3.2", "wrong", "rows of proj instead of columns", '''
def without_head(attention, n):
    less, Dh = copy.deepcopy(attention), attention.proj.in_features // attention.num_heads
    less.proj.weight.data[n * Dh : (n + 1) * Dh] = 0
    return less
'''),
    ("3.2", "wrong", "the head's queries, so that it looks evenly", '''
def without_head(attention, n):
    less, Dh = copy.deepcopy(attention), attention.proj.in_features // attention.num_heads
    less.qkv.weight.data[n * Dh : (n + 1) * Dh] = 0
    less.qkv.bias.data[n * Dh : (n + 1) * Dh] = 0
    return less
'''),
    ("3.2", "wrong", "the values' weight without their bias", '''
def without_head(attention, n):
    less, D = copy.deepcopy(attention), attention.proj.in_features
    Dh = D // attention.num_heads
    less.qkv.weight.data[2 * D + n * Dh : 2 * D + (n + 1) * Dh] = 0
    return less
'''),
    ("3.2", "wrong", "proj's bias too", '''
def without_head(attention, n):
    less, Dh = copy.deepcopy(attention), attention.proj.in_features // attention.num_heads
    less.proj.weight.data[:, n * Dh : (n + 1) * Dh] = 0
    less.proj.bias.data[:] = 0
    return less
'''),
    ("3.2", "wrong", "counts heads from 1", '''
def without_head(attention, n):
    less, Dh = copy.deepcopy(attention), attention.proj.in_features // attention.num_heads
    less.proj.weight.data[:, (n - 1) * Dh : n * Dh] = 0
    return less
'''),
    # --- 3.3 ---
    ("3.3", "right", "read off from what the pair does", '''
def fold(norm, linear):
    D = linear.in_features
    folded = nn.Linear(D, linear.out_features)
    with torch.no_grad():
        folded.bias.copy_(linear(norm.bias))
        folded.weight.copy_((linear(norm.bias + torch.diag(norm.weight)) - folded.bias).T)
    return folded
'''),
    ("3.3", "right", "a deep copy, changed", '''
def fold(norm, linear):
    folded = copy.deepcopy(linear)
    folded.bias.data += linear.weight.data @ norm.bias.data
    folded.weight.data *= norm.weight.data
    return folded
'''),
    ("3.3", "wrong", "the scale alone", '''
def fold(norm, linear):
    folded = copy.deepcopy(linear)
    folded.weight.data *= norm.weight.data
    return folded
'''),
    ("3.3", "wrong", "the shift meets the scaled weights", '''
def fold(norm, linear):
    folded = copy.deepcopy(linear)
    folded.weight.data *= norm.weight.data
    folded.bias.data += folded.weight.data @ norm.bias.data
    return folded
'''),
    ("3.3", "wrong", "loses the linear layer's bias", '''
def fold(norm, linear):
    folded = copy.deepcopy(linear)
    folded.bias.data = linear.weight.data @ norm.bias.data
    folded.weight.data *= norm.weight.data
    return folded
'''),
    ("3.3", "wrong", "no linear layer but both in one", '''
def fold(norm, linear):
    return lambda z: linear(z * norm.weight + norm.bias)
'''),
    ("3.3", "wrong", "changes both that are given", '''
def fold(norm, linear):
    linear.bias.data += linear.weight.data @ norm.bias.data
    linear.weight.data *= norm.weight.data
    norm.reset_parameters()
    return linear
'''),
    ("3.3", "wrong", "changes the linear layer that is given", '''
def fold(norm, linear):
    linear.bias.data += linear.weight.data @ norm.bias.data
    linear.weight.data *= norm.weight.data
    return linear
'''),
    # --- 4.1 ---
    ("4.1", "right", "counts what patchify cuts", '''
def count_tokens(H, W, P, class_token=True):
    return patchify(torch.zeros(1, 1, H, W), P).shape[1] + class_token
'''),
    ("4.1", "right", "the area, as a tensor", '''
def count_tokens(H, W, P, class_token=True):
    return torch.tensor(H * W // P**2 + int(class_token))
'''),
    ("4.1", "wrong", "always a class token", '''
def count_tokens(H, W, P, class_token=True):
    return (H // P) * (W // P) + 1
'''),
    ("4.1", "wrong", "square images only", '''
def count_tokens(H, W, P, class_token=True):
    return (H // P) ** 2 + class_token
'''),
    ("4.1", "wrong", "divides by the side, not the area", '''
def count_tokens(H, W, P, class_token=True):
    return H * W // P + class_token
'''),
    ("4.1", "wrong", "adds the sides", '''
def count_tokens(H, W, P, class_token=True):
    return H // P + W // P + class_token
'''),
    ("4.1", "wrong", "no class token unless asked", '''
def count_tokens(H, W, P, class_token=False):
    return (H // P) * (W // P) + class_token
'''),
    ("4.1", "wrong", "a float", '''
def count_tokens(H, W, P, class_token=True):
    return H / P * W / P + class_token
'''),
    # --- 4.2 ---
    ("4.2", "right", "the convolution's own grid", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(shift, dims=-1))
    kept = embed.proj(images).roll(shift // P, dims=-1)
    return (moved - kept).abs().max().item()
'''),
    ("4.2", "right", "columns by index, a tensor back", '''
def shift_error(embed, images, shift):
    P, W = embed.patch_size, images.shape[-1]
    pixels = (torch.arange(W) - shift) % W
    places = (torch.arange(W // P) - shift // P) % (W // P)
    moved = embed(images[..., pixels]).unflatten(1, (-1, W // P))
    kept = embed(images).unflatten(1, (-1, W // P))[:, :, places]
    return torch.dist(moved, kept, p=float("inf"))
'''),
    ("4.2", "wrong", "to the left", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(-shift, dims=-1))
    kept = embed.proj(images).roll(-(shift // P), dims=-1)
    return (moved - kept).abs().max().item()
'''),
    ("4.2", "wrong", "the mean", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(shift, dims=-1))
    kept = embed.proj(images).roll(shift // P, dims=-1)
    return (moved - kept).abs().mean().item()
'''),
    ("4.2", "wrong", "no absolute value", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(shift, dims=-1))
    kept = embed.proj(images).roll(shift // P, dims=-1)
    return (moved - kept).max().item()
'''),
    ("4.2", "wrong", "rows instead of columns", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(shift, dims=-2))
    kept = embed.proj(images).roll(shift // P, dims=-2)
    return (moved - kept).abs().max().item()
'''),
    ("4.2", "wrong", "the sequence rolled, not the grid", '''
def shift_error(embed, images, shift):
    moved = embed(images.roll(shift, dims=-1))
    kept = embed(images).roll(shift // embed.patch_size, dims=1)
    return (moved - kept).abs().max().item()
'''),
    ("4.2", "wrong", "patches of 16 whatever they are", '''
def shift_error(embed, images, shift):
    moved = embed.proj(images.roll(shift, dims=-1))
    kept = embed.proj(images).roll(shift // 16, dims=-1)
    return (moved - kept).abs().max().item()
'''),
    ("4.2", "wrong", "a length over the width", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(images.roll(shift, dims=-1))
    kept = embed.proj(images).roll(shift // P, dims=-1)
    return (moved - kept).norm(dim=1).max().item()
'''),
    ("4.2", "wrong", "looks at the photo, whatever is given", '''
def shift_error(embed, images, shift):
    P = embed.patch_size
    moved = embed.proj(photo.roll(shift, dims=-1))
    kept = embed.proj(photo).roll(shift // P, dims=-1)
    return (moved - kept).abs().max().item()
'''),
    # --- 4.3 ---
    ("4.3", "right", "the 1 x 1 first, layers in lists", '''
class EarlyConvs(nn.Module):
    def __init__(self, embed_dim):
        super().__init__()
        self.last = nn.Conv2d(192, embed_dim, kernel_size=1)
        widths = [3, 24, 48, 96, 192]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths[1:])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in zip(widths, widths[1:]))

    def forward(self, images):
        for conv, norm in zip(self.convs, self.norms):
            images = torch.relu(norm(conv(images)))
        B, D, rows, columns = (grid := self.last(images)).shape
        return grid.permute(0, 2, 3, 1).reshape(B, rows * columns, D)
'''),
    ("4.3", "right", "layers that find their width, ReLU in place", '''
class EarlyConvs(nn.Module):
    def __init__(self, embed_dim):
        super().__init__()
        parts = []
        for width in (24, 48, 96, 192):
            parts += [nn.LazyConv2d(width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*parts, nn.LazyConv2d(embed_dim, 1), nn.Flatten(2))

    def forward(self, images):
        return self.net(images).mT
'''),
]  # fmt: skip

# What the wrong stems of 4.3 do in place of "after" in this one.
STEM = '''
class EarlyConvs(nn.Module):
    def __init__(self, embed_dim):
        super().__init__()
        layers, before = [], 3
        for width in (24, 48, 96, 192):
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.stem = nn.Sequential(*layers, nn.Conv2d(before, embed_dim, 1))

    def forward(self, images):
        return self.stem(images).flatten(2).transpose(1, 2)
'''
CHANGES = {
    "a reshape without a transpose": (".flatten(2).transpose(1, 2)", ".flatten(2).reshape(len(images), 320, -1)"),
    "the width before the tokens": (".flatten(2).transpose(1, 2)", ".flatten(2)"),
    "tokens column by column": (".flatten(2).transpose(1, 2)", ".mT.flatten(2).transpose(1, 2)"),
    "no norm": ("[conv, nn.BatchNorm2d(width), nn.ReLU()]", "[conv, nn.ReLU()]"),
    "no activation": ("[conv, nn.BatchNorm2d(width), nn.ReLU()]", "[conv, nn.BatchNorm2d(width)]"),
    "the norm after the activation": ("nn.BatchNorm2d(width), nn.ReLU()", "nn.ReLU(), nn.BatchNorm2d(width)"),
    "another activation": ("nn.ReLU()", "nn.GELU()"),
    "strides 4, 2, 2, 1": ("stride=2", "stride={24: 4, 48: 2, 96: 2, 192: 1}[width]"),
    "no padding": ("stride=2, padding=1", "stride=2"),
    "other channels": ("(24, 48, 96, 192)", "(32, 64, 128, 192)"),
    "kernels of 2, which do not overlap": ("width, 3, stride=2, padding=1", "width, 2, stride=2"),
    "a width of 192 whatever is asked": ("embed_dim, 1)", "192, 1)"),
    "the last convolution left out": (", nn.Conv2d(before, embed_dim, 1))", ")"),
}
ANSWERS += [("4.3", "wrong", why, STEM.replace(*change)) for why, change in CHANGES.items()]
ANSWERS += [("4.3", "right", "one sequence of layers", STEM)]
