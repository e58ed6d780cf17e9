// The plan of a call of cpu_long.cpp, and where the rows of one head of a line are.
#pragma once

#include "axial_attention/axis.hpp"
#include "axial_attention/line_rows.hpp"

namespace vimpac {
namespace {

// The tensors as one type and the plan of the call.
template <class T>
struct Problem {
  const AxialCall& a;
  const T* qkv;          // (B, S, 3, N, Dh)
  const T* dout;         // (B, S, N, Dh)
  T* result;             // (B, S, N, Dh) or (B, S, 3, N, Dh)
  int parts;             // of a row of the result
  int64_t tokens, width; // of one clip; floats of a tile's row
  Axis axes[3];
  int64_t tasks;   // of one clip: the lines and heads of all axes
  float* partials; // (B, tasks, 1 or 2, parts, width): sums of [CLS], then those of the bias

  int64_t rows() const { return tokens + a.has_cls; }
  int64_t partial_size() const { return (a.dbias == nullptr ? 1 : 2) * parts * width; }
  const Axis& axis_of(int64_t head) const { return axes[head / (a.N / a.num_axes)]; }
  float* partial(int64_t line, int64_t head) const { // a line of all clips
    const Axis& axis = axis_of(head);
    const int64_t b = line / axis.lines, task = line % axis.lines * axis.heads;
    return partials +
           (b * tasks + axis.first_task + task + head - axis.first_head) * partial_size();
  }
};

// A head of a line: where its rows are. Row l of a line is its token l, and row `length` is [CLS].
template <class T>
struct Line {
  const Problem<T>& p;
  const Axis& axis;
  int64_t b, line, head;
  int64_t length, keys, first_row;
  float* partial;

  Line(const Problem<T>& p, const Axis& axis, int64_t b, int64_t line, int64_t head)
      : p(p), axis(axis), b(b), line(line), head(head), length(axis.length),
        keys(length + p.a.has_cls),
        first_row(axis.first_token(line, p.a.grid[1], p.a.grid[2]) + p.a.has_cls),
        partial(p.partial(b * axis.lines + line, head)) {}

  // The rows [first, first + count) of a (S, ...) tensor into a tile, [CLS] times `cls_scale`.
  template <class Row>
  void gather_rows(const T* clip,
                   int64_t row,
                   const float* bias,
                   int64_t first,
                   int64_t count,
                   float scale,
                   float cls_scale,
                   Row* tile) const {
    const int64_t tokens = first + count < length ? count : length - first;
    const T* const from = clip + (first_row + first * axis.token_step) * row;
    gather(from, bias, axis.token_step * row, tokens, p.a.Dh, p.width, scale, tile);
    if (tokens < count) {
      gather_row(clip, bias, p.a.Dh, cls_scale, tile + tokens * p.width);
    }
  }

  template <class Row>
  void gather_part(int part, int64_t first, int64_t count, float scale, Row* tile) const {
    const int64_t* const strides = p.a.qkv.strides;
    const T* const clip = p.qkv + b * strides[0] + part * strides[2] + head * strides[3];
    const float* const bias =
        p.a.bias == nullptr ? nullptr : p.a.bias + (part * p.a.N + head) * p.a.Dh;
    gather_rows(clip, strides[1], bias, first, count, scale, scale, tile);
  }

  // [CLS] of the result is the mean over the lines.
  template <class Row>
  void gather_dout(int64_t first, int64_t count, Row* tile) const {
    const T* const clip = p.dout + (b * p.rows() * p.a.N + head) * p.a.Dh;
    gather_rows(clip, p.a.N * p.a.Dh, nullptr, first, count, 1.0f, 1.0f / axis.lines, tile);
  }

  // Writes a tile's tokens to a part of the result. Adds its [CLS] row to the partial sum of [CLS],
  // and the sum of all its rows to the partial sum of the bias.
  void scatter_part(const float* tile, int part, int64_t first, int64_t count, float scale) const {
    const AxialCall& a = p.a;
    const int64_t row = p.parts * a.N * a.Dh, step = axis.token_step * row;
    const int64_t tokens = first + count < length ? count : length - first;
    T* const to = p.result + (b * p.rows() + first_row) * row + (part * a.N + head) * a.Dh;
    scatter(tile, step, tokens, a.Dh, p.width, scale, to + first * step);
    if (tokens < count) {
      accumulate(tile + tokens * p.width, p.width, scale, partial + part * p.width);
    }
    if (a.dbias != nullptr) {
      accumulate_rows(tile, count, p.width, scale, partial + (p.parts + part) * p.width);
    }
  }

  const uint8_t* read_padding(uint8_t* hidden) const {
    if (p.a.key_padding_mask == nullptr) {
      return nullptr;
    }
    const uint8_t* const clip = p.a.key_padding_mask + b * p.tokens + first_row - p.a.has_cls;
    for (int64_t l = 0; l < length; ++l) {
      hidden[l] = clip[l * axis.token_step];
    }
    if (keys > length) {
      hidden[length] = 0;
    }
    return hidden;
  }
};

} // namespace
} // namespace vimpac
