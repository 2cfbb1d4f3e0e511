// What the warpgroups of scan_warpgroup.h share: sizes, shared memory and a few instructions.
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

// KEYS: features of query and key, 64 or 128; GROUPS: consumers.
template <int KEYS, int GROUPS>
struct WarpgroupShape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64, kStages = 3;
  static constexpr int kThreads = 128 * (GROUPS + 1), kBlocks = GROUPS == 1 ? 2 : 1;
  // Of a thread. They sum up to what a multiprocessor has.
  static constexpr int kProducerRegisters = GROUPS == 1 ? 80 : 104, kConsumerRegisters = GROUPS == 1 ? 176 : 200;

  struct Rows {
    SwizzledMatrix<bf16, kRows, KEYS> query, key;
    SwizzledMatrix<bf16, kRows, kValues> value;  // and, once a consumer has read it, its part of out
  };
  struct Scores {
    SwizzledMatrix<bf16, kRows, kRows> pieces[2];  // (row of query, row of key)
  };
  struct Chunk {
    float2 sums[kRows];  // negated in a scan from the end
    float in[kRows], to[kRows];
    float whole;
    int rows;  // 0 after the last chunk
    int64_t begin;
    bool starts_anew, is_forgotten;  // the state after the chunk is not needed
  };
  struct Shared {
    Rows rows[kStages];
    Scores scores[2];
    Chunk chunks[kStages];
    SharedBarrier ready[kStages], free[kStages];  // the stage is written; it is read by all consumers
  };
};

// From the first row of a SwizzledMatrix of 64 rows to a column, a multiple of 16; and a descriptor of what lies
// `bytes` further on.
HEDDLE_HOST_DEVICE constexpr int col_bytes(int col) { return col / 64 * (64 * 128) + col % 64 * 2; }
__device__ __forceinline__ uint64_t further(uint64_t descriptor, int bytes) { return descriptor + bytes / 16; }

// Where the block stands: which head and features it computes.
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

// Four 8 x 8 matrices, each lane giving the address of one row.
__device__ __forceinline__ void load_transposed(uint32_t address, unsigned (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
// 16 bytes from shared to global memory.
__device__ __forceinline__ void copy_unit(uint32_t from, void* to) {
  asm volatile(
      "{\n\t.reg .b32 a, b, c, d;\n\t"
      "ld.shared.v4.b32 {a, b, c, d}, [%0];\n\t"
      "st.global.v4.b32 [%1], {a, b, c, d};\n\t}" ::"r"(from),
      "l"(to)
      : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
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

}  // namespace detail
}  // namespace heddle::kernels::cuda
