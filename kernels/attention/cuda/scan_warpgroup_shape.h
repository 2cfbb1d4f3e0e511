// What the warps of scan_warpgroup.h share: sizes, shared memory and a few instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/runtime/host_device.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/tensor_map.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/mma.h"

namespace heddle::kernels::cuda {
namespace detail {

// The rows of the tensors of a scan, for the copy engine, and what else a block needs to know.
struct WarpgroupScan {
  CUtensorMap query, key, value, out;
  ScanArgs<float> args;
};

// Where out of the scan of a part of the features of query and key goes: to its tensor; to args.partial_out (=); or to
// its tensor as the sum of both.
enum class PartialOut { none, written, added };

// KEYS: features of query and key, 64 or 128; GROUPS: consumers.
template <int KEYS, int GROUPS>
struct WarpgroupShape {
  static constexpr int kKeys = KEYS, kGroups = GROUPS, kValues = 64 * GROUPS, kRows = 64;
  static constexpr int kThreads = 128 * (GROUPS + 2), kBlocks = GROUPS == 1 ? 2 : 1;
  static constexpr int kWeighers = 3;  // warps
  // Of a thread. They sum up to what a multiprocessor has.
  static constexpr int kScorerRegisters = GROUPS == 1 ? 72 : 80, kConsumerRegisters = GROUPS == 1 ? 128 : 192,
                       kLoaderRegisters = GROUPS == 1 ? 40 : 48;
  // Two blocks share the memory of a multiprocessor where there is one consumer.
  static constexpr int kWeightedStages = GROUPS == 1 ? 1 : 2;

  using Keys = SwizzledMatrix<bf16, kRows, KEYS>;
  using Values = SwizzledMatrix<bf16, kRows, kValues>;
  struct Scores {
    SwizzledMatrix<bf16, kRows, kRows> pieces[2];  // (row of query, row of key)
  };
  struct WeightedKeys {
    Keys pieces[2];
  };
  // Rows are in the order of tokens, whatever the direction of the scan.
  struct Chunk {
    float2 sums[kRows];  // of log decays, from the begin of the chunk; with one decay for all tokens written once
    float in[kRows], whole;
    int begin, rows;                 // no rows: after the last chunk
    bool starts_anew, is_forgotten;  // the state after the chunk is not needed
  };
  struct alignas(256) OutTile {
    bf16 data[kRows * 16];
  };
  struct Shared {
    Keys query[3], key[2];
    Values value;
    OutTile out[4 * GROUPS];  // of each warp of the consumers
    Scores scores[2];
    WeightedKeys weighted[kWeightedStages];
    Chunk chunks[3];
    SharedBarrier loaded[3], value_loaded[2];  // query, key and the chunk are there; the value is
    SharedBarrier ready[2];                    // scores and weighted keys are there
    // All consumers have read the value; the scores and all else of the chunk; its weighted keys.
    SharedBarrier value_free, free[2], weighted_free;
    SharedBarrier before_loaded[4 * GROUPS];  // what out is added to
  };
};

// From the first row of a SwizzledMatrix of 64 rows to a column, a multiple of 16; and a descriptor of what lies
// `bytes` further on.
HEDDLE_HOST_DEVICE constexpr int col_bytes(int col) { return col / 64 * (64 * 128) + col % 64 * 2; }
__device__ __forceinline__ uint64_t further(uint64_t descriptor, int bytes) { return descriptor + bytes / 16; }

// Arrives for a warp: what its lanes have read and written before comes before what others do who wait.
__device__ __forceinline__ void arrive(SharedBarrier& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier.arrive();
}

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

// exp(a - b) and exp(a) of sums of log decays.
__device__ __forceinline__ float power_between(float2 a, float2 b) {
  const float2 exponent = difference(a, b);
  return fast_exp2(exponent.x + exponent.y);
}
__device__ __forceinline__ float power_of(float2 a) { return fast_exp2(a.x + a.y); }

// The number, of which the compiler knows nothing: so it computes what depends on it where it is needed, instead of
// keeping it in registers.
__device__ __forceinline__ int opaque(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// Four 8 x 8 matrices, each lane giving the address of one row.
__device__ __forceinline__ void load_transposed(uint32_t address, unsigned (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}
// 16 bytes in shared memory.
__device__ __forceinline__ uint4 load_words(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}
__device__ __forceinline__ void store_shared(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
}

}  // namespace detail
}  // namespace heddle::kernels::cuda
