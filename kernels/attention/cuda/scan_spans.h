// The states before the spans of a sequence, see scan.h, from what each span adds to the state:
//   state before span s + 1 = (exp of the sum of the log decays of span s) (state before span s) + what span s adds
// or what span s adds alone, where the state starts anew at one of its tokens.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/common/cuda/reduce.h"

namespace heddle::kernels::cuda {
namespace detail {

inline constexpr int kSpanThreads = 256;
// States that are loaded before the first of them is needed.
inline constexpr int kSpanBatch = 8;

// What is left of a state after a span. `passes` is false where that is nothing, whatever the state holds.
struct SpanDecay {
  double power;
  bool passes;
};

// A sum of log decays as it is.
__device__ __forceinline__ double natural(double sum) { return sum; }
__device__ __forceinline__ double natural(float2 sum) {
  return (static_cast<double>(sum.x) + static_cast<double>(sum.y)) * 0.6931471805599453;
}

// Computed by a warp; all lanes get it. `index` is that of the span in time.
template <class A>
__device__ __forceinline__ SpanDecay span_decay(const ScanArgs<A>& args, int64_t state_head, int64_t index) {
  const int64_t length = args.query.length, begin = index * args.span_length;
  const int64_t end = min(length, begin + args.span_length), windows = parts_of(length, kWindow);
  const bool forgets = args.log_decay != nullptr && args.log_decay[state_head % args.decays] == -infinity<A>();
  const HeadDecay<A> decay(args, state_head);
  double sum = 0.0;
  bool starts_anew = forgets;
  for (int64_t window = begin / kWindow + threadIdx.x % 32; window * kWindow < end; window += 32) {
    if (args.starts != nullptr) starts_anew |= args.starts[state_head * windows + window] != 0;
    if (decay.sums != nullptr) sum += natural(decay.sums[min(window * kWindow + kWindow, end) - 1]);
  }
  sum = decay.sums != nullptr ? group_sum(sum) : static_cast<double>(end - begin) * decay.slope;
  return {exp(sum), !__any_sync(0xffffffffu, starts_anew)};
}

template <class A>
__global__ void __launch_bounds__(kSpanThreads) combine_spans(const __grid_constant__ ScanArgs<A> args) {
  __shared__ SpanDecay decays[kMostSpans];
  begin_scan(args);
  const int64_t states = args.query.batch * args.heads, size = args.span_states.size;
  const int64_t state_head = args.state_head(blockIdx.y / args.query.heads, blockIdx.y % args.query.heads);
  const int count = static_cast<int>(args.spans - 1), thread = static_cast<int>(threadIdx.x);
  for (int place = thread / 32; place < count; place += kSpanThreads / 32) {
    decays[place] = span_decay(args, state_head, args.from_end ? args.spans - 1 - place : place);
  }
  __syncthreads();
  const int64_t e = int64_t{blockIdx.x} * kSpanThreads + thread;
  if (e >= size) return;
  A* const first = args.span_states.data + state_head * size + e;
  A state = args.state_in.data != nullptr ? args.state_in.data[state_head * size + e] : A(0);
  for (int begin = 0; begin < count; begin += kSpanBatch) {
    A added[kSpanBatch];
#pragma unroll
    for (int i = 0; i < kSpanBatch; ++i) {
      added[i] = begin + i < count ? first[(begin + i) * states * size] : A(0);
    }
#pragma unroll
    for (int i = 0; i < kSpanBatch; ++i) {
      if (begin + i >= count) break;
      const SpanDecay decay = decays[begin + i];
      if (!decay.passes) state = A(0);
      state = static_cast<A>(decay.power * static_cast<double>(state) + static_cast<double>(added[i]));
      first[(begin + i) * states * size] = state;
    }
  }
}

}  // namespace detail

// Makes of what the spans add to the states, as a scan for the spans' states has left it, the states before the spans.
template <class A>
void combine_span_states(Context& context, const ScanArgs<A>& args) {
  check(args.spans <= kMostSpans, "[linear_attention] a sequence is cut into {} spans", args.spans);
  const dim3 grid(static_cast<unsigned>(parts_of(args.span_states.size, detail::kSpanThreads)),
                  static_cast<unsigned>(args.query.batch * args.query.heads));
  HEDDLE_LAUNCH_DEPENDENT(context, detail::combine_spans<A>, grid, detail::kSpanThreads, 0, args);
}

}  // namespace heddle::kernels::cuda
