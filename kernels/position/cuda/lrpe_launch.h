// Chooses among the kernels of the position encodings, by storage type, alignment and options.     docs/layers.md#lrpe
// float64, rows that are not whole aligned vectors, and tokens whose place in the text lies on the device take the
// kernels of lrpe_rows.h. Other rows take those of lrpe_vectors.h, or for a softmax over the sequence those of
// lrpe_slab.h (short sequences) or lrpe_sequence.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/position/cuda/lrpe_rows.h"
#include "kernels/position/cuda/lrpe_slab.h"

namespace heddle::kernels::cuda {

// The number of neighbouring threads that hold a row of x as whole vectors; 0 where the vector kernels do not apply.
template <class Encoding>
int lanes_of_row(const HeadsView& x, const RowsView& theta, Softmax softmax) {
  const int64_t angles = Encoding::angle_count(x.dim);
  if (std::is_same_v<typename Encoding::T, double> || angles % Encoding::WIDTH != 0) return 0;
  const int64_t lanes = angles / Encoding::WIDTH;
  if (x.batch * x.heads > INT32_MAX || LrpeWork::items_of(x, theta.rows, lanes) > INT32_MAX) return 0;
  if (!Encoding::takes(theta)) return 0;
  const bool is_fit = softmax == Softmax::none ? lanes <= INT32_MAX : lanes <= 32 && (lanes & (lanes - 1)) == 0;
  if (softmax == Softmax::sequence && !SequenceWork::takes(x)) return 0;
  return is_fit ? static_cast<int>(lanes) : 0;
}

// Calls launch(std::integral_constant<Act, act>) with the kind of activation; each kind has its own kernels.
template <class Options, class Launch>
void visit_act(const Options& options, const Launch& launch) {
  if (options.softmax == Softmax::sequence) {
    launch(std::integral_constant<Act, Act::sequence>{});
  } else if (options.softmax == Softmax::feature) {
    launch(std::integral_constant<Act, Act::softmax>{});
  } else if (options.act == Activation::none) {
    launch(std::integral_constant<Act, Act::none>{});
  } else {
    launch(std::integral_constant<Act, Act::elementwise>{});
  }
}

// y (=). Vectors is the encoding for vectors of 16 bytes, Single the same with a WIDTH of 1.
template <class Vectors, class Single>
void launch_lrpe_forward(Context& context, const typename Vectors::ForwardArgs& args) {
  using T = typename Vectors::T;
  const HeadsView& x = args.x;
  if (x.batch * x.length * x.heads * x.dim == 0) return;
  const Softmax softmax = args.options.softmax;
  const bool is_for_vectors = args.tokens_before == nullptr && can_vectorize_all(Vectors::WIDTH, x, args.y);
  const int lanes = is_for_vectors ? lanes_of_row<Vectors>(x, args.theta, softmax) : 0;
  if constexpr (!std::is_same_v<T, double>) {
    if (lanes > 0) {
      if (softmax == Softmax::sequence && launch_slab_forward<Vectors>(context, args, lanes)) return;
      HeadsView table;
      if (softmax == Softmax::sequence) table = launch_sequence_sums<Vectors>(context, args, lanes);
      return visit_act(args.options, [&](auto act) {
        constexpr Act kAct = decltype(act)::value;
        using Tuning = LrpeTuning<Vectors, kAct>;
        const LrpeWork work(context, x, args.theta.rows, lanes, Tuning::kForwardSplit, Tuning::kForwardResident);
        constexpr auto kernel = lrpe_forward<Vectors, kAct>;
        if constexpr (kAct == Act::sequence) {
          HEDDLE_LAUNCH_DEPENDENT(context, kernel, work.grid, LrpeWork::kThreads, 0, args, work, table);
        } else {
          HEDDLE_LAUNCH(context, kernel, work.grid, LrpeWork::kThreads, 0, args, work, table);
        }
      });
    }
  }
  if (softmax == Softmax::sequence) {
    const dim3 grid(static_cast<unsigned>(x.batch * x.heads), static_cast<unsigned>(ceil_div(x.dim, 32)));
    HEDDLE_LAUNCH(context, (softmax_over_sequence<T, typename Vectors::ForwardArgs>), grid, 32 * kSequenceWarps, 0,
                  args);
  }
  HEDDLE_LAUNCH(context, lrpe_forward_rows<Single>, grid_for(context, x.batch * x.length * x.heads, 1, 64), 32, 0,
                args);
}

// d_x (=|+=)
template <class Vectors, class Single>
void launch_lrpe_d_x(Context& context, const typename Vectors::BackwardArgs& args) {
  using T = typename Vectors::T;
  const HeadsView& d_x = args.d_x.view;
  if (!args.d_x || d_x.batch * d_x.length * d_x.heads * d_x.dim == 0) return;
  const Softmax softmax = args.options.softmax;
  const int lanes =
      can_vectorize_all(Vectors::WIDTH, d_x, args.d_y, args.x) ? lanes_of_row<Vectors>(d_x, args.theta, softmax) : 0;
  if constexpr (!std::is_same_v<T, double>) {
    if (lanes > 0) {
      if (softmax == Softmax::sequence && launch_slab_backward<Vectors>(context, args, lanes)) return;
      if (softmax == Softmax::sequence) return launch_sequence_backward<Vectors>(context, args, lanes);
      return visit_act(args.options, [&](auto act) {
        constexpr Act kAct = decltype(act)::value;
        if constexpr (kAct != Act::sequence) {
          using Tuning = LrpeTuning<Vectors, kAct>;
          const LrpeWork work(context, d_x, args.theta.rows, lanes, Tuning::kBackwardSplit, Tuning::kBackwardResident);
          const auto start = [&](auto add) {
            constexpr bool kAdd = decltype(add)::value;
            HEDDLE_LAUNCH(context, (lrpe_backward<Vectors, kAct, kAdd>), work.grid, LrpeWork::kThreads,
                          (BackwardStages<Vectors, kAct, kAdd>::kSharedBytes), args, work);
          };
          args.d_x.mode == GradientMode::accumulate ? start(std::true_type{}) : start(std::false_type{});
        }
      });
    }
  }
  if (softmax == Softmax::sequence) {
    const dim3 grid(static_cast<unsigned>(d_x.batch * d_x.heads),
                    static_cast<unsigned>(ceil_div(Single::angle_count(d_x.dim), 32)));
    HEDDLE_LAUNCH(context, softmax_dots<Single>, grid, 32 * kSequenceWarps, 0, args);
  }
  HEDDLE_LAUNCH(context, lrpe_backward_rows<Single>, grid_for(context, d_x.batch * d_x.length * d_x.heads, 1, 64), 32,
                0, args);
}

// d_x and d_theta (=|+=), those of them that are wanted.
template <class Vectors, class Single>
void launch_lrpe_backward(Context& context, const typename Vectors::BackwardArgs& args) {
  launch_lrpe_d_x<Vectors, Single>(context, args);
  if (args.d_theta) launch_d_theta<Single>(context, args);
}

}  // namespace heddle::kernels::cuda
