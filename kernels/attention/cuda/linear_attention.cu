// Linear attention on a GPU: which scans compute what, and what is prepared and finished around them. scan.h says how.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/decay_gradient.h"
#include "kernels/attention/cuda/linear_attention_decode.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_any.h"
#include "kernels/attention/cuda/scan_spans.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace {

// Writes, for one window of one head, at which tokens the state starts anew and the sums of log decays since then, or
// since the begin of the window. log_decay is (batch, length, heads) or null, segments (batch, length) or null.
template <class A>
__global__ void __launch_bounds__(kWindow) find_chunks(const A* log_decay, const int32_t* segments, int64_t length,
                                                       int64_t heads, DecaySum<A>* sums, uint64_t* starts) {
  __shared__ double decays[kWindow];
  __shared__ unsigned words[2];
  const int64_t windows = parts_of(length, kWindow);
  const int64_t window = blockIdx.x % windows, state_head = blockIdx.x / windows;
  const int64_t batch = state_head / heads;
  const int i = static_cast<int>(threadIdx.x);
  const int64_t token = window * kWindow + i;
  double decay = 0.0;
  bool starts_anew = false;
  if (token < length) {
    if (log_decay != nullptr) decay = log_decay[(batch * length + token) * heads + state_head % heads];
    starts_anew = decay == -infinity<double>();
    if (segments != nullptr && token > 0) {
      starts_anew |= segments[batch * length + token] != segments[batch * length + token - 1];
    }
  }
  decays[i] = starts_anew ? 0.0 : bounded_log_decay(decay);
  const unsigned word = __ballot_sync(0xffffffffu, starts_anew);
  if (i % 32 == 0) words[i / 32] = word;
  __syncthreads();
  const uint64_t all = words[0] | uint64_t{words[1]} << 32;
  if (i == 0) starts[blockIdx.x] = all;
  if (sums == nullptr || token >= length) return;
  const uint64_t upto = all << (kWindow - 1 - i);
  double sum = 0.0;
  for (int j = upto != 0 ? i - __clzll(static_cast<int64_t>(upto)) : 0; j <= i; ++j) sum += decays[j];
  sums[state_head * length + token] = decay_sum<A>(sum);
}

// d_log_decay (batch, length, heads) (=|+=) the sums of the tiles' parts (tiles, batch, heads, length).
template <class A>
__global__ void put_token_gradients(const A* parts, int64_t tiles, int64_t length, int64_t heads, int64_t count,
                                    VectorDestination to) {
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < count; e += int64_t{gridDim.x} * blockDim.x) {
    const int64_t head = e % heads, token = e / heads % length, batch = e / heads / length;
    A sum = A(0);
    for (int64_t tile = 0; tile < tiles; ++tile) sum += parts[tile * count + (batch * heads + head) * length + token];
    A& d = vector<A>(to.view)[e];
    d = to.mode == GradientMode::accumulate ? d + sum : sum;
  }
}

constexpr int kHeadThreads = 256;

// d_log_decay (heads) (=|+=) the sums over tiles, sequences and tokens. A block owns a head.
template <class A>
__global__ void __launch_bounds__(kHeadThreads)
    put_head_gradients(const A* parts, int64_t tiles, int64_t batch, int64_t length, int64_t heads,
                       VectorDestination to) {
  __shared__ ReduceShared<double, kHeadThreads> shared;
  const int64_t rows = tiles * batch;
  double sum = 0.0;
  for (int64_t e = threadIdx.x; e < rows * length; e += kHeadThreads) {
    sum += parts[(e / length * heads + blockIdx.x) * length + e % length];
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x != 0) return;
  A& d = vector<A>(to.view)[blockIdx.x];
  d = static_cast<A>(to.mode == GradientMode::accumulate ? static_cast<double>(d) + sum : sum);
}

// (=|+=) the rows of numbers (batch, length, heads, dim), rounded once.
template <class T>
__global__ void put_rows(const accumulate_t<T>* from, HeadsDestination to) {
  const HeadsView& view = to.view;
  const int64_t count = view.batch * view.length * view.heads * view.dim;
  for (int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; e < count; e += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = e / view.dim, head_index = row % view.heads, token = row / view.heads;
    T& place = head<T>(view, token / view.length, token % view.length, head_index)[e % view.dim];
    place = narrow<T>(to.mode == GradientMode::accumulate ? from[e] + widen(place) : from[e]);
  }
}

bool is_empty(const HeadsView& view) { return view.batch * view.heads * view.dim == 0; }

template <class A, class Args>
A* part(const Args& args, int64_t offset) {
  return reinterpret_cast<A*>(static_cast<char*>(args.workspace.data) + offset);
}

// `states` (batch * heads, dim, value_dim) row-major; transposed: seen by a scan whose keys have value_dim features.
template <class A>
StateView<A> state_view(const VectorView& states, int64_t dim, int64_t value_dim, bool transposed) {
  if (!states) return {};
  return {vector<A>(states), dim * value_dim, transposed ? 1 : value_dim, transposed ? value_dim : 1};
}

// Those before the spans, in the workspace.
template <class A, class Args>
StateView<A> span_states(const Args& args, const LinearAttentionWorkspace& workspace, bool transposed) {
  const int64_t dim = args.q.dim, value_dim = args.v.dim;
  return {part<A>(args, workspace.span_states), dim * value_dim, transposed ? 1 : value_dim,
          transposed ? value_dim : 1};
}

// The heads index, index + step, ... of a view.
HeadsView every(HeadsView view, int64_t index, int64_t step) {
  if (view.data == nullptr) return view;
  view.data = static_cast<char*>(view.data) + index * view.head_stride * static_cast<int64_t>(size_of(view.dtype));
  view.head_stride *= step;
  view.heads /= step;
  return view;
}

// Whether a scan has nothing to write.
template <class A>
bool is_idle(const ScanArgs<A>& args) {
  return !args.is_for_span_states && !args.out && args.state_out.data == nullptr && args.token_gradients == nullptr &&
         args.window_states.data == nullptr;
}

// Returns the number of tiles of value features.
template <class T>
int64_t scan(Context& context, const ScanArgs<accumulate_t<T>>& args) {
  if (is_idle(args)) return 0;
  if constexpr (std::is_same_v<T, bf16>) {
    if (const int64_t tiles = scan_on_warpgroups(context, args); tiles > 0) return tiles;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (const int64_t tiles = scan_recurrently(context, args); tiles > 0) return tiles;
    if (const int64_t tiles = scan_floats_on_warpgroups(context, args); tiles > 0) return tiles;
  }
  if constexpr (sizeof(T) < sizeof(double)) {
    if (const int64_t tiles = scan_on_tensor_cores<T>(context, args); tiles > 0) return tiles;
  }
  return scan_without_tensor_cores<T>(context, args);
}

// Finds the states before the spans.
template <class T>
void find_span_states(Context& context, ScanArgs<accumulate_t<T>> args) {
  if (args.spans == 1 || is_idle(args)) return;
  args.is_for_span_states = true;
  args.out = {};
  args.token_gradients = nullptr;
  args.window_states = {};
  scan<T>(context, args);
  combine_span_states(context, args);
}

// The decays of a scan; finds the chunks first, where they do not follow from the length alone.
template <class A, class Args>
ScanArgs<A> prepared(Context& context, const Args& args, const LinearAttentionWorkspace& workspace) {
  ScanArgs<A> result;
  result.heads = args.q.heads;
  result.partial_out = part<A>(args, workspace.partial_out);
  const ScanSpans spans = scan_spans(args);
  result.spans = spans.count;
  result.span_length = spans.length;
  // One token has no sums and no chunks to find.
  const bool per_token = args.log_decay && args.decay_per_token && args.q.length != 1;
  if (!per_token) {
    result.log_decay = vector<const A>(args.log_decay);
    result.decays = args.log_decay.size;
  }
  if (args.q.length == 1 || (!per_token && !args.segments)) return result;
  auto* const starts = part<uint64_t>(args, workspace.starts);
  auto* const sums = per_token ? part<DecaySum<A>>(args, workspace.sums) : nullptr;
  result.starts = starts;
  result.sums = sums;
  const int64_t blocks = args.q.batch * args.q.heads * parts_of(args.q.length, kWindow);
  if (blocks > 0) {
    HEDDLE_LAUNCH(context, find_chunks<A>, static_cast<unsigned>(blocks), kWindow, 0,
                  per_token ? vector<const A>(args.log_decay) : nullptr, vector<const int32_t>(args.segments),
                  args.q.length, args.q.heads, sums, starts);
  }
  return result;
}

template <class T>
void launch_forward(Context& context, const LinearAttentionForwardArgs& args) {
  using A = accumulate_t<T>;
  const LinearAttentionWorkspace workspace(args);
  ScanArgs<A> scan_args = prepared<A>(context, args, workspace);
  scan_args.query = args.q;
  scan_args.key = args.k;
  scan_args.value = args.v;
  scan_args.group = args.q.heads / args.k.heads;
  scan_args.out = {args.o, GradientMode::overwrite};
  scan_args.state_in = state_view<A>(args.initial_state, args.q.dim, args.v.dim, false);
  scan_args.state_out = state_view<A>(args.final_state, args.q.dim, args.v.dim, false);
  scan_args.span_states = span_states<A>(args, workspace, false);
  scan_args.outer = static_cast<A>(args.scale);
  find_span_states<T>(context, scan_args);
  scan<T>(context, scan_args);
}

template <class T>
class Backward {
 public:
  using A = accumulate_t<T>;

  Backward(Context& context, const LinearAttentionBackwardArgs& args)
      : context_(context), args_(args), workspace_(args), prepared_(prepared<A>(context, args, workspace_)) {
    if constexpr (sizeof(T) == 2) by_windows_ = args.d_log_decay && has_decay_gradient_by_windows(context, args);
  }

  // Returns the number of parts of each token's gradient of a log decay.
  int64_t run() {
    const int64_t parts = scan_for_d_q();
    // Where heads of q share one of k, the scans of d_k and d_v run for the first head of each group, then for the
    // second, and so on, and add up in the workspace.
    HeadsDestination d_k = args_.d_k, d_v = args_.d_v;
    if (group_ > 1) {
      if (d_k) d_k.view = sums_over_group(args_.d_k.view, workspace_.d_k);
      if (d_v) d_v.view = sums_over_group(args_.d_v.view, workspace_.d_v);
    }
    for (int64_t i = 0; i < group_; ++i) {
      if (group_ > 1) d_k.mode = d_v.mode = i == 0 ? GradientMode::overwrite : GradientMode::accumulate;
      scan_for_d_k_and_d_v(i, d_k, d_v, i == 0 && parts > 0);
    }
    if (group_ > 1) {
      put_sums(d_k.view, args_.d_k);
      put_sums(d_v.view, args_.d_v);
    }
    if constexpr (sizeof(T) == 2) {
      if (by_windows_) return put_gradients_by_windows();
    }
    return parts;
  }

 private:
  int64_t scan_for_d_q() {
    ScanArgs<A> scan_args = prepared_;
    scan_args.query = args_.d_o;
    scan_args.key = args_.v;
    scan_args.value = args_.k;
    scan_args.group = group_;
    scan_args.out = args_.d_q;
    scan_args.state_in = state_view<A>(args_.initial_state, dim_, value_dim_, true);
    scan_args.span_states = span_states<A>(args_, workspace_, true);
    scan_args.outer = static_cast<A>(args_.scale);
    want_decay_gradient(scan_args, args_.q, 0);
    find_span_states<T>(context_, scan_args);
    return scan<T>(context_, scan_args);
  }

  // The two scans have the same states before the spans, but for the order of the features. `follows_d_q`: the kernel
  // before them is the scan for d_q.
  void scan_for_d_k_and_d_v(int64_t i, const HeadsDestination& d_k, const HeadsDestination& d_v, bool follows_d_q) {
    ScanArgs<A> for_d_k = from_end(i);
    for_d_k.query = args_.v;
    for_d_k.key = every(args_.d_o, i, group_);
    for_d_k.value = every(args_.q, i, group_);
    for_d_k.out = d_k;
    for_d_k.state_in = state_view<A>(args_.d_final_state, dim_, value_dim_, true);
    for_d_k.span_states = span_states<A>(args_, workspace_, true);
    want_decay_gradient(for_d_k, args_.k, 1);
    ScanArgs<A> for_d_v = from_end(i);
    for_d_v.query = args_.k;
    for_d_v.key = every(args_.q, i, group_);
    for_d_v.value = every(args_.d_o, i, group_);
    for_d_v.out = d_v;
    for_d_v.state_in = state_view<A>(args_.d_final_state, dim_, value_dim_, false);
    for_d_v.state_out = state_view<A>(args_.d_initial_state.view, dim_, value_dim_, false);
    for_d_v.state_out_mode = args_.d_initial_state.mode;
    for_d_v.span_states = span_states<A>(args_, workspace_, false);
    find_span_states<T>(context_, is_idle(for_d_v) ? for_d_k : for_d_v);
    // The first scan for d_k reads nothing that the one for d_q writes, and that for d_v nothing of that for d_k, but
    // all scans in two parts have one place for their partial out.
    const bool in_parts = std::max(dim_, value_dim_) > kPartKeys;
    for_d_k.is_independent = follows_d_q && for_d_k.spans == 1 && !in_parts;
    const bool is_after_d_k = scan<T>(context_, for_d_k) > 0;
    for_d_v.is_independent = (is_after_d_k || for_d_k.is_independent) && !in_parts;
    scan<T>(context_, for_d_v);
  }

  ScanArgs<A> from_end(int64_t i) const {
    ScanArgs<A> scan_args = prepared_;
    scan_args.from_end = true;
    scan_args.inner = static_cast<A>(args_.scale);
    scan_args.first_head = i;
    scan_args.head_step = group_;
    return scan_args;
  }

  void want_decay_gradient(ScanArgs<A>& scan_args, const HeadsView& partner, int which_states) const {
    if (!args_.d_log_decay) return;
    if (by_windows_) {
      scan_args.window_states = {window_states(which_states), dim_ * value_dim_, 1, value_dim_};
      return;
    }
    scan_args.partner = partner;
    scan_args.token_gradients = part<A>(args_, workspace_.token_gradients);
    scan_args.history = part<A>(args_, workspace_.history);
  }

  // Those before the windows (0), and the gradients of those after them (1).
  A* window_states(int which) const {
    const int64_t windows = args_.q.batch * args_.q.heads * parts_of(args_.q.length, kDecayWindow);
    return part<A>(args_, workspace_.history) + which * windows * dim_ * value_dim_;
  }

  int64_t put_gradients_by_windows() const {
    DecayGradientArgs by_windows = {.decays = prepared_,
                                    .k = args_.k,
                                    .v = args_.v,
                                    .d_o = args_.d_o,
                                    .states = window_states(0),
                                    .d_states = window_states(1),
                                    .token_gradients = part<A>(args_, workspace_.token_gradients),
                                    .scale = static_cast<float>(args_.scale)};
    by_windows.decays.query = args_.q;
    return decay_gradient_by_windows(context_, by_windows);
  }

  // A view of the workspace as a contiguous tensor of the extents of `like`.
  HeadsView sums_over_group(HeadsView like, int64_t offset) const {
    like.data = part<A>(args_, offset);
    like.dtype = accumulate_type(like.dtype);
    like.head_stride = like.dim;
    like.length_stride = like.heads * like.dim;
    like.batch_stride = like.length * like.length_stride;
    return like;
  }

  void put_sums(const HeadsView& from, const HeadsDestination& to) const {
    const int64_t count = from.batch * from.length * from.heads * from.dim;
    if (!to || count == 0) return;
    HEDDLE_LAUNCH(context_, put_rows<T>, grid_for(context_, count, 256, 16), 256, 0, static_cast<const A*>(from.data),
                  to);
  }

  Context& context_;
  const LinearAttentionBackwardArgs& args_;
  LinearAttentionWorkspace workspace_;
  ScanArgs<A> prepared_;
  bool by_windows_ = false;  // the gradient of the log decays, see decay_gradient.h
  int64_t dim_ = args_.q.dim, value_dim_ = args_.v.dim, group_ = args_.q.heads / args_.k.heads;
};

// Sums the `tiles` parts that the scans have left in the workspace.
template <class T>
void put_decay_gradient(Context& context, const LinearAttentionBackwardArgs& args, int64_t tiles) {
  using A = accumulate_t<T>;
  if (!args.d_log_decay) return;
  const auto* const parts = part<const A>(args, LinearAttentionWorkspace(args).token_gradients);
  const int64_t batch = args.q.batch, length = args.q.length, heads = args.q.heads;
  if (args.decay_per_token) {
    const int64_t count = batch * length * heads;
    if (count == 0) return;
    HEDDLE_LAUNCH(context, put_token_gradients<A>, grid_for(context, count, 256, 16), 256, 0, parts, tiles, length,
                  heads, count, args.d_log_decay);
  } else if (heads > 0) {
    HEDDLE_LAUNCH(context, put_head_gradients<A>, static_cast<unsigned>(heads), kHeadThreads, 0, parts, tiles, batch,
                  length, heads, args.d_log_decay);
  }
}

}  // namespace

void linear_attention_forward(Context& context, const LinearAttentionForwardArgs& args) {
  if (is_empty(args.q) || is_empty(args.v) || forward_of_few_tokens(context, args)) return;
  visit_floating(args.q.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

void linear_attention_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  visit_floating(args.q.dtype, [&](auto type) {
    using T = decltype(type);
    const bool has_tiles = !is_empty(args.q) && !is_empty(args.v);
    put_decay_gradient<T>(context, args, has_tiles ? Backward<T>(context, args).run() : 0);
  });
}

}  // namespace heddle::kernels::cuda
