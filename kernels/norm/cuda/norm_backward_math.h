// Arithmetic steps of the norm backward kernel: the two passes over a segment, reduce and apply, and the stores of what
// the second computes. K is a BackwardTraits; the formulas are in norm_backward.h.
#pragma once

#include <type_traits>

#include "kernels/norm/cuda/norm_backward_load.h"

namespace heddle::kernels::cuda {

// What the sums over a segment leave for its elements. d = p - mean as it was rounded, whose own mean is `shift`:
//   xhat = (d - shift) * inv_std
//   d_p = inv_std * (g - xhat * mean(g * xhat) - (mean(g) if centred)) = g_factor * g - (d_factor * d + offset)
// In the first form g is multiplied by the scale, in the second it is not.
template <class A>
struct SegmentFactors {
  A inv_std, xhat_offset, g_factor, d_factor, offset;

  // sums: of g * d, of g and of d, with g not multiplied by the scale.
  __device__ __forceinline__ SegmentFactors(const A (&sums)[3], A inv_std, bool center, const NormScalars<A>& scalars)
      : inv_std(inv_std), g_factor(inv_std * scalars.scale) {
    const A shift = center ? sums[2] * scalars.inv_extent : A(0);
    if (center && scalars.extent == 1) g_factor = A(0);  // a constant has no gradient
    const A dot = (sums[0] - shift * sums[1]) * inv_std * scalars.inv_extent;
    xhat_offset = shift * inv_std;
    d_factor = g_factor * dot * inv_std;
    offset = (center ? g_factor * (sums[1] * scalars.inv_extent) : A(0)) - d_factor * shift;
  }
  __device__ __forceinline__ bool is_ordinary(A product) const {
    return is_ordinary_gradient(inv_std, product, d_factor, offset);
  }
  __device__ __forceinline__ A xhat(A d) const { return d * inv_std - xhat_offset; }
  __device__ __forceinline__ A d_p(A g, A d) const { return g_factor * g - (d_factor * d + offset); }
};

// What both passes need of a vector.
template <class K>
struct Elements {
  typename K::WideVec d;         // p - mean
  typename K::WideVec upstream;  // d_y, multiplied by act(gate) when the gate is post
  typename K::WideVec g;         // upstream * weight
  typename K::WideVec act;       // act(gate)
  typename K::WideVec d_gate;    // d_gate without the factor that only the second pass knows
};

// What the first pass over a segment leaves in registers for the second.
template <class K>
struct KeptElements {
  Elements<K> elements[K::kKeepsElements ? K::kVectors : 1];
  typename K::A core[K::kKeepsCore ? K::kVectors : 1][K::kWidth];
  typename K::WideVec d[K::kKeepsDeviation ? K::kVectors : 1] = {};
};

enum class Pass { first, second };

// Multiplies r (pre, in elements.d) or d_y (post, in elements.upstream) by act(gate). Sets act and d_gate.
template <class K, Pass PASS, Activation ACT>
__device__ __forceinline__ void apply_gate(const typename K::WideVec& gate, Elements<K>& elements,
                                           typename K::A (&kept_core)[K::kWidth]) {
  using A = typename K::A;
#pragma unroll
  for (int i = 0; i < K::kWidth; ++i) {
    A core;
    if constexpr (K::kKeepsCore && PASS == Pass::second) {
      core = kept_core[i];
    } else {
      core = activation_core<ACT, typename K::T>(gate[i]);
      if constexpr (K::kKeepsCore) kept_core[i] = core;
    }
    const auto act = activated<ACT>(gate[i], core);
    A& gated = (K::kGate == Gate::pre ? elements.d : elements.upstream)[i];
    elements.act[i] = act.value;
    elements.d_gate[i] = act.derivative * gated;
    gated *= act.value;
  }
}

// Reads vector v of the inputs and computes its elements. ACT is the activation where K::kBranchesOnce.
template <class K, Pass PASS, bool CENTER, bool WEIGHTED, Activation ACT>
__device__ __forceinline__ Elements<K> compute_elements(const SegmentInputs<K>& segment, int v, KeptElements<K>& kept) {
  Elements<K> e;
  constexpr bool kHasDeviation = K::kKeepsDeviation && PASS == Pass::second;
  if constexpr (kHasDeviation) {
    e.d = kept.d[v];
  } else {
    e.d = segment.r(v);
  }
  e.upstream = segment.d_y(v);
  if constexpr (K::kGate != Gate::none) {
    const typename K::WideVec gate = segment.gate(v);
    auto& core = kept.core[K::kKeepsCore ? v : 0];
    if constexpr (K::kBranchesOnce) {
      apply_gate<K, PASS, ACT>(gate, e, core);
    } else {
      visit_activation(segment.args.options.gate_act,
                       [&](auto act) { apply_gate<K, PASS, decltype(act)::value>(gate, e, core); });
    }
  }
  [[maybe_unused]] typename K::WideVec weight;
  if constexpr (WEIGHTED) weight = segment.weight(v);
#pragma unroll
  for (int i = 0; i < K::kWidth; ++i) {
    if constexpr (CENTER && !kHasDeviation) e.d[i] -= segment.mean;
    e.g[i] = e.upstream[i];
    if constexpr (WEIGHTED) e.g[i] = rounded_product(e.g[i], weight[i]);
  }
  return e;
}

// First pass: adds the sums of g * d, of g and of d over the thread's part of a segment to `sums`; the latter two only
// when CENTER, that of d only when needs_shift. Nothing is added where the row group has no item (!active).
template <class K, bool CENTER, bool WEIGHTED, Activation ACT>
__device__ __forceinline__ void reduce_segment(const SegmentInputs<K>& segment, const BackwardItems<K>& items,
                                               bool active, bool needs_shift, KeptElements<K>& kept,
                                               typename K::A (&sums)[3]) {
#pragma unroll
  for (int v = 0; v < K::kVectors; ++v) {
    if constexpr (K::kKeepsElements) kept.elements[v] = {};
    if (!active || !items.has(v)) continue;
    const Elements<K> e = compute_elements<K, Pass::first, CENTER, WEIGHTED, ACT>(segment, v, kept);
#pragma unroll
    for (int i = 0; i < K::kWidth; ++i) {
      if constexpr (CENTER) {
        sums[1] += e.g[i];
        if (needs_shift) sums[2] += e.d[i];
      }
      sums[0] += e.g[i] * e.d[i];
    }
    if constexpr (K::kKeepsElements) kept.elements[v] = e;
    if constexpr (K::kKeepsDeviation) kept.d[v] = e.d;
  }
}

// The gradients of a tile of vectors of one thread.
template <class K>
struct GradientTile {
  typename K::WideVec d_r[K::kTileVectors];
  typename K::WideVec d_gate[K::kTileVectors];
};

// Computes the gradients of vector v, d_r and d_gate (=), and adds its part of d_weight and d_bias to
// `parameter_sums`.
template <class K, bool WEIGHTED>
__device__ __forceinline__ void compute_gradients(const SegmentInputs<K>& segment, const Elements<K>& e, int v,
                                                  const SegmentFactors<typename K::A>& factors,
                                                  const NormScalars<typename K::A>& scalars,
                                                  typename K::ParameterSumArray& parameter_sums,
                                                  typename K::WideVec& d_r, typename K::WideVec& d_gate) {
  using A = typename K::A;
  constexpr int kWidth = K::kWidth;
  [[maybe_unused]] typename K::WideVec y, weight;  // y before the gate
  if constexpr (K::kGate == Gate::post && WEIGHTED) weight = segment.weight(v);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    [[maybe_unused]] const A xhat = factors.xhat(e.d[i]);
    if constexpr (K::kSums > 0) parameter_sums[0][v][i] += e.upstream[i] * xhat;
    if constexpr (K::kSums > 1) parameter_sums[1][v][i] += e.upstream[i];
    d_r[i] = factors.d_p(e.g[i], e.d[i]);
    if constexpr (K::kGate == Gate::pre) {
      d_gate[i] = e.d_gate[i] * d_r[i];
      d_r[i] *= e.act[i];
    }
    if constexpr (K::kGate == Gate::post) {
      y[i] = scalars.scale * xhat;
      if constexpr (WEIGHTED) y[i] *= weight[i];
    }
  }
  if constexpr (K::kGate == Gate::post) {
    if (segment.args.bias) {
      const auto bias =
          load_wide<kWidth>(vector<const typename K::P>(segment.args.bias) + segment.column + v * K::kThreads * kWidth);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) y[i] += bias[i];
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) d_gate[i] = e.d_gate[i] * y[i];
  }
}

// Where the gradients of a segment go, and which inputs are added to them.
template <class K>
struct SegmentOutputs {
  using T = typename K::T;
  using Tile = typename K::WideVec[K::kTileVectors];
  const BackwardTensors& tensors;
  const SegmentInputs<K>& segment;
  const BackwardItems<K>& items;
  const BackwardPlan& plan;
  // Offsets of inputs in the stage, in bytes from x; negative when absent.
  int d_r_offset, old_d_x_offset, old_d_residual_offset, old_d_gate_offset;
  T *d_x, *d_residual, *d_gate;  // the thread's first features

  __device__ __forceinline__ SegmentOutputs(const BackwardTensors& tensors, const SegmentInputs<K>& segment,
                                            const BackwardItems<K>& items, const BackwardPlan& plan, int row)
      : tensors(tensors),
        segment(segment),
        items(items),
        plan(plan),
        d_r_offset(tensors.d_r * K::kInputBytes),
        old_d_x_offset(tensors.old_d_x * K::kInputBytes),
        old_d_residual_offset(tensors.old_d_residual * K::kInputBytes),
        old_d_gate_offset(tensors.old_d_gate * K::kInputBytes) {
    const auto row_at = [&](const StridedRows& to) {
      return reinterpret_cast<T*>(to.at(row, segment.column * sizeof(T)));
    };
    d_x = row_at(tensors.d_x);
    d_residual = row_at(tensors.d_residual);
    d_gate = K::kGate != Gate::none ? row_at(tensors.d_gate) : nullptr;
  }

  // to += the input at `offset`. Vectors that lie outside the segment are read from unwritten shared memory, and their
  // sums are not stored.
  __device__ __forceinline__ void add(Tile& to, int first, int offset) const {
    if (offset < 0) return;
#pragma unroll
    for (int u = 0; u < K::kTileVectors; ++u) {
      const typename K::WideVec more = widen_all(segment.vector_at(offset, first + u));
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) to[u][i] += more[i];
    }
  }
  // to = values + the input at old_offset
  __device__ __forceinline__ void write(T* to, const Tile& values, int first, int old_offset) const {
    Tile sum;
#pragma unroll
    for (int u = 0; u < K::kTileVectors; ++u) sum[u] = values[u];
    add(sum, first, old_offset);
#pragma unroll
    for (int u = 0; u < K::kTileVectors; ++u) {
      if (items.has(first + u)) {
        store_stream(to + (first + u) * K::kThreads * K::kWidth, narrow_all<T>(sum[u]), plan.written);
      }
    }
  }
  // Writes the vectors `first`, `first` + 1, ... of the gradients.
  __device__ __forceinline__ void write_tile(GradientTile<K>& tile, int first) const {
    if constexpr (K::kGate != Gate::none) {
      if (tensors.d_gate.data) write(d_gate, tile.d_gate, first, old_d_gate_offset);
    }
    add(tile.d_r, first, d_r_offset);
    if (tensors.d_residual.data) write(d_residual, tile.d_r, first, old_d_residual_offset);
    if (tensors.d_x.data) write(d_x, tile.d_r, first, old_d_x_offset);
  }
};

// Second pass: computes the gradients of a segment and writes them. Vectors that registers keep are worked on together,
// so that their reads from shared memory overlap.
template <class K, bool CENTER, bool WEIGHTED, Activation ACT>
__device__ __forceinline__ void apply_gradients(const SegmentInputs<K>& segment, const BackwardItems<K>& items,
                                                bool active, KeptElements<K>& kept,
                                                const SegmentFactors<typename K::A>& factors,
                                                const NormScalars<typename K::A>& scalars,
                                                const SegmentOutputs<K>& outputs,
                                                typename K::ParameterSumArray& parameter_sums) {
#pragma unroll
  for (int first = 0; first < K::kVectors; first += K::kTileVectors) {
    if (!active || !items.has(first)) continue;
    GradientTile<K> tile;
#pragma unroll
    for (int u = 0; u < K::kTileVectors; ++u) {
      const int v = first + u;
      Elements<K> e;
      if constexpr (K::kKeepsElements) {
        e = kept.elements[v];
      } else {
        e = compute_elements<K, Pass::second, CENTER, WEIGHTED, ACT>(segment, v, kept);
      }
      compute_gradients<K, WEIGHTED>(segment, e, v, factors, scalars, parameter_sums, tile.d_r[u], tile.d_gate[u]);
    }
    outputs.write_tile(tile, first);
  }
}

// Calls work(center, weighted) with the flags as std::bool_constant.
template <class K, class Work>
__device__ __forceinline__ void with_flags(const Work& work, bool center, bool weighted) {
  if constexpr (!K::kHasFormsForFlags) {
    work(std::true_type{}, std::true_type{});
  } else if (center) {
    if (weighted) {
      work(std::true_type{}, std::true_type{});
    } else {
      work(std::true_type{}, std::false_type{});
    }
  } else {
    if (weighted) {
      work(std::false_type{}, std::true_type{});
    } else {
      work(std::false_type{}, std::false_type{});
    }
  }
}

}  // namespace heddle::kernels::cuda
