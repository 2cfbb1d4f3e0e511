// Softmax attention of one query a head, as generation has it: keys and values are read once, by CUDA cores, at the
// speed of memory. For each head of k and v the keys are cut into spans of nearly equal length; a block reads one span
// for up to 8 heads of q. A group of lanes owns a key: each lane multiplies 16 bytes of it, and sums over the group.
// Blocks keep the largest score, the sum of exp(score - largest) and that of exp(score - largest) v; with several spans
// they go to the scratch memory, and a second kernel joins them.
//   decode         of each span: partial results; o (=), lse (=) where there is one span
//   join_spans     o (=), lse (=)
// The number of spans depends on the sizes alone. Source: Dao et al., "Flash-Decoding for long-context inference",
// 2023.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_visibility.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda::softmax {
namespace {

constexpr int kThreads = 128;
constexpr int kMostRows = 8;           // heads of q that a block serves
constexpr int kKeysAhead = 4;          // keys of a group that are read before they are used
constexpr int64_t kBlocks = 4 * 132;   // that fill a GPU
constexpr int64_t kKeysOfASpan = 256;  // at least, where there are several

struct DecodeLaunch {
  SoftmaxAttentionForwardArgs args;
  float* partials;         // of row r of block b at (b * rows + r) * (features + 2): o, largest, sum
  int rows, parts, spans;  // heads of q of a block; blocks that share a head of k and v; spans
};

// Where the results of one head of q of one sequence begin among the partial ones, a span after another.
struct Row {
  int64_t batch, head;
};

// o of a row from its numerators, of which no two threads have the same feature; and lse.
template <class T>
struct RowResult {
  const SoftmaxAttentionForwardArgs& args;
  Row row;
  bool sees;  // at least one key

  __device__ __forceinline__ void store(int feature, float numerator, float sum) const {
    if (feature >= args.o.dim) return;
    head<T>(args.o, row.batch, 0, row.head)[feature] = narrow<T>(sees ? numerator * (1.0f / sum) : 0.0f);
  }
  __device__ __forceinline__ void store_lse(float largest, float sum) const {
    if (!args.lse) return;
    vector<float>(args.lse)[row_index(args.inputs.q, row.batch, row.head, 0)] = largest + logf(sum);
  }
};

// exp(largest of a part - largest of all): 0 for a part in which all scores are -infinity, and without NaN.
template <class T>
__device__ __forceinline__ float weight_of(float part, float all) {
  return exponential<T>(part - (all == -infinity<float>() ? 0.0f : all));
}

template <class T, int LANES, int ROWS>
__global__ void __launch_bounds__(kThreads) decode(const __grid_constant__ DecodeLaunch launch) {
  constexpr int kWidth = vector_width<T>, kGroups = kThreads / LANES, kFeatures = LANES * kWidth;
  __shared__ float shared_o[kGroups][ROWS][kFeatures];
  __shared__ float shared_largest[kGroups][ROWS], shared_sum[kGroups][ROWS];
  const SoftmaxAttentionInputs& inputs = launch.args.inputs;
  const int64_t span = blockIdx.x % launch.spans, index = blockIdx.x / launch.spans;
  const int64_t kv_head = index / launch.parts % inputs.k.heads, batch = index / launch.parts / inputs.k.heads;
  const int64_t heads = inputs.q.heads / inputs.k.heads, before = index % launch.parts * ROWS;
  const int64_t first = kv_head * heads + before;
  const int rows = static_cast<int>(min(int64_t{ROWS}, heads - before));
  const Range keys = keys_of(inputs, batch, 0);
  const int each = blocks_of(keys.end - keys.begin, launch.spans);
  const int begin = static_cast<int>(min(int64_t{keys.begin} + span * each, int64_t{keys.end}));
  const int end = static_cast<int>(min(int64_t{begin} + each, int64_t{keys.end}));
  const int group = threadIdx.x / LANES, feature = threadIdx.x % LANES * kWidth;
  const bool in_key = feature < inputs.k.dim, in_value = feature < inputs.v.dim;
  const float scale = static_cast<float>(inputs.scale);

  float q[ROWS][kWidth], o[ROWS][kWidth], largest[ROWS], sum[ROWS];
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const bool is_there = in_key && row < rows;
    const Vec<T, kWidth> loaded = load_if<kWidth>(
        is_there, head<const T>(inputs.q, batch, 0, first + (is_there ? row : 0)) + (is_there ? feature : 0), T(0.0f));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      q[row][i] = widen(loaded[i]);
      o[row][i] = 0.0f;
    }
    largest[row] = -infinity<float>();
    sum[row] = 0.0f;
  }

  for (int base = begin; base < end; base += kGroups * kKeysAhead) {
    Vec<T, kWidth> k[kKeysAhead], v[kKeysAhead];
    bool is_there[kKeysAhead];
#pragma unroll
    for (int i = 0; i < kKeysAhead; ++i) {
      const int key = base + i * kGroups + group;
      is_there[i] = key < end;
      const int at = is_there[i] ? key : begin;
      k[i] = load_if<kWidth>(is_there[i] && in_key,
                             head<const T>(inputs.k, batch, at, kv_head) + (in_key ? feature : 0), T(0.0f));
      v[i] = load_if<kWidth>(is_there[i] && in_value,
                             head<const T>(inputs.v, batch, at, kv_head) + (in_value ? feature : 0), T(0.0f));
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      float scores[kKeysAhead], next = largest[row];
#pragma unroll
      for (int i = 0; i < kKeysAhead; ++i) {
        const Vec<float, kWidth> wide = widen_all(k[i]);
        float product = 0.0f;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) product = fmaf(q[row][j], wide[j], product);
        product = group_sum<LANES>(product);
        scores[i] = is_there[i] ? rounded_product(scale, product) : -infinity<float>();
        next = fmaxf(next, scores[i]);
      }
      const float factor = weight_of<T>(largest[row], next);
      largest[row] = next;
      sum[row] *= factor;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) o[row][j] *= factor;
#pragma unroll
      for (int i = 0; i < kKeysAhead; ++i) {
        const float p = is_there[i] ? weight_of<T>(scores[i], next) : 0.0f;
        const Vec<float, kWidth> wide = widen_all(v[i]);
        sum[row] += p;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) o[row][j] = fmaf(p, wide[j], o[row][j]);
      }
    }
  }

#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared_o[group][row][feature + j] = o[row][j];
    if (feature == 0) {
      shared_largest[group][row] = largest[row];
      shared_sum[group][row] = sum[row];
    }
  }
  __syncthreads();
  for (int item = threadIdx.x; item < rows * kFeatures; item += kThreads) {
    const int row = item / kFeatures, at = item % kFeatures;
    float all = -infinity<float>(), total = 0.0f, numerator = 0.0f;
    for (int i = 0; i < kGroups; ++i) all = fmaxf(all, shared_largest[i][row]);
    for (int i = 0; i < kGroups; ++i) {
      const float weight = weight_of<T>(shared_largest[i][row], all);
      total = fmaf(weight, shared_sum[i][row], total);
      numerator = fmaf(weight, shared_o[i][row][at], numerator);
    }
    if (launch.spans > 1) {
      float* const partial = launch.partials + (int64_t{blockIdx.x} * ROWS + row) * (kFeatures + 2);
      partial[at] = numerator;
      if (at == 0) {
        partial[kFeatures] = all;
        partial[kFeatures + 1] = total;
      }
      continue;
    }
    const RowResult<T> result{launch.args, {batch, first + row}, keys.begin < keys.end};
    result.store(at, numerator, total);
    if (at == 0) result.store_lse(all, total);
  }
}

// A block for each head of q of each sequence.
template <class T>
__global__ void __launch_bounds__(kThreads) join_spans(const __grid_constant__ DecodeLaunch launch, int features) {
  grid_dependency_wait();
  const SoftmaxAttentionInputs& inputs = launch.args.inputs;
  const Row row{blockIdx.x / inputs.q.heads, blockIdx.x % inputs.q.heads};
  const int64_t heads = inputs.q.heads / inputs.k.heads, kv_head = row.head / heads, own = row.head % heads;
  const int64_t block = ((row.batch * inputs.k.heads + kv_head) * launch.parts + own / launch.rows) * launch.spans;
  const int stride = launch.rows * (features + 2);  // from a span to the next
  const float* const partial = launch.partials + (block * launch.rows + own % launch.rows) * (features + 2);
  const Range keys = keys_of(inputs, row.batch, 0);

  float all = -infinity<float>(), sum = 0.0f;
  for (int span = 0; span < launch.spans; ++span) all = fmaxf(all, partial[int64_t{span} * stride + features]);
  for (int span = 0; span < launch.spans; ++span) {
    const float* const part = partial + int64_t{span} * stride + features;
    sum = fmaf(weight_of<T>(part[0], all), part[1], sum);
  }
  const RowResult<T> result{launch.args, row, keys.begin < keys.end};
  for (int feature = threadIdx.x; feature < inputs.v.dim; feature += kThreads) {
    float numerator = 0.0f;
    for (int span = 0; span < launch.spans; ++span) {
      const float* const part = partial + int64_t{span} * stride;
      numerator = fmaf(weight_of<T>(part[features], all), part[feature], numerator);
    }
    result.store(feature, numerator, sum);
  }
  if (threadIdx.x == 0) result.store_lse(all, sum);
}

template <class T, int LANES, int ROWS>
void launch_decode(Context& context, const SoftmaxAttentionForwardArgs& args) {
  constexpr int kFeatures = LANES * vector_width<T>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t parts = ceil_div(inputs.q.heads / inputs.k.heads, ROWS);
  const int64_t blocks = inputs.q.batch * inputs.k.heads * parts;
  const int64_t wanted = std::min(ceil_div(kBlocks, blocks), ceil_div(inputs.k.length, kKeysOfASpan));
  const int64_t spans = std::max<int64_t>(1, wanted);
  static_assert((2 * kBlocks * ROWS * (kFeatures + 2)) * sizeof(float) <= Scratch::kBytes);
  DecodeLaunch launch{args, spans > 1 ? static_cast<float*>(scratch(context)) : nullptr, ROWS, static_cast<int>(parts),
                      static_cast<int>(spans)};
  HEDDLE_LAUNCH(context, (decode<T, LANES, ROWS>), static_cast<unsigned>(blocks * spans), kThreads, 0, launch);
  if (spans == 1) return;
  HEDDLE_LAUNCH_DEPENDENT(context, join_spans<T>, static_cast<unsigned>(inputs.q.batch * inputs.q.heads), kThreads, 0,
                          launch, kFeatures);
}

template <class T, int LANES>
void launch_rows(Context& context, const SoftmaxAttentionForwardArgs& args) {
  const int64_t heads = args.inputs.q.heads / args.inputs.k.heads;
  if (heads == 1) {
    launch_decode<T, LANES, 1>(context, args);
  } else if (heads == 2) {
    launch_decode<T, LANES, 2>(context, args);
  } else if (heads <= 4) {
    launch_decode<T, LANES, 4>(context, args);
  } else {
    launch_decode<T, LANES, kMostRows>(context, args);
  }
}

}  // namespace

template <class T>
bool forward_of_one_query(Context& context, const SoftmaxAttentionForwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t lanes = ceil_div(std::max(inputs.q.dim, inputs.v.dim), vector_width<T>);
  if (inputs.q.length != 1 || lanes > 32 || !can_vectorize_all(vector_width<T>, inputs.q, inputs.k, inputs.v))
    return false;
  if (lanes <= 8) {
    launch_rows<T, 8>(context, args);
  } else if (lanes <= 16) {
    launch_rows<T, 16>(context, args);
  } else {
    launch_rows<T, 32>(context, args);
  }
  return true;
}

template bool forward_of_one_query<float>(Context&, const SoftmaxAttentionForwardArgs&);
template bool forward_of_one_query<bf16>(Context&, const SoftmaxAttentionForwardArgs&);
template bool forward_of_one_query<fp16>(Context&, const SoftmaxAttentionForwardArgs&);

}  // namespace heddle::kernels::cuda::softmax
