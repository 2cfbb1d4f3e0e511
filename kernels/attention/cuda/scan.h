// The scan behind linear attention of more than a few tokens, and of backward. docs/layers.md#linear-attention A
// scan goes over the sequence in one direction; with the rows query_t, key_t and value_t of step t it computes
//   S_t = lambda_t S_{t-1} + inner key_t value_t^T;   out_t (=|+=) outer query_t^T S_t
//   forward    o (=)        is the scan of (q, k, v) from the start;             final_state (=) is its last S
//   backward   d_q (=|+=)   is the scan of (d_o, v, k) from the start, the state transposed
//              d_k (=|+=)   is the scan of (v, d_o, q) from the end, the state transposed
//              d_v (=|+=)   is the scan of (k, q, d_o) from the end;             d_initial_state (=|+=) is its last S
// A block owns one batch, head and tile of value features. It keeps the state S (key features, tile) on chip while it
// goes over the sequence in chunks. No chunk crosses a multiple of kWindow tokens, and a token at which the state
// starts anew is the first of its chunk, so that nothing forgotten enters a product, not even times 0. L_i is the sum
// of the log decays of the chunk's tokens up to i in time. A scan from the start computes
//   out_i = exp(L_i) query_i S + sum over j up to i of exp(L_i - L_j) query_i . key_j value_j
//   S     = exp(L_last) S + sum over j of exp(L_last - L_j) key_j value_j^T
// and one from the end the same with exp(L_i) and exp(L_last - L_j) exchanged and exp(L_j - L_i) for the pairs: its S
// is the gradient of the state after the chunk, then of that before it. Exponents are never positive, but for one in
// scan_recurrent.h.
//
// Where there are few heads the sequence is cut into spans, each with blocks of its own. A scan first leaves what every
// span but the last adds to the state, from keys and values alone; combine_spans() makes of it the states before the
// spans; then the scan itself starts from them.
//
// The gradient of the log decay of token t is, within its chunk and with M_ij = exp(L_i - L_j),
//   sum over j < t <= i of P_ij + sum over i >= t of X_i + sum over j < t of c_j + exp(L_last) <S, dS>
//   P_ij = scale M_ij (q_i . k_j) (d_o_i . v_j);  X_i = q_i . (the part of d_q_i that comes from S);  c_j likewise of
//   k, d_k
// in which nothing cancels. Where decay_gradient.h does not compute it, P and X come from the scan of d_q, which also
// keeps S before each chunk; the others from the scan of d_k. Each is a sum over features, so every tile adds its part.
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>

#include "kernels/attention/linear_attention.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "kernels/attention/log_decay.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda {

// Sums of log decays, within a window and since the last token at which the state starts anew: in double as they are;
// in float times log2(e), as the sum of two floats, for differences of two sums keep the accuracy of float.
template <class A>
struct DecaySumOf {
  using type = float2;
};
template <>
struct DecaySumOf<double> {
  using type = double;
};
template <class A>
using DecaySum = typename DecaySumOf<A>::type;

// States in global memory: element (key feature, value feature) of the state of one batch and head is
// data[(batch * heads + head) * size + key * key_stride + value * value_stride]. `data` may be null.
template <class A>
struct StateView {
  A* data = nullptr;
  int64_t size = 0, key_stride = 0, value_stride = 0;

  __device__ __forceinline__ A& at(int64_t head, int64_t key, int64_t value) const {
    return data[head * size + key * key_stride + value * value_stride];
  }
  // The view of states that lie `states` states further on.
  __device__ __forceinline__ StateView after(int64_t states) const {
    return {data + states * size, size, key_stride, value_stride};
  }
};

// A chunk [begin, begin + rows) of tokens, and whether the state starts anew at its first one.
struct ScanChunk {
  int64_t begin = 0;
  int rows = 0;
  bool starts_anew = false;
};

// A block's part of the sequence, tokens [begin, end), and the states before and after it; either may have no data.
template <class A>
struct ScanSpan {
  int64_t begin = 0, end = 0;
  StateView<A> state_in, state_out;
};

template <class A>
struct ScanArgs {
  HeadsView query, key, value;
  HeadsDestination out;  // of the dtype of query, or of A
  int64_t group = 1;     // head h of query and out reads head h / group of key and value
  // Head h of query is head first_head + h * head_step of the `heads` that have states and decays.
  int64_t heads = 0, first_head = 0, head_step = 1;

  const A* log_decay = nullptr;  // (decays): of state h it is log_decay[h % decays]; or null
  int64_t decays = 1;
  const DecaySum<A>* sums = nullptr;  // (batch, heads, length), where each token has its own decay; or null
  const uint64_t* starts = nullptr;   // (batch, heads, windows): bit i is set where token i of the window starts anew
  StateView<A> state_in, state_out;
  GradientMode state_out_mode = GradientMode::overwrite;
  bool from_end = false;
  A inner = A(1), outer = A(1);

  // Spans of span_length tokens, a multiple of kWindow. span_states has, for each of them but the first in the order of
  // the scan, the states before it, (spans - 1, batch, heads, keys, values). A scan for the spans' states writes (=)
  // there what each span but the last adds to a state, and nothing else.
  int64_t spans = 1, span_length = 0;
  StateView<A> span_states;
  bool is_for_span_states = false;

  // The scan reads nothing that the kernel before it in the stream writes, see begin_scan().
  bool is_independent = false;

  // Out of the parts of a scan before the last one, without `outer`: (batch, heads of query, values, length rounded up
  // to a multiple of kWindow). For scans in bfloat16 of heads of query of more than 128 features.
  A* partial_out = nullptr;

  // Where it has data, the scan also writes (=) here its state before each window of kDecayWindow tokens, in its own
  // order: those of one batch and head are one after the other, in the order of tokens.
  StateView<A> window_states;

  // For the gradient of log decays, where `token_gradients` is given:
  HeadsView partner;             // q in the scan of d_q, k in that of d_k
  A* token_gradients = nullptr;  // (tiles, batch, heads, length): the scan of d_q writes, that of d_k adds
  A* history = nullptr;          // (batch, heads, chunks, keys, values): the states before the chunks

  __device__ __forceinline__ int64_t state_head(int64_t batch, int64_t head) const {
    return batch * heads + first_head + head * head_step;
  }
  // The span of blockIdx.z, in the order of the scan.
  __device__ __forceinline__ ScanSpan<A> span() const {
    const int64_t place = blockIdx.z, index = from_end ? spans - 1 - place : place, states = query.batch * heads;
    ScanSpan<A> result;
    result.begin = index * span_length;
    result.end = min(query.length, result.begin + span_length);
    if (is_for_span_states) {
      result.state_out = span_states.after(place * states);
    } else {
      result.state_in = place > 0 ? span_states.after((place - 1) * states) : state_in;
      if (place == spans - 1) result.state_out = state_out;
    }
    return result;
  }
  // The number of the window whose first chunk, in the order of the scan, this is, among all of a batch and head; -1
  // where it is another chunk of one.
  template <class Chunk>
  __device__ __forceinline__ int64_t window_begun_by(const Chunk& chunk, int64_t state_head) const {
    const int64_t end = chunk.begin + chunk.rows, windows = parts_of(query.length, kDecayWindow);
    const bool begins = from_end ? end % kDecayWindow == 0 || end == query.length : chunk.begin % kDecayWindow == 0;
    return begins ? state_head * windows + chunk.begin / kDecayWindow : -1;
  }
  // The token of row r of a chunk, in the order of the scan.
  __device__ __forceinline__ int64_t token(const ScanChunk& chunk, int r) const {
    return from_end ? chunk.begin + chunk.rows - 1 - r : chunk.begin + r;
  }
};

// The chunks of one head of one span, of at most `size` tokens, a power of two, in the order of the scan.
// Index: an integer that holds every token.
template <class A, class Index = int64_t>
class ChunkWalk {
 public:
  __device__ __forceinline__ ChunkWalk(const ScanArgs<A>& args, const ScanSpan<A>& span, int64_t state_head, int size)
      : length_(static_cast<Index>(args.query.length)), size_(size), from_end_(args.from_end) {
    const bool forgets = args.log_decay != nullptr && args.log_decay[state_head % args.decays] == -infinity<A>();
    always_ = forgets ? ~uint64_t{0} : uint64_t{0};
    if (args.starts != nullptr) starts_ = args.starts + state_head * parts_of(args.query.length, kWindow);
    place_ = static_cast<Index>(from_end_ ? span.end : span.begin);
    last_ = static_cast<Index>(from_end_ ? span.begin : span.end);
    if (place_ != last_) next_word_ = word((from_end_ ? place_ - 1 : place_) / kWindow);
  }

  // The next chunk; one of 0 rows after the last.
  __device__ __forceinline__ ScanChunk next() {
    ScanChunk chunk;
    if (place_ == last_) return chunk;
    const Index first = from_end_ ? place_ - 1 : place_;  // the first token of the chunk in the order of the scan
    const Index window = first / kWindow;
    const int local = static_cast<int>(first % kWindow);
    if (window != window_) {
      window_ = window;
      word_ = next_word_;
      next_word_ = word(window + (from_end_ ? -1 : 1));
    }
    const int low = local & -size_;  // the chunk lies within [low, low + size_) of the window
    int begin = local, end = local + 1;
    if (from_end_) {
      const uint64_t upto = word_ << (kWindow - 1 - local);
      begin = upto != 0 ? max(low, local - __clzll(static_cast<int64_t>(upto))) : low;
    } else {
      const uint64_t after = local + 1 < kWindow ? word_ >> (local + 1) : 0;
      end = after != 0 ? min(low + size_, local + __ffsll(static_cast<int64_t>(after))) : low + size_;
      end = static_cast<int>(min(Index{end}, length_ - window * kWindow));
    }
    chunk.begin = window * kWindow + begin;
    chunk.rows = end - begin;
    chunk.starts_anew = word_ >> begin & 1;
    place_ = static_cast<Index>(from_end_ ? chunk.begin : chunk.begin + chunk.rows);
    return chunk;
  }

 private:
  __device__ __forceinline__ uint64_t word(Index window) const {
    if (starts_ == nullptr || window < 0 || window * kWindow >= length_) return always_;
    return starts_[window] | always_;
  }

  const uint64_t* starts_ = nullptr;
  uint64_t always_ = 0, word_ = 0, next_word_ = 0;
  Index length_, place_ = 0, last_ = 0, window_ = -1;
  int size_;
  bool from_end_;
};

// A ChunkWalk in shared memory, so that it takes no registers.
class SharedWalk {
 public:
  __device__ __forceinline__ void start(const ScanArgs<float>& args, int64_t state_head, int size) {
    new (&get()) ChunkWalk<float>(args, args.span(), state_head, size);
  }
  __device__ __forceinline__ ChunkWalk<float>& get() { return *reinterpret_cast<ChunkWalk<float>*>(bytes_); }

 private:
  alignas(16) unsigned char bytes_[sizeof(ChunkWalk<float>)];
};

// exp of a sum of log decays or of a difference of two.
__device__ __forceinline__ double decay_power(double sum) { return exp(sum); }
__device__ __forceinline__ float decay_power(float2 sum) { return exp2f(sum.x + sum.y); }
__device__ __forceinline__ double difference(double a, double b) { return a - b; }
__device__ __forceinline__ float2 difference(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
__device__ __forceinline__ double negated(double a) { return -a; }
__device__ __forceinline__ float2 negated(float2 a) { return {-a.x, -a.y}; }
// exp(sum) in double.
__device__ __forceinline__ double exact_power(double sum) { return exp(sum); }
__device__ __forceinline__ double exact_power(float2 sum) {
  return exp2(static_cast<double>(sum.x) + static_cast<double>(sum.y));
}
template <class A>
__device__ __forceinline__ DecaySum<A> decay_sum(double log_decay) {
  if constexpr (sizeof(A) == sizeof(double)) {
    return log_decay;
  } else {
    const double scaled = log_decay * 1.4426950408889634;
    const float high = static_cast<float>(scaled);
    return {high, static_cast<float>(scaled - static_cast<double>(high))};
  }
}
// The decays of one head of one sequence.
template <class A>
struct HeadDecay {
  const DecaySum<A>* sums;  // (length); or null: every token has `slope`
  double slope;

  __device__ __forceinline__ HeadDecay(const ScanArgs<A>& args, int64_t state_head)
      : sums(args.sums != nullptr ? args.sums + state_head * args.query.length : nullptr),
        slope(args.log_decay != nullptr ? bounded_log_decay(args.log_decay[state_head % args.decays]) : 0.0) {}
};

// The sums of log decays that a row of a chunk needs: its own, that of the chunk's last token, and that which counts as
// 0, all as they stand in `sums` or, with one decay for all tokens, counted from the begin of the chunk.
template <class A>
struct RowDecay {
  DecaySum<A> own = {}, last = {}, base = {};

  RowDecay() = default;
  __device__ __forceinline__ RowDecay(const HeadDecay<A>& decay, const ScanChunk& chunk, int64_t token) {
    if (decay.sums != nullptr) {
      own = decay.sums[token];
      last = decay.sums[chunk.begin + chunk.rows - 1];
      if (chunk.begin % kWindow != 0 && !chunk.starts_anew) base = decay.sums[chunk.begin - 1];
    } else {
      own = decay_sum<A>(static_cast<double>(token - chunk.begin + 1) * decay.slope);
      last = decay_sum<A>(static_cast<double>(chunk.rows) * decay.slope);
    }
  }
  // exp(L_i) and exp(L_last - L_i).
  __device__ __forceinline__ A from_begin() const { return decay_power(difference(own, base)); }
  __device__ __forceinline__ A to_last() const { return decay_power(difference(last, own)); }
  // exp(L_last), which a long sequence multiplies many times.
  __device__ __forceinline__ double whole() const { return exact_power(difference(last, base)); }
};

template <class A>
__device__ __forceinline__ void put_state(const ScanArgs<A>& args, const ScanSpan<A>& span, int64_t head, int64_t key,
                                          int64_t value, A state) {
  A& to = span.state_out.at(head, key, value);
  const bool adds = args.state_out_mode == GradientMode::accumulate && !args.is_for_span_states;
  to = adds ? to + state : state;
}

// Scans are launched as dependents of the kernel before them in the stream. All threads call these two, at the begin
// and at the end. The blocks of an independent scan start where those of the scan before leave multiprocessors idle,
// and end after it, so that what follows finds both done.
template <class A>
__device__ __forceinline__ void begin_scan(const ScanArgs<A>& args) {
  if (!args.is_independent) grid_dependency_wait();
  grid_dependency_trigger();
}
template <class A>
__device__ __forceinline__ void end_scan(const ScanArgs<A>& args) {
  if (args.is_independent) grid_dependency_wait();
}

// Blocks along z.
template <class A>
unsigned span_blocks(const ScanArgs<A>& args) {
  return static_cast<unsigned>(args.is_for_span_states ? args.spans - 1 : args.spans);
}

// Calls launch(out, adds) with two std::bool_constant: whether the scan computes out, and whether it adds to it.
template <class Launch>
void with_out_mode(const ScanArgs<float>& args, const Launch& launch) {
  if (args.is_for_span_states || !args.out) {
    launch(std::false_type{}, std::false_type{});
  } else if (args.out.mode == GradientMode::accumulate) {
    launch(std::true_type{}, std::true_type{});
  } else {
    launch(std::true_type{}, std::false_type{});
  }
}

// Runs a scan of numbers of T and returns the number of tiles of value features. All but the last launch nothing and
// return 0 where they are not for this GPU, these sizes or these addresses. The first is for bfloat16 alone, the second
// and third for float.
int64_t scan_on_warpgroups(Context& context, const ScanArgs<float>& args);
int64_t scan_recurrently(Context& context, const ScanArgs<float>& args);
int64_t scan_floats_on_warpgroups(Context& context, const ScanArgs<float>& args);
template <class T>
int64_t scan_on_tensor_cores(Context& context, const ScanArgs<accumulate_t<T>>& args);
template <class T>
int64_t scan_without_tensor_cores(Context& context, const ScanArgs<accumulate_t<T>>& args);

extern template int64_t scan_on_tensor_cores<bf16>(Context&, const ScanArgs<float>&);
extern template int64_t scan_on_tensor_cores<fp16>(Context&, const ScanArgs<float>&);
extern template int64_t scan_on_tensor_cores<float>(Context&, const ScanArgs<float>&);

}  // namespace heddle::kernels::cuda
