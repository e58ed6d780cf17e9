"""What the axial attention kernels compute per tile: its rows, masks, probabilities and dropout."""

import triton
import triton.language as tl

from vimpac_kernels.runtime.triton_common import keep_each, keep_rows

FP32_TERMS = tl.constexpr(16)  # of one fp32 product: a thread holds its operands in registers
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_dot(sums, a, b, WIDEN: tl.constexpr):
    """sums + a @ b with fp32 sums, exact products of fp32 included (no TF32).

    Triton's interpreter would multiply the bit patterns of bf16, so `WIDEN` them there.
    """
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    elif a.dtype == tl.float32:
        return _add_fp32_dot(sums, a, tl.trans(b))
    else:
        return tl.dot(a, b, sums)


@triton.jit
def _add_fp32_dot(
    sums,  # (M, N)
    a,  # (M, K)
    b,  # (N, K)
):
    """sums + a @ b^T on CUDA cores, in products short enough for their operands' registers."""
    K: tl.constexpr = a.shape[1]
    if K > FP32_TERMS:
        a_even, a_odd = tl.split(tl.reshape(a, (a.shape[0], K // 2, 2)))
        b_even, b_odd = tl.split(tl.reshape(b, (b.shape[0], K // 2, 2)))
        return _add_fp32_dot(_add_fp32_dot(sums, a_even, b_even), a_odd, b_odd)
    else:
        return tl.dot(a, tl.trans(b), sums, input_precision="ieee")


@triton.jit
def pick(group, a, b, c):
    return tl.where(group == 0, a, tl.where(group == 1, b, c))


@triton.jit
def unit(T, H, W, heads, tiles0, tiles1, tiles2, AXES: tl.constexpr, B, BLOCK: tl.constexpr):
    """Maps the program to its unit: (clip, head, tile, axis, L, lines of the axis, tiles)."""
    pid = tl.program_id(0)
    first1 = B * heads * tiles0
    first2 = first1 + B * heads * tiles1
    group = (pid >= first1).to(tl.int32) + (pid >= first2).to(tl.int32)
    unit = pid - pick(group, 0, first1, first2)
    axis = pick(group, AXES % 4, AXES // 4 % 4, AXES // 16)
    tiles = pick(group, tiles0, tiles1, tiles2)
    length = pick(axis, T, H, W)
    head = group * heads + unit % heads
    tile = unit // heads % tiles
    clip = unit // (heads * tiles)
    return clip, head, tile, axis, length, T * H * W // length, tiles


@triton.jit
def tile_rows(tile, axis, length, lines, T, H, W, BLOCK: tl.constexpr):
    """Per row of the tile: line, number in the line, token in the clip, and whether it exists."""
    row = tl.arange(0, BLOCK)
    held = BLOCK // length
    slot = row // length
    line = tile * held + slot
    index = row - slot * length
    inner = pick(axis, H * W, W, 1)
    token = line // inner * pick(axis, 0, H * W, W) + line % inner + index * pick(axis, H * W, W, 1)
    live = (slot < held) & (line < lines)
    return line, index, token.to(tl.int64), live, slot, held  # offsets may pass 2^31


@triton.jit
def load_rows(base, token, first, stride, live, column, COLUMNS: tl.constexpr):
    """Columns from `column` on of the tile's rows, (BLOCK, COLUMNS), and of row 0 of the clip,
    (COLUMNS,) fp32: [CLS] if there is one."""
    d = column + tl.arange(0, COLUMNS)
    at = base + (token + first)[:, None] * stride + d[None, :]
    return tl.load(at, mask=live[:, None], other=0.0), tl.load(base + d).to(tl.float32)


@triton.jit
def reciprocal(x):
    """1 / x and a step of Newton's: `/` is an approximation on a GPU, whose error a row shares."""
    y = 1.0 / x
    return tl.fma(y, tl.fma(-x, y, 1.0), y)


@triton.jit
def add_products(
    sums,  # (BLOCK, BLOCK)
    column,  # (BLOCK,)
    row,  # (BLOCK,)
    self,  # scalar
    a,  # (BLOCK, COLUMNS)
    b,  # (BLOCK, COLUMNS)
    a_cls,  # (COLUMNS,) fp32
    b_cls,  # (COLUMNS,) fp32
    HAS_CLS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Adds a b^T in fp32: tile by tile, and the tile's rows of a and of b, then [CLS] of a, by the
    other's [CLS]."""
    if HAS_CLS:  # before the tile's product, which then is the last to need a and b
        column += tl.sum(a.to(tl.float32) * b_cls[None, :], 1)
        row += tl.sum(b.to(tl.float32) * a_cls[None, :], 1)
        self += tl.sum(a_cls * b_cls, 0)
    return add_dot(sums, a, tl.trans(b), WIDEN), column, row, self


@triton.jit
def softmax(
    s,  # (BLOCK, BLOCK): q k^T of the tile
    s_column,  # (BLOCK,): with [CLS]'s key
    s_row,  # (BLOCK,): of [CLS]'s query
    s_self,  # scalar: of [CLS] with itself
    allowed,  # (BLOCK, BLOCK)
    own,  # (SLOTS, BLOCK): keys of each line
    scale,
    HAS_CLS: tl.constexpr,
):
    """Softmax of the token queries, (BLOCK, BLOCK) and [CLS]'s column, and of the [CLS] queries."""
    s = tl.where(allowed, s * scale, -float("inf"))
    top = tl.max(s, 1)
    if HAS_CLS:
        column = s_column * scale
        top = tl.maximum(top, column)
    else:
        column = tl.zeros_like(top) - float("inf")
        top = tl.where(tl.max(allowed.to(tl.int32), 1) == 0, 0.0, top)  # a line without any key
    p, p_column = tl.exp2((s - top[:, None]) * LOG2E), tl.exp2((column - top) * LOG2E)
    total = tl.sum(p, 1) + p_column
    # 0 stays 0; NaN, of scores that are not finite, stays NaN.
    inverse = tl.where(total > 0, reciprocal(total), total)
    p, p_column = p * inverse[:, None], p_column * inverse
    if HAS_CLS:
        s_row = tl.where(own, (s_row * scale)[None, :], -float("inf"))
        s_self *= scale
        row_top = tl.maximum(tl.max(s_row, 1), s_self)
        row, self = tl.exp2((s_row - row_top[:, None]) * LOG2E), tl.exp2((s_self - row_top) * LOG2E)
        row_inverse = reciprocal(tl.sum(row, 1) + self)
        row = tl.sum(row * row_inverse[:, None], 0)  # a key is in one line
        self = self * row_inverse
    else:
        row, self = tl.zeros_like(top), tl.sum(tl.zeros_like(own.to(tl.float32)), 1)
    return p, p_column, row, self  # (BLOCK, BLOCK), (BLOCK,), (BLOCK,), (SLOTS,)


@triton.jit
def products(
    w,  # (BLOCK, BLOCK)
    w_column,  # (BLOCK,): of [CLS]'s row of x
    w_row,  # (BLOCK,): of the rows of x for [CLS]
    w_self,  # scalar: of [CLS]'s row for itself
    x,  # (BLOCK, COLUMNS)
    x_cls,  # (COLUMNS,) fp32
    HAS_CLS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Sums of the rows of x by weights, (BLOCK, COLUMNS), and for [CLS], (COLUMNS,), in fp32."""
    y_cls = tl.zeros_like(x_cls)
    if HAS_CLS:
        y_cls = tl.sum(w_row[:, None] * x.to(tl.float32), 0) + w_self * x_cls
    y = add_dot(tl.zeros(x.shape, tl.float32), w, x, WIDEN)
    if HAS_CLS:
        y += w_column[:, None] * x_cls[None, :]
    return y, y_cls


@triton.jit
def keep_factors(
    seed,
    threshold,
    line,
    index,
    own_line,  # (SLOTS,)
    length,
    last,  # head | axis << 16
    keep_scale,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dropout factors, 0 or `keep_scale`, for everything `probabilities` returns."""
    zero = tl.zeros((BLOCK, BLOCK), tl.int32)
    if SLOTS == 1:  # column == key number, so eight decisions share a call
        flat = tl.zeros((BLOCK, 1), tl.int32)
        p = keep_rows(seed, threshold, index[:, None], line[:, None], flat + last, BLOCK, BLOCK)
    else:
        p = keep_each(
            seed,
            threshold,
            index[None, :] + zero,
            index[:, None] + zero,
            line[:, None] + zero,
            zero + last,
        )
    flat = tl.zeros((BLOCK,), tl.int32)
    column = keep_each(seed, threshold, flat + length, index, line, flat + last)
    row = keep_each(seed, threshold, index, flat + length, line, flat + last)
    thin = tl.zeros((SLOTS,), tl.int32)
    self = keep_each(seed, threshold, thin + length, thin + length, own_line, thin + last)
    return (
        tl.where(p, keep_scale, 0.0),
        tl.where(column, keep_scale, 0.0),
        tl.where(row, keep_scale, 0.0),
        tl.where(self, keep_scale, 0.0),
    )


@triton.jit
def masks(line, live, slot, held, tile, lines, token, padding, clip, tokens, PADDED: tl.constexpr,
           SLOTS: tl.constexpr):  # fmt: skip
    """Which (query, key) pairs of the tile, and which keys of each line, take part."""
    key = live
    if PADDED:
        hidden = tl.load(padding + clip.to(tl.int64) * tokens + token, mask=live, other=1)
        key = live & (hidden == 0)
    number = tl.arange(0, SLOTS)
    own = (slot[None, :] == number[:, None]) & key[None, :]
    exists = (number < held) & (tile * held + number < lines)
    return (slot[:, None] == slot[None, :]) & key[None, :], own, exists
