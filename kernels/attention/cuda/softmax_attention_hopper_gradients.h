// Softmax attention on the tensor cores of sm_90a, backward: the kernels in their order, and what comes before and
// after that of the products (softmax_attention_hopper_backward.h).
//   row_products_hopper   row_products (=) D = d_o . o for each query and head
//   backward_hopper       d_k (=|+=), d_v (=|+=), sums of d_q (=)
//   write_queries_hopper  d_q (=|+=) scale times the sums
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention_hopper_backward.h"
#include "kernels/common/cuda/scratch.h"

namespace heddle::kernels::cuda::softmax {

// `counts`, of which there are `size` (=) 0. A group of DIM / 8 lanes a row; heads are the fastest index, as they
// mostly are in memory.
template <class T, int DIM>
__global__ void __launch_bounds__(256)
    row_products_hopper(const __grid_constant__ SoftmaxAttentionBackwardArgs args, int* counts, int size) {
  grid_dependency_trigger();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += int64_t{gridDim.x} * blockDim.x) {
    counts[i] = 0;
  }
  constexpr int kLanes = DIM / 8;
  const int64_t heads = args.o.heads, rows = args.o.batch * args.o.length * heads;
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;
  const int64_t last = row < rows ? row : rows - 1;  // the lanes of a warp reduce together
  const int64_t token = last / heads, head_index = last % heads;
  const int64_t batch = token / args.o.length, query = token % args.o.length;
  const int col = static_cast<int>(threadIdx.x) % kLanes * 8;
  const Vec<float, 8> o = load_wide<8>(head<const T>(args.o, batch, query, head_index) + col);
  const Vec<float, 8> d_o = load_wide<8>(head<const T>(args.d_o, batch, query, head_index) + col);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(o[i], d_o[i], sum);
  sum = group_sum<kLanes>(sum);
  if (row < rows && col == 0) {
    vector<float>(args.row_products)[row_index(args.inputs.q, batch, head_index, query)] = sum;
  }
}

template <class T, int DIM>
__global__ void __launch_bounds__(HopperBackward<T, DIM>::kThreads, 1)
    backward_hopper(const __grid_constant__ HopperBackwardLaunch launch) {
#ifdef HEDDLE_WGMMA
  using Backward = HopperBackward<T, DIM>;
  extern __shared__ __align__(1024) unsigned char raw[];
  run_groups(Backward{{launch, *reinterpret_cast<typename Backward::Shared*>(raw)}});
#endif
}

// A block of four warps for each part of 64 by 64 of the sums.
template <class T, int DIM>
__global__ void __launch_bounds__(128) write_queries_hopper(const __grid_constant__ SoftmaxAttentionBackwardArgs args) {
  using Sums = QuerySums<DIM>;
  grid_dependency_wait();
  const HeadsView& q = args.inputs.q;
  const int tiles = blocks_of(static_cast<int>(q.length), Sums::kQueries), group = static_cast<int>(blockIdx.x % 2);
  const int64_t of_head = blockIdx.x / 2 / tiles;
  const int tile = static_cast<int>(blockIdx.x / 2 % tiles);
  const float* from = Sums::tile(args, of_head, tile) + group * Sums::kGroupNumbers + threadIdx.x * 4;
  const float scale = static_cast<float>(args.inputs.scale);
  FragmentC d_q[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float4 four = __ldcs(reinterpret_cast<const float4*>(from + n * 512));
    d_q[n] = {{four.x * scale, four.y * scale, four.z * scale, four.w * scale}};
  }
  const int own = tile * Sums::kQueries + Sums::first_query(group) + static_cast<int>(threadIdx.x) / 32 * 16 +
                  static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = own + half * 8;
    T* row = head<T>(args.d_q.view, of_head / q.heads, query, of_head % q.heads) + Sums::first_feature(group);
    store_row(row, d_q, half, query < static_cast<int>(q.length), args.d_q.mode == GradientMode::accumulate);
  }
}

// --- Launches ---

// Tiles of keys whose progress fits into the scratch memory.
inline constexpr int64_t kMostKeyTiles = int64_t{1} << 22;

template <class T, int DIM>
void launch_hopper_backward(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  using Backward = HopperBackward<T, DIM>;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t heads = inputs.q.batch * inputs.q.heads;
  auto* const counts = static_cast<int*>(scratch(context));
  HopperBackwardLaunch launch{tensor_map(inputs.q, Backward::kQueries),
                              tensor_map(inputs.k, Backward::kKeys),
                              tensor_map(inputs.v, Backward::kKeys),
                              tensor_map(args.d_o, Backward::kQueries),
                              args,
                              {},
                              counts + 1};
  const int64_t bytes = inputs.q.length * DIM * (4 + 4) * (inputs.q.heads / inputs.k.heads);  // q, d_o, sums of d_q
  launch.order = tile_order(context, inputs.k, Backward::kKeys, bytes, false, reinterpret_cast<unsigned*>(counts));
  HEDDLE_LAUNCH(context, (row_products_hopper<T, DIM>),
                static_cast<unsigned>(ceil_div(heads * inputs.q.length * (DIM / 8), 256)), 256, 0, args, counts,
                1 + launch.order.heads * launch.order.row_tiles);
  HEDDLE_LAUNCH_DEPENDENT(context, (backward_hopper<T, DIM>), blocks_for(context, launch.order), Backward::kThreads,
                          sizeof(typename Backward::Shared), launch);
  if (args.d_q) {
    const int64_t parts = 2 * heads * ceil_div(inputs.q.length, Backward::kQueries);
    HEDDLE_LAUNCH_DEPENDENT(context, (write_queries_hopper<T, DIM>), static_cast<unsigned>(parts), 128, 0, args);
  }
}

// Returns false where there is no kernel for these sizes.
template <class T>
bool backward_on_hopper(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int64_t tiles = inputs.q.batch * inputs.q.heads * ceil_div(std::max(inputs.q.length, inputs.k.length), 64);
  const int64_t key_tiles = inputs.k.batch * inputs.k.heads * ceil_div(inputs.k.length, 128);
  if (!can_use_hopper(context) || inputs.q.dim != inputs.v.dim || !(inputs.scale > 0) || tiles > int64_t{1} << 29 ||
      key_tiles > kMostKeyTiles || !can_map(inputs.q) || !can_map(inputs.k) || !can_map(inputs.v) ||
      !can_map(args.d_o) || !args.d_k || !args.d_v || (args.d_q && !args.query_sums) ||
      !can_vectorize_all(8, args.o, args.d_q.view, args.d_k.view, args.d_v.view)) {
    return false;
  }
  if (inputs.q.dim == 64) launch_hopper_backward<T, 64>(context, args);
  if (inputs.q.dim == 128) launch_hopper_backward<T, 128>(context, args);
  return inputs.q.dim == 64 || inputs.q.dim == 128;
}

}  // namespace heddle::kernels::cuda::softmax
