// Backward of the norm family, host part: plans and launches.                          docs/layers.md#normalization
// With xhat = (p - mean) * inv_std and g = d_y * (act(gate) if post) * weight * scale, over one segment:
//   d_p = inv_std * (g - xhat * mean(g * xhat) - (mean(g) if centred))
//   gate pre:   d_r = d_p * act(gate),  d_gate = d_p * r * act'(gate)
//   gate post:  d_r = d_p,              d_gate = d_y * (y before the gate) * act'(gate)
//   d_x = d_residual = d_r + the gradient that arrived at r
//   d_weight = sum of d_y * (act(gate) if post) * scale * xhat,  d_bias = sum of d_y * (act(gate) if post)
// Writes (=) or adds to (+=), as their modes say, d_x, d_residual, d_gate, d_weight and d_bias. The partial sums of
// d_weight and d_bias over blocks of rows are written (=) to args.partials.
// norm_backward_rows takes segments that fit a row group, norm_backward_any all others; norm_reduce_partials then adds
// up the partial sums. launch_backward is instantiated by one translation unit for each storage type; weight and bias
// in full precision beside 16-bit x are those of norm_backward_full_precision.cu.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/norm/cuda/norm_backward_any.h"
#include "kernels/norm/cuda/norm_backward_rows.h"

namespace heddle::kernels::cuda {

// Bytes of the tensors as large as x that a launch reads and writes.
inline int64_t moved_bytes(const NormBackwardArgs& args, const BackwardTensors& tensors) {
  const int64_t count = tensors.count + bool(args.d_x) + bool(args.d_residual) + bool(args.d_gate);
  return count * args.x.rows * args.x.cols * static_cast<int64_t>(size_of(args.x.dtype));
}

// Chooses the BackwardPlan of a launch and its grid. K is a BackwardTraits. The numbers here were chosen by measuring
// on an H200; docs/notes/norm.md.
template <class K, int MAX_STAGES>
class BackwardPlanner {
 public:
  BackwardPlanner(Context& context, const NormBackwardArgs& args, const BackwardTensors& tensors)
      : context_(context),
        args_(args),
        tensors_(tensors),
        extent_(args.x.cols / args.options.groups),
        items_(K::kHasSums ? args.x.rows : args.x.rows * args.options.groups),
        stage_bytes_(tensors.count * int64_t{K::kInputBytes}) {
    if constexpr (K::kHasSums) {
      plan_rows();
    } else {
      plan_segments();
    }
  }

  // 0 when a block does not fit a multiprocessor.
  int64_t blocks() const { return blocks_; }
  size_t shared_bytes() const { return shared_bytes(stages_); }

  BackwardPlan plan() const {
    // L2 evicts data that is read after all other, or before all other where it holds about all that moves. It evicts
    // data that is written after all other too, because the next operator reads it, but not where many rows go by
    // without parameter sums, with a gate, or in a kernel that is bound by instructions. A third input of many rows is
    // not prefetched during the sum.
    constexpr bool kWritesStay = K::kHasSums && K::kGate == Gate::none && !K::kInstructionBound;
    const bool has_third_input = args_.residual || args_.gate || args_.d_r;
    return {.items = static_cast<int>(items_),
            .block_stride = static_cast<int>(items_per_block_),
            .block_span = static_cast<int>(is_interleaved_ ? items_ : items_per_block_),
            .step = static_cast<int>(is_interleaved_ ? blocks_ * K::kRowGroups : K::kRowGroups),
            .stages = stages_,
            .prefetch_during_sum = !has_third_input || moves_less(2.5),
            .read = fits_l2() ? EvictionPriority::first : EvictionPriority::last,
            .written = kWritesStay || moves_less(8) ? EvictionPriority::last : EvictionPriority::normal};
  }

 private:
  // Without parameter sums: one segment a row group, and several where those are so short that starting blocks would
  // take longer than their work.
  void plan_segments() {
    const int64_t segments_per_row_group = std::clamp<int64_t>((32 << 10) / stage_bytes_, 1, 8);
    stages_ = segments_per_row_group > 1 ? 2 : 1;
    if (shared_bytes() > context_.properties().shared_bytes_per_block) return;
    items_per_block_ = K::kRowGroups * segments_per_row_group;
    blocks_ = ceil_div(items_, items_per_block_);
  }

  // With parameter sums: as many blocks as the device holds, so that each walks over many rows.
  void plan_rows() {
    const int64_t resident = choose_stages();
    if (resident == 0) return;
    const int64_t all_resident = resident * context_.properties().multiprocessors;
    blocks_ = std::min({ceil_div(items_, K::kRowGroups), all_resident, args_.partials.rows});
    // Blocks take rows in an interleaved order, or each a contiguous chunk: faster where few wide rows fit L2.
    is_interleaved_ = !(fits_l2() && K::kVectors > 1 && K::kKeepsElements);
    items_per_block_ =
        is_interleaved_ ? K::kRowGroups : ceil_div(ceil_div(items_, blocks_), K::kRowGroups) * K::kRowGroups;
    blocks_ = std::min(blocks_, ceil_div(items_, items_per_block_));
  }

  // Sets the stages and returns the blocks of a multiprocessor, 0 when not even one fits. There are as many of both as
  // there is room for, but no more than 128 KiB where several blocks share a multiprocessor; if it cannot have both,
  // 512 threads go before another stage.
  int64_t choose_stages() {
    for (stages_ = MAX_STAGES;; --stages_) {
      const int64_t most = std::clamp<int64_t>((128 << 10) / (stages_ * stage_bytes_), 1, 3);
      const int64_t blocks =
          std::min<int64_t>(most, resident_blocks(context_, norm_backward_rows<K>, K::kBlockThreads, shared_bytes()));
      if (stages_ == 1 || blocks * K::kBlockThreads >= 512) return blocks;
    }
  }

  // Dynamic shared memory: the weight and the stages, or at the end the parameter sums of all row groups but one.
  size_t shared_bytes(int stages) const {
    constexpr int64_t kValues = K::kSums * K::kVectors * K::kWidth;  // parameter sums of a thread
    constexpr int64_t kSumBytes = (K::kRowGroups - 1) * K::kThreads * kValues * int64_t{sizeof(typename K::A)};
    return static_cast<size_t>(std::max(K::weight_bytes(extent_) + stages * stage_bytes_, kSumBytes));
  }

  bool moves_less(double l2_sizes) const {
    return static_cast<double>(moved_bytes(args_, tensors_)) <
           l2_sizes * static_cast<double>(context_.properties().l2_bytes);
  }
  bool fits_l2() const { return moves_less(1.25); }

  Context& context_;
  const NormBackwardArgs& args_;
  const BackwardTensors& tensors_;
  int64_t extent_, items_, stage_bytes_;
  int64_t blocks_ = 0, items_per_block_ = 0;
  int stages_ = 1;
  bool is_interleaved_ = false;
};

// Launches norm_backward_rows; returns its blocks along x, which is the number of rows of partial sums, or 0 when it
// has no room and nothing was launched.
template <class K, int MAX_STAGES>
int launch_rows(Context& context, const NormBackwardArgs& args, const BackwardTensors& tensors) {
  const BackwardPlanner<K, MAX_STAGES> planner(context, args, tensors);
  if (planner.blocks() == 0) return 0;
  const dim3 grid(static_cast<unsigned>(planner.blocks()),
                  K::kHasSums ? static_cast<unsigned>(args.options.groups) : 1u);
  HEDDLE_LAUNCH(context, norm_backward_rows<K>, grid, K::kBlockThreads, planner.shared_bytes(), args, tensors,
                NormScalars<typename K::A>(args.x, args.options), planner.plan());
  return static_cast<int>(planner.blocks());
}

// When a kernel with parameter sums learns whether the norm is centred. At compile time is 2 % faster for most shapes;
// some that run one block on a multiprocessor are up to 15 % slower so.
enum class CenterKnown { at_compile_time, at_run_time };

// The shape of a row group with parameter sums, and the maximum number of its stages.
template <int THREADS, int VECTORS, int MAX_STAGES = 2, CenterKnown CENTER_KNOWN = CenterKnown::at_compile_time>
struct SumsShape : RowGroupShape<THREADS, VECTORS> {
  static constexpr int kMaxStages = MAX_STAGES;
  static constexpr CenterKnown kCenterKnown = CENTER_KNOWN;
};
template <int THREADS, int VECTORS, int MAX_STAGES = 2>
using RunTimeSumsShape = SumsShape<THREADS, VECTORS, MAX_STAGES, CenterKnown::at_run_time>;

// Calls launch(shape) for segments of `vectors` vectors, unless they are too long for every shape. Measured on an H200
// from 2048 features of 16 bits on. Short segments are kept in registers between the passes, one vector a thread, or
// two without a gate. Where there are many rows, these are faster: two vectors a thread that are read from shared
// memory again, if only x and d_y are read by less than 256 threads; three stages in fewer blocks, if five inputs or
// more are read.
template <ParameterSums SUMS, Gate GATE, class Launch>
void choose_backward_shape(int64_t vectors, int64_t rows, int inputs, const Launch& launch) {
  if constexpr (SUMS == ParameterSums::none) {
    choose_shape<RowGroupShape<8, 1>, RowGroupShape<16, 1>, RowGroupShape<32, 1>, RowGroupShape<32, 2>,
                 RowGroupShape<32, 4>, RowGroupShape<64, 4>, RowGroupShape<128, 4>, RowGroupShape<256, 4>,
                 RowGroupShape<512, 3>, RowGroupShape<512, 4>>(vectors, launch);
  } else {
    const bool has_many_rows = rows > 24576;
    const bool keeps_elements = GATE != Gate::none || inputs > 2 || !has_many_rows;
    if constexpr (GATE == Gate::none) {
      if (has_many_rows && inputs > 4 && vectors > 128 && choose_shape<SumsShape<256, 1, 3>>(vectors, launch)) return;
    }
    if ((keeps_elements || vectors <= 32) &&
        choose_shape<SumsShape<8, 1>, SumsShape<16, 1>, SumsShape<32, 1>, SumsShape<64, 1>, SumsShape<128, 1>,
                     SumsShape<256, 1>>(vectors, launch)) {
      return;
    }
    if constexpr (GATE != Gate::none) {  // few vectors, so that nothing spills
      choose_shape<SumsShape<256, 2>, SumsShape<512, 2>>(vectors, launch);
    } else if (inputs > 2) {
      choose_shape<SumsShape<256, 2>, RunTimeSumsShape<512, 2>, RunTimeSumsShape<512, 3>, RunTimeSumsShape<512, 4>>(
          vectors, launch);
    } else {
      constexpr int kStages = SUMS == ParameterSums::weight ? 2 : 3;
      choose_shape<SumsShape<32, 2>, SumsShape<64, 2>, SumsShape<128, 2>, SumsShape<256, 2>, SumsShape<512, 2, kStages>,
                   RunTimeSumsShape<512, 3>, RunTimeSumsShape<512, 4, 3>>(vectors, launch);
    }
  }
}

// Whether norm_backward_rows can take these arguments, if a row group holds the segments.
template <class T>
bool vectorizes(const NormBackwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  return BackwardTensors::fit(args) && groups_vectorize(args.x, args.options, kWidth) && args.options.groups <= 65535 &&
         can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.weight, args.bias, args.d_y, args.d_r,
                           args.d_x.view, args.d_residual.view, args.d_gate.view);
}

// Chooses an instance of norm_backward_rows and launches it; returns its rows of partial sums, or 0 when no instance
// takes these arguments.
template <class T, ParameterSums SUMS, Gate GATE>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  if (!vectorizes<T>(args)) return 0;
  const BackwardTensors tensors(args);
  int partials = 0;
  const int64_t vectors = args.x.cols / args.options.groups / vector_width<T>;
  choose_backward_shape<SUMS, GATE>(vectors, args.x.rows, tensors.count, [&](auto shape) {
    using Shape = decltype(shape);
    const auto start = [&]<Center CENTER, int MAX_STAGES>() {
      using K = BackwardTraits<T, Shape::kThreads, Shape::kVectors, SUMS, GATE, CENTER>;
      partials = launch_rows<K, MAX_STAGES>(context, args, tensors);
    };
    if constexpr (SUMS == ParameterSums::none) {
      start.template operator()<Center::run_time, 2>();
    } else if constexpr (Shape::kCenterKnown == CenterKnown::at_run_time) {
      start.template operator()<Center::run_time, Shape::kMaxStages>();
    } else if (args.options.center) {
      start.template operator()<Center::yes, Shape::kMaxStages>();
    } else {
      start.template operator()<Center::no, Shape::kMaxStages>();
    }
  });
  return partials;
}

template <class T, ParameterSums SUMS>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  switch (gate_of(args.gate, args.options)) {
    case Gate::pre:
      return launch_rows<T, SUMS, Gate::pre>(context, args);
    case Gate::post:
      return launch_rows<T, SUMS, Gate::post>(context, args);
    default:
      return launch_rows<T, SUMS, Gate::none>(context, args);
  }
}

template <class T>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  if constexpr (std::is_same_v<T, double>) {
    return 0;
  } else {
    if (!args.d_weight && !args.d_bias) return launch_rows<T, ParameterSums::none>(context, args);
    if (!args.d_bias) return launch_rows<T, ParameterSums::weight>(context, args);
    return launch_rows<T, ParameterSums::weight_and_bias>(context, args);
  }
}

// Launches norm_backward_any; returns its rows of partial sums.
template <class T, class P>
int launch_any(Context& context, const NormBackwardArgs& args) {
  const NormScalars<accumulate_t<T>> scalars(args.x, args.options);
  const bool has_sums = args.d_weight || args.d_bias;
  const int64_t most = has_sums ? args.partials.rows : int64_t{context.properties().multiprocessors} * 16;
  const int64_t blocks = std::min(args.x.rows, most);
  if (scalars.extent <= 512) {
    HEDDLE_LAUNCH(context, (norm_backward_any<T, P, 32>), static_cast<unsigned>(blocks), 32, 0, args, scalars);
  } else {
    HEDDLE_LAUNCH(context, (norm_backward_any<T, P, 256>), static_cast<unsigned>(blocks), 256, 0, args, scalars);
  }
  return static_cast<int>(blocks);
}

template <class T>
void launch_backward(Context& context, const NormBackwardArgs& args) {
  int partials = 0;
  if (args.x.rows > 0) {
    partials = launch_rows<T>(context, args);
    if (partials == 0) partials = launch_any<T, T>(context, args);
  }
  reduce_partials<T>(context, args, partials);
}

}  // namespace heddle::kernels::cuda
