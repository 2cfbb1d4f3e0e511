// The sizes of the scan of scan_tensor.h, and what it keeps in shared memory.
#pragma once

#include <type_traits>

#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// KEYS: key features; VALUES: value features of the block; ROWS: tokens of a chunk. DECAY: the scan adds to the
// gradient of the log decays. The rows of 16-bit types are copied asynchronously while the chunk before is computed;
// floats are split into pieces when they are loaded.
template <class T_, int KEYS, int VALUES, int ROWS, int WARPS, bool DECAY>
struct TensorShape {
  using T = T_;
  static constexpr int kKeys = KEYS, kValues = VALUES, kRows = ROWS, kWarps = WARPS, kThreads = 32 * WARPS;
  static constexpr bool kDecay = DECAY;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;

  static constexpr int kRowTiles = ROWS / 16, kColumnParts = WARPS / kRowTiles;
  static constexpr int kColumns = VALUES / kColumnParts;  // of out in one warp
  static_assert(WARPS % kRowTiles == 0 && kColumns % 16 == 0);

  // Of the state in one warp: tiles of 16 rows, and columns. The last warps may have none.
  static constexpr int kStateTiles = KEYS / 16 > WARPS ? KEYS / 16 / WARPS : 1;
  static constexpr int kStateSpare = KEYS / 16 < WARPS ? WARPS * 16 / KEYS : 1;
  static constexpr int kStateParts = kStateSpare < VALUES / 16 ? kStateSpare : VALUES / 16;  // of the columns
  static constexpr int kStateColumns = VALUES / kStateParts;

  // What the gradient of the log decays needs.
  struct DecayShared {
    StoredMatrix<T, ROWS, VALUES> partner;
    float pairs[ROWS][ROWS + 1];  // P
    float rows[kColumnParts][ROWS];
    float warps[WARPS];
  };
  struct Nothing {};
  struct Shared {
    StoredMatrix<T, ROWS, KEYS> query;
    StoredMatrix<T, ROWS, KEYS> key[kStages];
    StoredMatrix<T, ROWS, VALUES> value[kStages];
    ComputedMatrix<T, KEYS, VALUES> state;
    ScanDecayShared<ROWS> decays;
    std::conditional_t<DECAY, DecayShared, Nothing> decay;
  };
  // Blocks of a multiprocessor of sm_90. Nothing else hides that floats are loaded when the chunk before is done.
  static constexpr int kFloatBlocks = DECAY || KEYS > 32 ? 1 : KEYS > 16 ? 3 : 4;
  static constexpr int kBlocks = kStages == 1 ? kFloatBlocks : sizeof(Shared) <= 112 * 1024 ? 2 : 1;
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
