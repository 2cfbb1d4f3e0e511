// What the warpgroups of the scan in scan_warpgroup.h share: sizes, shared memory and a few instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/runtime/host_device.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/mma.h"

namespace heddle::kernels::cuda {
namespace detail {

// A matrix (64, COLS) of floats as operand B of products in tf32, COLS of depth: panels (64, 32) with the swizzle of
// SwizzledMatrix. Of each 8 columns those of even numbers stand before the others, so that an accumulator of wgmma is
// the operand A that goes with it, register by register.
template <int COLS>
struct alignas(1024) FloatMatrix {
  float data[64 * COLS];
};

// KEYS: features of query and key, 64 or 128; GROUPS: consumers.
template <int KEYS, int GROUPS>
struct WarpgroupShape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64;
  static constexpr int kStages = 3;                    // of keys, values and decays
  static constexpr int kThreads = 128 * (GROUPS + 2);  // a loader, a scorer and the consumers
  // Of a thread. Together they are at most what a multiprocessor has, and so is what a kernel starts with.
  static constexpr int kLoaderRegisters = 32, kScorerRegisters = GROUPS == 1 ? 120 : 80;
  static constexpr int kConsumerRegisters = GROUPS == 1 ? 240 : 200;

  struct Rows {
    SwizzledMatrix<bf16, kRows, KEYS> key;
    SwizzledMatrix<bf16, kRows, kValues> value;  // and, once a consumer has read it, its part of out
  };
  // What the scorer makes of a chunk's queries: scores (row of query, row of key) as the sum of two pieces.
  struct Scores {
    SwizzledMatrix<bf16, kRows, kRows> pieces[2];
    FloatMatrix<KEYS> query;
  };
  struct Chunk {
    float in[kRows], to[kRows];
    float whole;
    int rows;  // 0 after the last chunk
    int64_t begin;
    bool starts_anew, is_forgotten;  // the state after the chunk is not needed
  };
  struct Shared {
    Rows rows[kStages];
    SwizzledMatrix<bf16, kRows, KEYS> query[2];
    Scores scores[2];
    Chunk chunks[kStages];
    float2 sums[2][kRows];  // of log decays, negated in a scan from the end
    SharedBarrier loaded[kStages], ready[kStages], free[kStages];  // by the loader, the scorer and all consumers
    SharedBarrier query_free[2];                                   // by the scorer
  };
};

// Which head and features the block computes.
template <class Shape>
struct WarpgroupPlace {
  int64_t head, batch, state_head, first_value;

  __device__ __forceinline__ explicit WarpgroupPlace(const ScanArgs<float>& args) {
    const auto tiles = static_cast<unsigned>(parts_of(args.value.dim, Shape::kValues));
    const unsigned row = blockIdx.x / tiles, heads = static_cast<unsigned>(args.query.heads);
    first_value = int64_t{blockIdx.x % tiles} * Shape::kValues;
    head = row % heads;
    batch = row / heads;
    state_head = args.state_head(batch, head);
  }
};

// Parity of the phase of a barrier that its `use`-th use ends, counted from 0.
__device__ __forceinline__ unsigned parity_of(unsigned use) { return use % 2; }

// From the first row of a SwizzledMatrix of 64 rows to a column, a multiple of 16; and a descriptor of what lies `bytes`
// further on.
HEDDLE_HOST_DEVICE constexpr int col_bytes(int col) { return col / 64 * (64 * 128) + col % 64 * 2; }
__device__ __forceinline__ uint64_t further(uint64_t descriptor, int bytes) { return descriptor + bytes / 16; }
// Of 8 elements in a SwizzledMatrix of 64 rows, in bytes; col is a multiple of 8.
__device__ __forceinline__ uint32_t unit_offset(unsigned row, unsigned col) {
  return col / 64 * (64 * 128) + row * 128 + ((col % 64 / 8) ^ (row % 8)) * 16;
}

// ldmatrix and stmatrix: four 8 x 8 matrices, each lane giving the address of one row.
__device__ __forceinline__ void load_transposed(uint32_t address, unsigned (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
template <bool TRANSPOSE>
__device__ __forceinline__ void store_matrices(uint32_t address, const unsigned (&words)[4]) {
  if constexpr (TRANSPOSE) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}
__device__ __forceinline__ uint4 load_unit(uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}
__device__ __forceinline__ void store_unit(uint32_t to, const uint4& words) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

#define HEDDLE_TILE(n) "+f"(c[n].values[0]), "+f"(c[n].values[1]), "+f"(c[n].values[2]), "+f"(c[n].values[3])
// c (64, 64) (=) a b, or (+=) where `add`, in tf32, which ignores the last 13 bits of a float: starts the product. `a` is
// a tile (64, 8) of an accumulator, b a descriptor of 8 columns of a FloatMatrix.
__device__ __forceinline__ void wgmma_floats(FragmentC (&c)[8], const FragmentC& a, uint64_t b, bool add) {
  asm volatile(
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %37, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, add, 1, 1;\n\t}"
      : HEDDLE_TILE(0), HEDDLE_TILE(1), HEDDLE_TILE(2), HEDDLE_TILE(3), HEDDLE_TILE(4), HEDDLE_TILE(5), HEDDLE_TILE(6),
        HEDDLE_TILE(7)
      : "r"(__float_as_uint(a.values[0])), "r"(__float_as_uint(a.values[2])), "r"(__float_as_uint(a.values[1])),
        "r"(__float_as_uint(a.values[3])), "l"(b), "r"(static_cast<int>(add)));
}
#undef HEDDLE_TILE

}  // namespace detail
}  // namespace heddle::kernels::cuda
