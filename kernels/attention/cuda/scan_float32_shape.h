// What scan_float32.h keeps in shared memory, and how rows of float come there as pieces.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cuda {
namespace detail {

// KEYS: features of query and key, a multiple of 16 up to 128; GROUPS: warpgroups, 1 or 2, of 64 value features each.
template <int KEYS, int GROUPS>
struct Float32Shape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64, kThreads = 128 * GROUPS;
  static constexpr int kBlocks = GROUPS == 1 ? 2 : 1;  // of a multiprocessor
  static constexpr int kPaddedKeys = (KEYS + 63) / 64 * 64;

  struct Shared {
    SwizzledMatrix<bf16, kRows, kPaddedKeys> query[3], key[3];
    SwizzledMatrix<bf16, kRows, kRows> scores[3];  // weighted; (row of query, row of key)
    // Where rows are copied to before they are split.
    alignas(16) float raw_query[kRows * KEYS];
    alignas(16) float raw_key[kRows * KEYS];
    ScanDecayShared<kRows> decays;
    ScanChunk chunks[3];  // the one that is computed and the two after it
    SharedWalk walk;      // of thread 0
  };
  static_assert(kBlocks * (sizeof(Shared) + 1024) <= 228 * 1024);
};

// The rows of a chunk of one head, of up to COLS features: copied asynchronously, then split. Features beyond the
// view's and rows beyond the chunk's are 0. A thread splits what it has copied itself, in units of four features.
template <int THREADS, int COLS>
class Float32Rows {
 public:
  __device__ __forceinline__ Float32Rows(const HeadsView& view, int64_t batch, int64_t head_index, const bool& from_end,
                                         uint32_t raw)
      : view_(view), from_end_(from_end), raw_(raw + threadIdx.x * 16) {
    first_ = head<const float>(view, batch, 0, head_index) + row() * step() + column();
  }

  // Starts to copy; `token` is that of row 0. `aligned`: a unit is at a multiple of 16 bytes, and all of it is there or
  // nothing.
  __device__ __forceinline__ void fetch(int64_t token, int rows, bool aligned) const {
    if (!is_active()) return;
    const float* from = first_ + token * view_.length_stride;
    const auto features = static_cast<int>(view_.dim) - column();
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kUnits; ++i, from += kRowStep * step()) {
        const bool is_there = features > 0 && row() + i * kRowStep < rows;
        copy_async_if(is_there, raw_ + i * kActive * 16, is_there ? from : origin());
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kUnits; ++i, from += kRowStep * step()) {
        const int there = row() + i * kRowStep < rows ? features : 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          copy_async_float_if(there > e, raw_ + i * kActive * 16 + e * 4, there > e ? from + e : origin());
        }
      }
    }
  }

  // Splits what has been copied into three pieces.
  template <int MATRIX_COLS>
  __device__ __forceinline__ void split(SwizzledMatrix<bf16, 64, MATRIX_COLS> (&to)[3]) const {
    if (!is_active()) return;
    const uint32_t panel = shared_address(to[0].data) + column() / 64 * (64 * 128);
    const uint32_t at = panel + row() * 128 + ((column() % 64 / 8) ^ (row() % 8)) * 16 + column() % 8 * 2;
    constexpr int kAtOnce = 4;  // units whose loads are not behind stores
#pragma unroll
    for (int first = 0; first < kUnits; first += kAtOnce) {
      Vec<float, 4> fours[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) fours[u] = load_shared<float>(raw_ + (first + u) * kActive * 16);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const Vec<float, 4>& four = fours[u];
        unsigned left[3], right[3];
        cuda::split<3, true>(four[0], four[1], left);
        cuda::split<3, true>(four[2], four[3], right);
        // Rows that lie 4 apart differ in the swizzle.
        const uint32_t place = (kRowStep == 4 && u % 2 == 1 ? at ^ 64 : at) + (first + u) * (kRowStep * 128);
#pragma unroll
        for (int p = 0; p < 3; ++p) {
          asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(place + p * static_cast<uint32_t>(sizeof(to[0]))),
                       "r"(left[p]), "r"(right[p])
                       : "memory");
        }
      }
    }
  }

 private:
  static constexpr int kPlaces = COLS / 4;  // of a row
  static constexpr int kRowStep = THREADS / kPlaces >= 16 ? 16 : THREADS / kPlaces >= 8 ? 8 : 4;
  static constexpr int kActive = kRowStep * kPlaces, kUnits = 64 / kRowStep;
  static_assert(kActive <= THREADS && kUnits % 4 == 0);

  static __device__ __forceinline__ bool is_active() {
    return kActive == THREADS || static_cast<int>(threadIdx.x) < kActive;
  }
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kPlaces; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kPlaces * 4; }
  // From a row to the next.
  __device__ __forceinline__ int64_t step() const { return from_end_ ? -view_.length_stride : view_.length_stride; }
  // An address that is there, of row 0 of the sequence.
  __device__ __forceinline__ const float* origin() const { return first_ - row() * step() - column(); }

  const float* first_;  // the thread's place in the row of token 0, and its row of a chunk
  const HeadsView& view_;
  const bool& from_end_;
  uint32_t raw_;  // the thread's first unit
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
