// Softmax attention on GPUs: the choice of the kernel, and kernels for any dtype and size, without tensor cores, which
// serve float64 and heads of more than 256 features. There a warp owns a query, or a key, of one head, and goes over
// the tokens that it meets 32 at a time, one a lane; only those enter its products. It has kFeatures features of each
// result in registers; grid.y goes over all of them.
//   forward_any            o (=), lse (=)
//   backward_queries_any   inverse_sums (=), row_products (=), d_q (=|+=)
//   backward_keys_any      d_k (=|+=), d_v (=|+=)
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_visibility.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"

namespace heddle::kernels::cuda {
namespace softmax {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kFeatures = 256, kLaneFeatures = kFeatures / 32;

// The row of one token of one head that a warp owns.
struct Place {
  int64_t batch, head;
  int token;
  bool exists;
};

__device__ __forceinline__ Place place_of_warp(const HeadsView& tokens) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t row = index / tokens.length;
  return {row / tokens.heads, row % tokens.heads, static_cast<int>(index % tokens.length),
          row / tokens.heads < tokens.batch};
}

// The same bits in all kernels, and so are scores, which are not contracted with what follows: scores of any size then
// differ by no more than rounding from lse.
template <class T>
__device__ __forceinline__ accumulate_t<T> dot(const T* a, const T* b, int64_t dim) {
  accumulate_t<T> sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum = fma(widen(a[i]), widen(b[i]), sum);
  return sum;
}

// The warp's features of a row of results, feature first + 32 c + lane in values[c].
template <class A>
struct LaneFeatures {
  A values[kLaneFeatures] = {};

  // values += weights x, where lane j of the first `count` has the weight of token j of x, whose first row is at x.
  template <class T>
  __device__ __forceinline__ void add(A weight, int count, const T* x, int64_t stride, int64_t first, int64_t dim) {
    for (int j = 0; j < count; ++j) {
      const A of_token = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
      for (int c = 0; c < kLaneFeatures; ++c) {
        const int64_t feature = first + c * 32 + threadIdx.x % 32;
        if (feature < dim) values[c] += of_token * widen(x[j * stride + feature]);
      }
    }
  }
  __device__ __forceinline__ void scale(A factor) {
#pragma unroll
    for (int c = 0; c < kLaneFeatures; ++c) values[c] *= factor;
  }
  template <class T>
  __device__ __forceinline__ void store(const HeadsDestination& to, const Place& place, int64_t first) const {
    T* row = head<T>(to.view, place.batch, place.token, place.head);
#pragma unroll
    for (int c = 0; c < kLaneFeatures; ++c) {
      const int64_t feature = first + c * 32 + threadIdx.x % 32;
      if (feature >= to.view.dim) continue;
      const A old = to.mode == GradientMode::accumulate ? widen(row[feature]) : A(0);
      row[feature] = narrow<T>(to.mode == GradientMode::accumulate ? old + values[c] : values[c]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) forward_any(const __grid_constant__ SoftmaxAttentionForwardArgs args) {
  using A = accumulate_t<T>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const Place place = place_of_warp(inputs.q);
  if (!place.exists) return;
  const int lane = threadIdx.x % 32;
  const int64_t first = int64_t{blockIdx.y} * kFeatures, kv_head = key_head(inputs, place.head);
  const Range keys = keys_of(inputs, place.batch, place.token);
  const T* q = head<const T>(inputs.q, place.batch, place.token, place.head);
  const A scale = static_cast<A>(inputs.scale);

  LaneFeatures<A> o;
  A largest = -infinity<A>(), sum = A(0);  // of the row so far; the sum is that of the lane's keys
  for (int begin = keys.begin; begin < keys.end; begin += 32) {
    const int count = min(32, keys.end - begin);
    A score = -infinity<A>();
    if (lane < count) {
      score = rounded_product(scale, dot(q, head<const T>(inputs.k, place.batch, begin + lane, kv_head), inputs.q.dim));
    }
    const A next = fmax(largest, group_max<32>(score));
    const A shift = next == -infinity<A>() ? A(0) : next;  // so that exp(-infinity - shift) is 0 and not NaN
    const A factor = exponential<T>(largest - shift), p = lane < count ? exponential<T>(score - shift) : A(0);
    largest = next;
    sum = sum * factor + p;
    o.scale(factor);
    o.add(p, count, head<const T>(inputs.v, place.batch, begin, kv_head), inputs.v.length_stride, first, inputs.v.dim);
  }
  sum = group_sum<32>(sum);
  if (keys.begin < keys.end) o.scale(A(1) / sum);
  o.template store<T>({args.o, GradientMode::overwrite}, place, first);
  if (args.lse && lane == 0 && blockIdx.y == 0) {
    vector<A>(args.lse)[row_index(inputs.q, place.batch, place.head, place.token)] = largest + logarithm(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_queries_any(const __grid_constant__ SoftmaxAttentionBackwardArgs args) {
  using A = accumulate_t<T>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const Place place = place_of_warp(inputs.q);
  if (!place.exists) return;
  const int lane = threadIdx.x % 32;
  const int64_t first = int64_t{blockIdx.y} * kFeatures, kv_head = key_head(inputs, place.head);
  const Range keys = keys_of(inputs, place.batch, place.token);
  const T* q = head<const T>(inputs.q, place.batch, place.token, place.head);
  const T* d_o = head<const T>(args.d_o, place.batch, place.token, place.head);
  const A scale = static_cast<A>(inputs.scale);
  const int64_t index = row_index(inputs.q, place.batch, place.head, place.token);
  const A lse = vector<const A>(args.lse)[index];

  struct Pair {
    A p, d_p;  // p is not divided by the sum of the row
  };
  const auto pair_of = [&](int key) {
    const A score = rounded_product(scale, dot(q, head<const T>(inputs.k, place.batch, key, kv_head), inputs.q.dim));
    const A d_p = dot(d_o, head<const T>(inputs.v, place.batch, key, kv_head), inputs.v.dim);
    return Pair{exponential<T>(score - lse), d_p};
  };
  A sum = A(0), product = A(0);
  for (int key = keys.begin + lane; key < keys.end; key += 32) {
    const Pair pair = pair_of(key);
    sum += pair.p;
    product += pair.p * pair.d_p;
  }
  const A inverse = A(1) / group_sum<32>(sum);
  product = group_sum<32>(product) * inverse;
  if (lane == 0 && blockIdx.y == 0) {
    vector<A>(args.inverse_sums)[index] = inverse;
    vector<A>(args.row_products)[index] = product;
  }
  if (!args.d_q) return;
  LaneFeatures<A> d_q;
  for (int begin = keys.begin; begin < keys.end; begin += 32) {
    const int count = min(32, keys.end - begin);
    A d_score = A(0);
    if (lane < count) {
      const Pair pair = pair_of(begin + lane);
      d_score = scale * (pair.p * inverse) * (pair.d_p - product);
    }
    d_q.add(d_score, count, head<const T>(inputs.k, place.batch, begin, kv_head), inputs.k.length_stride, first,
            inputs.k.dim);
  }
  d_q.template store<T>(args.d_q, place, first);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_keys_any(const __grid_constant__ SoftmaxAttentionBackwardArgs args) {
  using A = accumulate_t<T>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const Place place = place_of_warp(inputs.k);
  if (!place.exists) return;
  const int lane = threadIdx.x % 32;
  const int64_t first = int64_t{blockIdx.y} * kFeatures, group = inputs.q.heads / inputs.k.heads;
  const Range queries = queries_of(inputs, place.batch, place.token);
  const T* k = head<const T>(inputs.k, place.batch, place.token, place.head);
  const T* v = head<const T>(inputs.v, place.batch, place.token, place.head);
  const A scale = static_cast<A>(inputs.scale);

  LaneFeatures<A> d_k, d_v;
  for (int64_t head_index = place.head * group; head_index < (place.head + 1) * group; ++head_index) {
    const int64_t index = row_index(inputs.q, place.batch, head_index, 0);
    for (int begin = queries.begin; begin < queries.end; begin += 32) {
      const int count = min(32, queries.end - begin), query = begin + lane;
      A p = A(0), d_score = A(0);
      if (lane < count) {
        const A score =
            rounded_product(scale, dot(head<const T>(inputs.q, place.batch, query, head_index), k, inputs.q.dim));
        const A d_p = dot(head<const T>(args.d_o, place.batch, query, head_index), v, inputs.v.dim);
        p = exponential<T>(score - vector<const A>(args.lse)[index + query]) *
            vector<const A>(args.inverse_sums)[index + query];
        d_score = scale * p * (d_p - vector<const A>(args.row_products)[index + query]);
      }
      if (args.d_k) {
        d_k.add(d_score, count, head<const T>(inputs.q, place.batch, begin, head_index), inputs.q.length_stride, first,
                inputs.q.dim);
      }
      if (args.d_v) {
        d_v.add(p, count, head<const T>(args.d_o, place.batch, begin, head_index), args.d_o.length_stride, first,
                inputs.v.dim);
      }
    }
  }
  if (args.d_k) d_k.template store<T>(args.d_k, place, first);
  if (args.d_v) d_v.template store<T>(args.d_v, place, first);
}

// A warp for each token of each head, for each kFeatures of `dim` features.
dim3 grid_of(const HeadsView& tokens, int64_t dim) {
  return {static_cast<unsigned>(ceil_div(tokens.batch * tokens.heads * tokens.length, kWarps)),
          static_cast<unsigned>(ceil_div(dim, kFeatures))};
}

template <class T>
void forward(Context& context, const SoftmaxAttentionForwardArgs& args) {
  if constexpr (sizeof(T) <= 4) {
    if (forward_of_one_query<T>(context, args)) return;
  }
  if constexpr (sizeof(T) == 2) {
    if (forward_on_hopper<T>(context, args)) return;
  }
  if constexpr (sizeof(T) <= 4) {
    if (forward_on_tensor_cores<T>(context, args)) return;
  }
  HEDDLE_LAUNCH(context, forward_any<T>, grid_of(args.inputs.q, args.o.dim), kThreads, 0, args);
}

template <class T>
void backward(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (backward_on_hopper<T>(context, args)) return;
  }
  if constexpr (sizeof(T) <= 4) {
    if (backward_on_tensor_cores<T>(context, args)) return;
  }
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const dim3 queries = grid_of(inputs.q, args.d_q ? inputs.q.dim : 1);
  const dim3 keys = grid_of(inputs.k, std::max(args.d_k ? inputs.k.dim : 0, args.d_v ? inputs.v.dim : 0));
  if (queries.x > 0) HEDDLE_LAUNCH(context, backward_queries_any<T>, queries, kThreads, 0, args);
  if (keys.x > 0 && keys.y > 0) HEDDLE_LAUNCH(context, backward_keys_any<T>, keys, kThreads, 0, args);
}

void check_lengths(const SoftmaxAttentionInputs& inputs) {
  constexpr int64_t kLongest = std::numeric_limits<int32_t>::max() / 2;
  check(std::max(inputs.q.length, inputs.k.length) <= kLongest,
        "[softmax_attention] there are {} queries and {} keys, expected at most {} on a GPU", inputs.q.length,
        inputs.k.length, kLongest);
}

}  // namespace
}  // namespace softmax

void softmax_attention_forward(Context& context, const SoftmaxAttentionForwardArgs& args) {
  softmax::check_lengths(args.inputs);
  if (args.inputs.q.batch * args.inputs.q.heads * args.inputs.q.length == 0) return;
  visit_floating(args.inputs.q.dtype, [&](auto type) { softmax::forward<decltype(type)>(context, args); });
}

void softmax_attention_backward(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  softmax::check_lengths(args.inputs);
  visit_floating(args.inputs.q.dtype, [&](auto type) { softmax::backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
