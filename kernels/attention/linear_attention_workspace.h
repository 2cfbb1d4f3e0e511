// What linear attention keeps in device memory while it runs. GPUs use it; it is allocated on every device, so that all
// count the same bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/runtime/host_device.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// No chunk of a GPU's scan crosses a multiple of this many tokens.
inline constexpr int kWindow = 64;
// Tokens of a window whose gradients of log decays a GPU computes at once, and features that it takes at once
// (decay_gradient.h).
inline constexpr int kDecayWindow = 256;
inline constexpr int64_t kDecayPart = 128;
// Heads of up to this many features are computed on tensor cores, but for float64.
inline constexpr int64_t kLargestTensorDim = 256;
// Shorter sequences do not take the matrix instructions of warpgroups.
inline constexpr int64_t kShortestOnWarpgroups = 16;
// The most features of query and key that a scan of bfloat16 takes at once.
inline constexpr int64_t kPartKeys = 128;
// The value features of the narrowest tile of a scan.
inline constexpr int kScanTile = 32;
// The value features of a scan that one multiprocessor takes, and the most parts into which a sequence is cut.
inline constexpr int64_t kBlockFeatures = 128, kMostSpans = 528;

// Bytes of shared memory that a scan without tensor cores takes for chunks of `chunk` tokens.
constexpr int64_t scan_shared_bytes(int64_t chunk, int64_t keys, size_t size_of_number) {
  const int64_t numbers = chunk * (2 * keys + 2 * kScanTile + 2 * chunk + 8) + keys * kScanTile + 128;
  return numbers * static_cast<int64_t>(size_of_number);
}

// How many parts of at most `size` there are.
HEDDLE_HOST_DEVICE constexpr int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The most tokens of a chunk of a GPU's scan of heads of these dims.
inline int scan_chunk(DType dtype, int64_t dim, int64_t value_dim) {
  const int64_t largest = std::max(dim, value_dim);
  if (dtype != DType::float64 && largest <= kLargestTensorDim) return dtype == DType::float32 && largest > 64 ? 32 : 64;
  int chunk = 16;
  const auto fits = [&] {  // every GPU from sm_80 on has as much
    return scan_shared_bytes(chunk, largest, size_of(accumulate_type(dtype))) <= 160 * 1024;
  };
  while (chunk > 1 && !fits()) chunk /= 2;
  return chunk;
}

// How a GPU cuts a sequence: spans of `length` tokens, a multiple of kWindow, the last one may be shorter.
struct ScanSpans {
  int64_t count = 1, length = 0;
};

// Features that the blocks of a head share among them in float32 and bfloat16: those of the value of a scan. In
// backward these are the features of v in one scan and of q in the others; the smaller number is what most of the time
// goes by.
inline int64_t shared_features(const LinearAttentionForwardArgs& args) { return args.v.dim; }
inline int64_t shared_features(const LinearAttentionBackwardArgs& args) { return std::min(args.q.dim, args.v.dim); }

// Whether a GPU computes heads token by token (scan_recurrent.h), but for scans with the gradient of log decays: states
// of float32 that are so narrow that the tiles of tensor cores, where a product takes six products of pieces, would be
// slower.
inline bool is_recurrent(DType dtype, int64_t dim, int64_t value_dim) {
  return dtype == DType::float32 && std::min(dim, value_dim) <= 32 && std::max(dim, value_dim) <= kLargestTensorDim;
}

// Blocks of a scan that run on one multiprocessor at once; each may have heads of up to kBlockFeatures features.
// `shared` as in shared_features().
inline int64_t scan_blocks_at_once(DType dtype, int64_t dim, int64_t value_dim, int64_t shared) {
  constexpr int64_t kWarps = 16;  // of kScanTile value features
  if (is_recurrent(dtype, dim, value_dim)) return kWarps / parts_of(std::min(shared, kBlockFeatures), kScanTile);
  return dtype == DType::float32 && shared <= 64 ? 2 : 1;
}

// More than one span where the heads of all sequences leave multiprocessors idle and the sequence is long enough. Heads
// of more than 128 features take more than one multiprocessor each, and some of narrow heads of float32 share one. A
// GPU is taken to have 132 of them, so that results depend on the sizes alone. The states of the spans cost about 0.6
// times the time of what follows, and the kernels around them about that of 6 windows.
inline ScanSpans scan_spans(DType dtype, int64_t heads, int64_t length, int64_t dim, int64_t value_dim,
                            int64_t shared) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t windows = parts_of(length, kWindow);
  const bool by_shared = dtype == DType::float32 || dtype == DType::bfloat16;
  const int64_t blocks = heads * parts_of(by_shared ? shared : std::max(dim, value_dim), kBlockFeatures);
  const int64_t places = kMultiprocessors * scan_blocks_at_once(dtype, dim, value_dim, shared);
  const int64_t most = blocks > 0 ? std::min({places / blocks, windows / 2, kMostSpans}) : 0;
  if (most < 2 || 5 * (windows - 6) * most < 8 * windows) return {1, windows * kWindow};
  const int64_t span = parts_of(windows, most);
  return {parts_of(windows, span), span * kWindow};
}
template <class Args>
ScanSpans scan_spans(const Args& args) {
  return scan_spans(args.q.dtype, args.q.batch * args.q.heads, args.q.length, args.q.dim, args.v.dim,
                    shared_features(args));
}

// Where the parts lie: offsets in bytes, and their sum. A part that is not wanted has no bytes.
struct LinearAttentionWorkspace {
  int64_t sums = 0, starts = 0;              // of log decays and of tokens at which the state starts anew
  int64_t span_states = 0;                   // before the spans
  int64_t partial_out = 0;                   // of scans in two parts
  int64_t token_gradients = 0, history = 0;  // for the gradient of log decays
  int64_t d_k = 0, d_v = 0;                  // sums over the heads of q that share a head of k
  int64_t bytes = 0;

  explicit LinearAttentionWorkspace(const LinearAttentionForwardArgs& args) {
    add_scan(args);
    partial_out = add(partial_bytes(args, args.q.dim, args.v.dim));
  }
  explicit LinearAttentionWorkspace(const LinearAttentionBackwardArgs& args) {
    add_scan(args);
    // Where heads share one of k, d_k and d_v are sums in float, to which no scan in parts adds.
    const bool shares = args.q.heads != args.k.heads;
    partial_out = add(std::max(args.d_q || (args.d_k && !shares) ? partial_bytes(args, args.v.dim, args.q.dim) : 0,
                               args.d_v && !shares ? partial_bytes(args, args.q.dim, args.v.dim) : 0));
    const int64_t number = static_cast<int64_t>(size_of(accumulate_type(args.q.dtype)));
    const int64_t heads = args.q.batch * args.q.heads;
    if (args.d_log_decay) {
      const int64_t decay_parts = parts_of(args.q.dim, kDecayPart) * parts_of(args.v.dim, kDecayPart);
      const int64_t tiles = std::max(parts_of(args.q.dim, kScanTile), decay_parts);
      const int64_t chunk = scan_chunk(args.q.dtype, args.q.dim, args.v.dim);
      token_gradients = add(tiles * heads * args.q.length * number);
      // By windows there are two of each: before it, and the gradient of that after it.
      const int64_t states = std::max(parts_of(args.q.length, chunk), 2 * parts_of(args.q.length, kDecayWindow));
      history = add(heads * states * args.q.dim * args.v.dim * number);
    }
    if (!shares) return;
    const int64_t rows = args.k.batch * args.k.length * args.k.heads;
    if (args.d_k) d_k = add(rows * args.k.dim * number);
    if (args.d_v) d_v = add(rows * args.v.dim * number);
  }

 private:
  template <class Args>
  void add_scan(const Args& args) {
    const int64_t heads = args.q.batch * args.q.heads;
    const int64_t states = (scan_spans(args).count - 1) * heads;
    span_states = add(states * args.q.dim * args.v.dim * static_cast<int64_t>(size_of(accumulate_type(args.q.dtype))));
    const bool per_token = args.log_decay && args.decay_per_token;
    if (per_token) sums = add(heads * args.q.length * 8);
    if (per_token || args.segments) starts = add(heads * parts_of(args.q.length, kWindow) * 8);
  }
  // A scan in bfloat16 whose query and key have more than kPartKeys features computes out in two parts, of which the
  // first is kept in float.
  template <class Args>
  static int64_t partial_bytes(const Args& args, int64_t keys, int64_t values) {
    if (args.q.dtype != DType::bfloat16 || args.q.length < kShortestOnWarpgroups) return 0;
    if (keys <= kPartKeys || keys > kLargestTensorDim) return 0;
    return args.q.batch * args.q.heads * values * parts_of(args.q.length, kWindow) * kWindow * 4;
  }
  int64_t add(int64_t size) {
    const int64_t offset = bytes;
    bytes += (size + 15) / 16 * 16;
    return offset;
  }
};

}  // namespace heddle::kernels
