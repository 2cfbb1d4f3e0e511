// Backward of the norm family.                                                        docs/layers.md#normalization
// With xhat = (p - mean) * inv_std and g = d_y * (act(gate) if after) * weight * scale, over one group:
//   d_p = inv_std * (g - xhat * mean(g * xhat) - (mean(g) if centred))
//   gate before:  d_r = d_p * act(gate),  d_gate = d_p * r * act'(gate)
//   gate after:   d_r = d_p,              d_gate = d_y * (y before the gate) * act'(gate)
//   d_x = d_residual = d_r + the gradient that arrived at r
//   d_weight = sum of d_y * act(gate) * scale * xhat,  d_bias = sum of d_y * act(gate)
// Writes or adds (Destination) d_x, d_residual, d_gate, d_weight, d_bias.
// Units that fit a team of threads take norm_backward_rows; others are read twice, one element at a time. Partial sums
// of d_weight and d_bias are added up by a second kernel in the order of the blocks. A translation unit a storage type
// instantiates launch_backward.
#pragma once

#include "kernels/norm/cuda/norm_backward_rows.h"

namespace heddle::kernels::cuda {

// Any length, any alignment: one element at a time, the unit read twice. A block stays with its row of partials and
// adds to it in memory; a column belongs to the same thread in every row.
template <class T, int TEAM>
__global__ void __launch_bounds__(TEAM)
    norm_backward_any(const __grid_constant__ NormBackwardArgs args,
                      const __grid_constant__ NormNumbers<accumulate_t<T>> numbers) {
  using A = accumulate_t<T>;
  __shared__ TeamSums<A, TEAM, 1, 3> shared;
  const NormOptions& options = args.options;
  const bool before = args.gate && options.gate_position == GatePosition::pre;
  const bool after = args.gate && options.gate_position == GatePosition::post;
  int turn = 0;
  if (args.partials) {
    for (int64_t c = threadIdx.x; c < 2 * args.x.cols; c += TEAM) row<A>(args.partials, blockIdx.x)[c] = A(0);
    __syncthreads();
  }
  for (int64_t row_index = blockIdx.x; row_index < args.x.rows; row_index += gridDim.x) {
    for (int64_t group = 0; group < numbers.groups; ++group) {
      const int64_t first = group * numbers.extent;
      const int64_t unit = row_index * numbers.groups + group;
      const A mean = args.mean ? vector<const A>(args.mean)[unit] : A(0);
      const A inv_std = vector<const A>(args.inv_std)[unit];
      const auto at = [&](const RowsView& view, int64_t c) { return widen(row<const T>(view, row_index)[first + c]); };
      const auto r_of = [&](int64_t c) {
        return args.residual ? round_to<T>(at(args.x, c) + at(args.residual, c)) : at(args.x, c);
      };
      const auto act_of = [&](int64_t c) {
        Activated<A> result{A(1), A(0)};
        if (!args.gate) return result;
        visit_activation(options.gate_act, [&](auto act) {
          result = activate_with_derivative<decltype(act)::value, T>(at(args.gate, c));
        });
        return result;
      };
      const auto d_of = [&](A r, A act) { return (before ? r * act : r) - mean; };
      const auto weight_of = [&](int64_t c) {
        return args.weight ? widen(vector<const T>(args.weight)[first + c]) : A(1);
      };
      A sums[3] = {A(0), A(0), A(0)};
      for (int64_t c = threadIdx.x; c < numbers.extent; c += TEAM) {
        const A act = act_of(c).value;
        const A d = d_of(r_of(c), act);
        const A g = rounded_product(after ? at(args.d_y, c) * act : at(args.d_y, c), weight_of(c));
        sums[0] += g * d;
        sums[1] += g;
        sums[2] += d;
      }
      team_sum(sums, shared, 0, turn);
      const UnitFactors<A> factors(sums, inv_std, options.center, numbers);
      for (int64_t c = threadIdx.x; c < numbers.extent; c += TEAM) {
        const Activated<A> act = act_of(c);
        const A r = r_of(c), d_y = at(args.d_y, c), weight = weight_of(c);
        const A d = d_of(r, act.value), xhat = factors.xhat(d);
        const A upstream = after ? d_y * act.value : d_y;
        if (args.partials) {
          A* partials = row<A>(args.partials, blockIdx.x) + first + c;
          partials[0] += upstream * xhat * numbers.scale;
          partials[args.x.cols] += upstream;
        }
        const A d_p = factors.d_p(rounded_product(upstream, weight), d);
        const A bias = args.bias ? widen(vector<const T>(args.bias)[first + c]) : A(0);
        const A d_gate = (before ? d_p * r : d_y * (numbers.scale * xhat * weight + bias)) * act.derivative;
        A d_r = before ? d_p * act.value : d_p;
        if (args.d_r) d_r += at(args.d_r, c);
        // d_x may be the memory of d_r; nothing of this element is read after it is written.
        const auto write = [&](const RowsDestination& to, A value) {
          if (!to) return;
          if (to.mode == GradientMode::accumulate) value += at(to.view, c);
          row<T>(to.view, row_index)[first + c] = narrow<T>(value);
        };
        write(args.d_x, d_r);
        write(args.d_residual, d_r);
        write(args.d_gate, d_gate);
      }
    }
  }
}

// A team with sums over rows: the units that it has under way, at most, and whether its kernels know when compiling if
// there is a mean. Most are 2 % faster so; alone on a multiprocessor some are up to 15 % slower.
enum class Knows { center, nothing };
template <int TEAM, int VECTORS, int STAGES = 2, Knows KNOWS = Knows::center>
struct SumsShape : TeamShape<TEAM, VECTORS> {
  static constexpr int kStages = STAGES;
  static constexpr Knows kKnows = KNOWS;
};

// Of the tensors as large as x, those included that are written.
inline int64_t moved_bytes(const NormBackwardArgs& args, const NormStreams& streams) {
  const int64_t tensors = streams.count + bool(args.d_x) + bool(args.d_residual) + bool(args.d_gate);
  return tensors * args.x.rows * args.x.cols * static_cast<int64_t>(size_of(args.x.dtype));
}

// Launches the kernel that keeps units in shared memory; returns its rows of partials, 0 when there is no room.
template <class T, Sums SUMS, Gate GATE, Center CENTER, class Shape>
int launch_rows(Context& context, const NormBackwardArgs& args, const NormStreams& streams, Shape) {
  constexpr int kTeam = Shape::kTeam, kVectors = Shape::kVectors;
  constexpr int kTeams = block_teams(kTeam, kVectors, SUMS, GATE), kThreads = kTeam * kTeams;
  const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
  const auto kernel = norm_backward_rows<T, kTeam, kVectors, SUMS, GATE, CENTER>;
  const int64_t stage_bytes = streams.count * int64_t{kThreads} * kVectors * 16;
  const auto shared_bytes = [&](int stages) {
    const int64_t weight = weight_bytes<T>(kTeam, kVectors, SUMS, GATE, numbers.extent);
    constexpr int64_t kValues = static_cast<int64_t>(SUMS) * kVectors * vector_width<T>;  // row_sums of a thread
    const int64_t left = (kTeams - 1) * kTeam * kValues * static_cast<int64_t>(sizeof(accumulate_t<T>));
    return static_cast<size_t>(std::max(weight + stages * stage_bytes, left));
  };
  const int64_t count = SUMS == Sums::none ? numbers.units : args.x.rows;
  const auto moves_less = [&](double l2_sizes) {
    return static_cast<double>(moved_bytes(args, streams)) <
           l2_sizes * static_cast<double>(context.properties().l2_bytes);
  };
  const bool fits = moves_less(1.25);  // L2 holds about all that moves
  int64_t each, blocks;
  int stages = 1;
  bool in_turns = false;
  if constexpr (SUMS == Sums::none) {
    // One unit a team, and several where those are so short that starting blocks would take longer than their work.
    const int64_t turns = std::clamp<int64_t>((32 << 10) / stage_bytes, 1, 8);
    if (turns > 1) stages = 2;
    if (shared_bytes(stages) > context.properties().shared_bytes_per_block) return 0;
    each = kTeams * turns;
    blocks = ceil_div(count, each);
  } else {
    // Units under way, and blocks: as many as there is room for, but no more than 128 KiB on a multiprocessor where
    // several blocks share it; of the two, 512 threads first.
    for (stages = Shape::kStages;; --stages) {
      const int64_t few = std::clamp<int64_t>((128 << 10) / (stages * stage_bytes), 1, 3);
      blocks = std::min<int64_t>(few, resident_blocks(context, kernel, kThreads, shared_bytes(stages)));
      if (stages == 1 || blocks * kThreads >= 512) break;
    }
    if (blocks == 0) return 0;
    blocks = std::min({ceil_div(count, kTeams), blocks * context.properties().multiprocessors, args.partials.rows});
    // Blocks take rows in turns, or each its own stretch of them: 0.3 to 1.2 us faster where rows of 4096 features are
    // few, up to 7 % slower elsewhere.
    in_turns = !(fits && kVectors > 1 && keeps_elements(kTeam, kVectors, SUMS, GATE));
    each = in_turns ? kTeams : ceil_div(ceil_div(count, blocks), kTeams) * kTeams;
    blocks = std::min(blocks, ceil_div(count, each));
  }
  const auto grid = static_cast<unsigned>(blocks);
  // All measured. L2 gives up last what is read (1 to 4 % of the time), but first where it holds about all that moves
  // (5 %); and last what is written, which the next operator reads (3 to 5 %), but where many rows go by without sums,
  // with a gate, or bound by instructions (1 % the other way). Where many rows of a third tensor are read it is 4 %
  // slower to ask early.
  constexpr bool kKeepsWritten =
      SUMS != Sums::none && GATE == Gate::none && !is_alone(kTeam, kVectors, SUMS, GATE, CENTER);
  const bool has_third = args.residual || args.gate || args.d_r;
  const RowsPlan plan{.count = static_cast<int>(count),
                      .each = static_cast<int>(each),
                      .span = static_cast<int>(in_turns ? count : each),
                      .step = static_cast<int>(in_turns ? blocks * kTeams : kTeams),
                      .stages = stages,
                      .is_early = !has_third || moves_less(2.5),
                      .read = fits ? EvictionPriority::first : EvictionPriority::last,
                      .written = kKeepsWritten || moves_less(8) ? EvictionPriority::last : EvictionPriority::normal};
  HEDDLE_LAUNCH(context, kernel, dim3(grid, SUMS == Sums::none ? 1u : static_cast<unsigned>(numbers.groups)), kThreads,
                shared_bytes(stages), args, streams, numbers, plan);
  return static_cast<int>(grid);
}

// Calls launch(shape), measured on an H200 from 2048 features of 16 bits on. Short rows are kept between the passes,
// one vector a thread, or two without a gate. Faster where there are many rows: two vectors a thread and a second
// reading from shared memory, if only x and d_y are read by less than 256 threads; three units under way in fewer
// blocks, if five streams are.
template <Sums SUMS, Gate GATE, class Launch>
void choose_backward_shape(int64_t vectors, int64_t rows, int streams, const Launch& launch) {
  if constexpr (SUMS == Sums::none) {
    choose_team<TeamShape<8, 1>, TeamShape<16, 1>, TeamShape<32, 1>, TeamShape<32, 2>, TeamShape<32, 4>,
                TeamShape<64, 4>, TeamShape<128, 4>, TeamShape<256, 4>, TeamShape<512, 3>, TeamShape<512, 4>>(vectors,
                                                                                                              launch);
  } else {
    const bool is_many = rows > 24576, is_kept = GATE != Gate::none || streams > 2 || !is_many;
    if constexpr (GATE == Gate::none) {
      if (is_many && streams > 4 && vectors > 128 && choose_team<SumsShape<256, 1, 3>>(vectors, launch)) return;
    }
    if ((is_kept || vectors <= 32) && choose_team<SumsShape<8, 1>, SumsShape<16, 1>, SumsShape<32, 1>, SumsShape<64, 1>,
                                                  SumsShape<128, 1>, SumsShape<256, 1>>(vectors, launch)) {
      return;
    }
    if constexpr (GATE != Gate::none) {  // few vectors, so that nothing spills
      choose_team<SumsShape<256, 2>, SumsShape<512, 2>>(vectors, launch);
    } else {
      if (streams > 2) {
        choose_team<SumsShape<256, 2>, SumsShape<512, 2, 2, Knows::nothing>, SumsShape<512, 3, 2, Knows::nothing>,
                    SumsShape<512, 4, 2, Knows::nothing>>(vectors, launch);
      } else {
        constexpr int kStages = SUMS == Sums::weight ? 2 : 3;
        choose_team<SumsShape<32, 2>, SumsShape<64, 2>, SumsShape<128, 2>, SumsShape<256, 2>,
                    SumsShape<512, 2, kStages>, SumsShape<512, 3, 2, Knows::nothing>,
                    SumsShape<512, 4, 3, Knows::nothing>>(vectors, launch);
      }
    }
  }
}

template <class T, Sums SUMS, Gate GATE>
int launch_rows(Context& context, const NormBackwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  if (!NormStreams::fit(args) || !groups_vectorize(args.x, args.options, kWidth) || args.options.groups > 65535 ||
      !can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.weight, args.bias, args.d_y, args.d_r,
                         args.d_x.view, args.d_residual.view, args.d_gate.view)) {
    return 0;
  }
  const NormStreams streams(args);
  int partials = 0;
  const int64_t vectors = args.x.cols / args.options.groups / kWidth;
  choose_backward_shape<SUMS, GATE>(vectors, args.x.rows, streams.count, [&](auto shape) {
    const auto start = [&](auto center) {
      partials = launch_rows<T, SUMS, GATE, decltype(center)::value>(context, args, streams, shape);
    };
    if constexpr (SUMS == Sums::none) {
      start(std::integral_constant<Center, Center::ask>{});
    } else if constexpr (decltype(shape)::kKnows == Knows::nothing) {
      start(std::integral_constant<Center, Center::ask>{});
    } else if (args.options.center) {
      start(std::integral_constant<Center, Center::yes>{});
    } else {
      start(std::integral_constant<Center, Center::no>{});
    }
  });
  return partials;
}

template <class T, Sums SUMS>
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
void launch_backward(Context& context, const NormBackwardArgs& args) {
  const bool sums = args.d_weight || args.d_bias;
  int partials = 0;
  if (args.x.rows > 0) {
    if constexpr (!std::is_same_v<T, double>) {
      if (!sums) {
        partials = launch_rows<T, Sums::none>(context, args);
      } else if (!args.d_bias) {
        partials = launch_rows<T, Sums::weight>(context, args);
      } else {
        partials = launch_rows<T, Sums::weight_and_bias>(context, args);
      }
    }
    if (partials == 0) {
      const NormNumbers<accumulate_t<T>> numbers(args.x, args.options);
      const int64_t most = sums ? args.partials.rows : int64_t{context.properties().multiprocessors} * 16;
      partials = static_cast<int>(std::min(args.x.rows, most));
      if (numbers.extent <= 512) {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 32>), static_cast<unsigned>(partials), 32, 0, args, numbers);
      } else {
        HEDDLE_LAUNCH(context, (norm_backward_any<T, 256>), static_cast<unsigned>(partials), 256, 0, args, numbers);
      }
    }
  }
  finish<T>(context, args, partials);
}

}  // namespace heddle::kernels::cuda
