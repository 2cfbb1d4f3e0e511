// What scan_float32.h keeps in shared memory, and how rows of float come there as pieces.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>
#include <new>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cuda {
namespace detail {

// A ChunkWalk in shared memory, so that it takes no registers.
class Float32Walk {
 public:
  __device__ __forceinline__ void start(const ScanArgs<float>& args, int64_t state_head, int size) {
    new (&get()) ChunkWalk<float>(args, args.span(), state_head, size);
  }
  __device__ __forceinline__ ChunkWalk<float>& get() { return *reinterpret_cast<ChunkWalk<float>*>(bytes_); }

 private:
  alignas(16) unsigned char bytes_[sizeof(ChunkWalk<float>)];
};

// KEYS: features of query and key, 64 or 128; GROUPS: warpgroups, of 64 value features each.
template <int KEYS, int GROUPS>
struct Float32Shape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64, kThreads = 128 * GROUPS;
  static constexpr int kBlocks = GROUPS == 1 ? 2 : 1;  // of a multiprocessor
  static constexpr bool kOneRaw = GROUPS > 1;          // there is no room for copies of key and value at once
  static constexpr int kWidest = KEYS > kValues ? KEYS : kValues;

  struct Shared {
    SwizzledMatrix<bf16, kRows, KEYS> key[3];
    SwizzledMatrix<bf16, kRows, 64> value[GROUPS][3];
    SwizzledMatrix<bf16, KEYS, 64> state[GROUPS][3];
    float raw[kOneRaw ? 1 : 2][kRows * kWidest];
    ScanDecayShared<kRows> decays;
    ScanChunk chunks[3];  // the one that is computed and the two after it
    Float32Walk walk;     // of thread 0

    // Where rows are copied to before they are split. Without out nothing reads the pieces of the state.
    __device__ __forceinline__ void* raw_key() { return raw[0]; }
    template <bool OUT>
    __device__ __forceinline__ void* raw_value() {
      if constexpr (!kOneRaw) {
        return raw[1];
      } else if constexpr (OUT) {
        return raw[0];
      } else {
        return state;
      }
    }
  };
};

// The features from `offset` on of the rows of a chunk of one head: copied asynchronously, 16 bytes at a time, then
// split. Features beyond the view's and rows beyond the chunk's are 0. A thread splits what it has copied itself.
template <int THREADS, int COLS>
class Float32Rows {
 public:
  __device__ __forceinline__ Float32Rows(const HeadsView& view, int64_t batch, int64_t head_index, int64_t offset,
                                         const bool& from_end, uint32_t raw)
      : view_(view), from_end_(from_end), raw_(raw + threadIdx.x * 16) {
    has_features_ = offset + column() < view.dim;
    first_ = head<const float>(view, batch, 0, head_index) + (has_features_ ? offset + column() : 0) + row() * step();
  }

  // Starts to copy; `token` is that of row 0.
  __device__ __forceinline__ void fetch(int64_t token, int rows) const {
    const float* from = first_ + token * view_.length_stride;
    const int there = has_features_ ? rows - row() : 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i, from += kRowStep * step()) {
      const bool is_there = i * kRowStep < there;
      copy_async_if(is_there, raw_ + i * THREADS * 16, is_there ? from : first_origin());
    }
  }

  // Splits what has been copied into matrices of 64 or 128 columns, three pieces each. DROP: writes 0 in place of what
  // is not finite; returns false where the thread had such numbers.
  template <bool DROP, int MATRIX_COLS>
  __device__ __forceinline__ bool split(SwizzledMatrix<bf16, 64, MATRIX_COLS> (&to)[3]) const {
    return split_to<DROP>(shared_address(to[0].data) + column() / 64 * (64 * 128), sizeof(to[0]));
  }
  template <bool DROP, int GROUPS>
  __device__ __forceinline__ bool split(SwizzledMatrix<bf16, 64, 64> (&to)[GROUPS][3]) const {
    return split_to<DROP>(shared_address(to[0][0].data) + column() / 64 * static_cast<int>(sizeof(to[0])),
                          sizeof(to[0][0]));
  }

 private:
  static constexpr int kPlaces = COLS / 4, kRowStep = THREADS / kPlaces, kUnits = 64 / kRowStep;
  static_assert(kRowStep == 8, "all rows of a thread have the same swizzle");

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / kPlaces; }
  static __device__ __forceinline__ int column() { return static_cast<int>(threadIdx.x) % kPlaces * 4; }
  // From a row to the next.
  __device__ __forceinline__ int64_t step() const { return from_end_ ? -view_.length_stride : view_.length_stride; }
  __device__ __forceinline__ const float* first_origin() const { return first_ - row() * step(); }

  template <bool DROP>
  __device__ __forceinline__ bool split_to(uint32_t panel, uint32_t piece_bytes) const {
    const uint32_t at = panel + row() * 128 + ((column() % 64 / 8) ^ row()) * 16 + column() % 8 * 2;
    bool is_finite = true;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      Vec<float, 4> four = load_shared<float>(raw_ + i * THREADS * 16);
      if constexpr (DROP) {
        const float zero = fmaf(four[0], 0.0f, fmaf(four[1], 0.0f, fmaf(four[2], 0.0f, four[3] * 0.0f)));
        if (zero != 0.0f) {  // NaN
          is_finite = false;
#pragma unroll
          for (int e = 0; e < 4; ++e) four[e] = isfinite(four[e]) ? four[e] : 0.0f;
        }
      }
      unsigned left[3], right[3];
      cuda::split<3, true>(four[0], four[1], left);
      cuda::split<3, true>(four[2], four[3], right);
#pragma unroll
      for (int p = 0; p < 3; ++p) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at + p * piece_bytes + i * (kRowStep * 128)),
                     "r"(left[p]), "r"(right[p])
                     : "memory");
      }
    }
    return is_finite;
  }

  const float* first_;  // the thread's place in the row of token 0, and its row of a chunk
  const HeadsView& view_;
  const bool& from_end_;
  uint32_t raw_;  // the thread's first unit
  bool has_features_;
};

// Four 8 x 8 matrices from and to shared memory, each lane giving the address of one row.
__device__ __forceinline__ void load_four_transposed(uint32_t from, unsigned (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void store_four_matrices(uint32_t to, const unsigned (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
               "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace detail
}  // namespace heddle::kernels::cuda
