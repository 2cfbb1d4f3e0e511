// The decays of a chunk in shared memory, as the kernels on tensor cores need them.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan.h"

namespace heddle::kernels::cuda {
namespace detail {

// Of a chunk of at most ROWS tokens.
template <int ROWS>
struct alignas(16) ScanDecayShared {
  float2 sums[ROWS];         // of log decays; negated in a scan from the end
  float in[ROWS], to[ROWS];  // the weights of a row in out and in the state
  float2 whole;              // as the sum of two floats: a long sequence multiplies many of them
};

// Finds the decays of one chunk after the other. Each of the first threads has a row, the one after them the chunk.
template <int ROWS>
class ScanDecays {
 public:
  __device__ __forceinline__ ScanDecays(const ScanArgs<float>& args, int64_t state_head)
      : args_(args), decay_(args, state_head) {}

  // Loads what put() needs of the chunk.
  __device__ __forceinline__ void fetch(const ScanChunk& chunk) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread > ROWS || is_put(chunk)) return;
    row_ = RowDecay<float>(decay_, chunk, thread < chunk.rows ? args_.token(chunk, thread) : chunk.begin);
  }
  // Writes the decays of the chunk that was fetched last, unless they are those that were put last.
  __device__ __forceinline__ void put(const ScanChunk& chunk, ScanDecayShared<ROWS>& to) {
    if (is_put(chunk)) return;
    rows_ = chunk.rows;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < ROWS) {
      const bool is_there = thread < chunk.rows, from_end = args_.from_end;
      const float from_begin = is_there ? row_.from_begin() : 0.0f, to_last = is_there ? row_.to_last() : 0.0f;
      to.sums[thread] = !is_there ? float2{0.0f, 0.0f} : from_end ? negated(row_.own) : row_.own;
      to.in[thread] = from_end ? to_last : from_begin;
      to.to[thread] = args_.inner * (from_end ? from_begin : to_last);
    } else if (thread == ROWS) {
      const double whole = row_.whole();
      const float high = static_cast<float>(whole);
      to.whole = {high, static_cast<float>(whole - static_cast<double>(high))};
    }
  }

 private:
  // With one decay for all tokens those of a chunk depend on its length alone.
  __device__ __forceinline__ bool is_put(const ScanChunk& chunk) const {
    return decay_.sums == nullptr && chunk.rows == rows_;
  }

  const ScanArgs<float>& args_;
  HeadDecay<float> decay_;
  RowDecay<float> row_;
  int rows_ = -1;  // of the chunk whose decays are in shared memory
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
