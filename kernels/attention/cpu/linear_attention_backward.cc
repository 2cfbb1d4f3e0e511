// Chunked linear attention on the CPU, backward; linear_attention.cc has the formulas.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/attention/cpu/head_group.h"
#include "kernels/attention/cpu/linear_attention.h"
#include "kernels/attention/linear_attention.h"

namespace heddle::kernels::cpu {
namespace {

// The states before the chunks of one head, read from the last to the first. Every stride-th one is kept; the others of
// a stride are computed again from it when the first of them is read.
template <class A>
class StateHistory {
 public:
  explicit StateHistory(size_t chunks)
      : stride_(static_cast<size_t>(std::ceil(std::sqrt(static_cast<double>(chunks))))) {}

  // Called with the states before the chunks 0, 1, ...
  void note(size_t chunk, const State<A>& state) {
    if (chunk % stride_ == 0) kept_.push_back(state.snapshot());
  }
  // The state before `chunk`. `advance(state, c)` makes the state after chunk c from that before it; `state` is
  // scratch.
  template <class Advance>
  const StateSnapshot<A>& before(size_t chunk, State<A>& state, const Advance& advance) {
    const size_t first = chunk / stride_ * stride_;
    if (recent_.empty() || first != recent_first_) {
      recent_.clear();
      recent_first_ = first;
      state.restore(kept_[chunk / stride_]);
      for (size_t c = first;; ++c) {
        recent_.push_back(state.snapshot());
        if (c == chunk) break;
        advance(state, c);
      }
    }
    return recent_[chunk - first];
  }

 private:
  size_t stride_;
  std::vector<StateSnapshot<A>> kept_, recent_;
  size_t recent_first_ = 0;  // the chunk of recent_[0]
};

// The backward pass of the heads of a group.
template <class T>
class BackwardGroup {
 public:
  using A = accumulate_t<T>;

  // d_log_decay (N, H) of this sequence, in double; or nullptr.
  BackwardGroup(const LinearAttentionBackwardArgs& args, const HeadGroup& group, double* d_log_decay)
      : args_(args),
        group_(group),
        d_log_decay_(d_log_decay),
        scratch_((group.count + 1) * State<A>::bytes(dim_, value_dim_) +
                     kChunkRows * (2 * kChunkRows + 5 * dim_ + 4 * value_dim_) * static_cast<int64_t>(sizeof(A)),
                 13 + 2 * group.count),
        decays_(args, group) {
    d_states_.reserve(static_cast<size_t>(group.count));
    for (int64_t i = 0; i < group.count; ++i) {
      d_states_.emplace_back(scratch_, dim_, value_dim_);
      histories_.emplace_back(decays_.chunks.size());
    }
  }

  void run() {
    for (int64_t i = 0; i < group_.count; ++i) {
      if (args_.d_q || d_log_decay_ != nullptr) sweep_forward(i);
    }
    if (args_.d_k || args_.d_v || args_.d_initial_state || d_log_decay_ != nullptr) sweep_backward();
  }

 private:
  // Passes through the chunks forward in time, with the state of head i, and writes or adds d_q.
  void sweep_forward(int64_t i) {
    const HeadDecays<A>& head = decays_.heads[static_cast<size_t>(i)];
    Decay<A>& decay = decays_.weights[static_cast<size_t>(i)];
    state_.start(args_.initial_state, args_.q.heads, group_.queries(i));
    for (size_t c = 0; c < decays_.chunks.size(); ++c) {
      const auto [begin, rows] = decays_.chunks[c];
      if (head.starts_anew(begin)) state_.clear();
      if (d_log_decay_ != nullptr) histories_[static_cast<size_t>(i)].note(c, state_);
      decay.move_to(decays_.chunks[c]);
      if (args_.d_q) {
        const ConstPanel<A> k = keys(begin, rows), v = values(begin, rows), d_o = upstream(i, begin, rows);
        auto d_q = d_keys_.topRows(rows);
        if (state_.is_zero()) {
          d_q.setZero();
        } else {
          weighted_rows_product<A>(d_o, state_.values().transpose(), decay.from_start(rows), d_q);
        }
        masked_scores(d_o, v, decay, d_scores_);
        add_scores_product<A>(d_scores_, k, spare_keys_, d_q);
        store<T>(args_.d_q, group_.queries(i), begin, rows, d_keys_);
      }
      if (c + 1 < decays_.chunks.size()) advance(state_, i, c);
    }
  }

  // Makes the state of head i after chunk c, whose weights are those of decays_, from that before it; where the next
  // chunk starts anew it is of no use and stays.
  void advance(State<A>& state, int64_t i, size_t c) {
    if (decays_.heads[static_cast<size_t>(i)].starts_anew(decays_.chunks[c + 1].begin)) return;
    const auto [begin, rows] = decays_.chunks[c];
    const Decay<A>& decay = decays_.weights[static_cast<size_t>(i)];
    state.advance(decay.whole(rows), decay.to_end(rows), keys(begin, rows), values(begin, rows), weighted_);
  }

  // Passes through the chunks backward in time, with the gradients of the states, and writes or adds d_k, d_v,
  // d_log_decay and d_initial_state.
  void sweep_backward() {
    for (int64_t i = 0; i < group_.count; ++i) {
      d_states_[static_cast<size_t>(i)].start(args_.d_final_state, args_.q.heads, group_.queries(i));
    }
    for (size_t c = decays_.chunks.size(); c-- > 0;) {
      const auto [begin, rows] = decays_.chunks[c];
      d_keys_.topRows(rows).setZero();
      d_values_.topRows(rows).setZero();
      for (int64_t i = 0; i < group_.count; ++i) {
        const HeadDecays<A>& head = decays_.heads[static_cast<size_t>(i)];
        Decay<A>& decay = decays_.weights[static_cast<size_t>(i)];
        State<A>& d_state = d_states_[static_cast<size_t>(i)];
        decay.move_to(decays_.chunks[c]);
        if (args_.d_k || args_.d_v) add_key_value_gradients(i, c);
        if (d_log_decay_ != nullptr) write_decay_gradients(i, c);
        if (head.starts_anew(begin)) {
          d_state.clear();
        } else if (begin > 0 || args_.d_initial_state) {
          d_state.advance(decay.whole(rows), decay.from_start(rows), queries(i, begin, rows), upstream(i, begin, rows),
                          weighted_);
        }
      }
      if (args_.d_k) store<T>(args_.d_k, group_.keys(), begin, rows, d_keys_);
      if (args_.d_v) store<T>(args_.d_v, group_.keys(), begin, rows, d_values_);
    }
    if (!args_.d_initial_state) return;
    for (int64_t i = 0; i < group_.count; ++i) {
      d_states_[static_cast<size_t>(i)].store(
          head_state<A>(args_.d_initial_state.view, args_.q.heads, group_.queries(i), dim_, value_dim_),
          args_.d_initial_state.mode);
    }
  }

  // Adds to d_keys_ and d_values_ what head i contributes to d_k and d_v of chunk c; its d_state is that after them.
  void add_key_value_gradients(int64_t i, size_t c) {
    const auto [begin, rows] = decays_.chunks[c];
    const Decay<A>& decay = decays_.weights[static_cast<size_t>(i)];
    const State<A>& d_state = d_states_[static_cast<size_t>(i)];
    const ConstPanel<A> q = queries(i, begin, rows), d_o = upstream(i, begin, rows);
    const ConstPanel<A> k = keys(begin, rows), v = values(begin, rows);
    if (args_.d_k) {
      auto d_k = d_keys_.topRows(rows);
      if (!d_state.is_zero()) {
        auto from_state = weighted_.topRows(rows);
        weighted_rows_product<A>(v, d_state.values().transpose(), decay.to_end(rows), from_state);
        d_k += from_state;
      }
      masked_scores(d_o, v, decay, d_scores_);
      add_scores_transposed_product<A>(d_scores_, q, spare_keys_, d_k);
    }
    if (args_.d_v) {
      auto d_v = d_values_.topRows(rows);
      if (!d_state.is_zero()) {
        auto from_state = spare_values_.topRows(rows);
        weighted_rows_product<A>(k, d_state.values(), decay.to_end(rows), from_state);
        d_v += from_state;
      }
      masked_scores(q, k, decay, scores_);
      add_scores_transposed_product<A>(scores_, d_o, spare_values_, d_v);
    }
  }

  // Writes (=) the gradients of the log decays of chunk c of head i, whose d_state is that after the chunk.
  void write_decay_gradients(int64_t i, size_t c) {
    const auto [begin, rows] = decays_.chunks[c];
    const Decay<A>& decay = decays_.weights[static_cast<size_t>(i)];
    const State<A>& d_state = d_states_[static_cast<size_t>(i)];
    // Computes other chunks' weights on its way, so it comes first.
    const StateSnapshot<A>& state =
        histories_[static_cast<size_t>(i)].before(c, state_, [&](State<A>& moving, size_t at) {
          decays_.weights[static_cast<size_t>(i)].move_to(decays_.chunks[at]);
          advance(moving, i, at);
          if (decays_.heads[static_cast<size_t>(i)].starts_anew(decays_.chunks[at + 1].begin)) moving.clear();
        });
    decays_.weights[static_cast<size_t>(i)].move_to(decays_.chunks[c]);
    const ConstPanel<A> q = queries(i, begin, rows), d_o = upstream(i, begin, rows);
    const ConstPanel<A> k = keys(begin, rows), v = values(begin, rows);

    std::array<double, kChunkRows> d_decay{};
    masked_scores(q, k, decay, scores_);
    lower_scores(d_o, v, d_scores_);
    for (int64_t row = 1; row < rows; ++row) {
      double before = 0.0;  // sum over j < t of P[row][j]
      for (int64_t t = 1; t <= row; ++t) {
        before += score_product(d_o, v, row, t - 1);
        d_decay[t] += before;
      }
    }
    auto from_state = weighted_.topRows(rows);
    if (!state.is_zero()) {
      weighted_rows_product<A>(d_o, state.matrix(dim_, value_dim_).transpose(), decay.from_start(rows), from_state);
      double after = 0.0;  // sum over i >= t
      for (int64_t t = rows - 1; t >= 0; --t) {
        after += from_state.row(t).template cast<double>().dot(q.row(t).template cast<double>());
        d_decay[t] += after;
      }
    }
    if (!d_state.is_zero()) {
      weighted_rows_product<A>(v, d_state.values().transpose(), decay.to_end(rows), from_state);
      double before = 0.0;  // sum over j < t
      for (int64_t t = 1; t < rows; ++t) {
        before += from_state.row(t - 1).template cast<double>().dot(k.row(t - 1).template cast<double>());
        d_decay[t] += before;
      }
    }
    if (!state.is_zero() && !d_state.is_zero()) {
      const double through = decay.whole(rows) * state.matrix(dim_, value_dim_)
                                                     .template cast<double>()
                                                     .cwiseProduct(d_state.values().template cast<double>())
                                                     .sum();
      for (int64_t t = 0; t < rows; ++t) d_decay[t] += through;
    }
    for (int64_t t = 0; t < rows; ++t) d_log_decay_[(begin + t) * args_.q.heads + group_.first + i] = d_decay[t];
  }

  // P[row][col], from the masked scores and those of d_o v^T, which are not masked. Where the latter have overflowed
  // they are taken again in double.
  double score_product(const ConstPanel<A>& d_o, const ConstPanel<A>& v, int64_t row, int64_t col) const {
    const auto score = static_cast<double>(scores_(row, col)), d_score = static_cast<double>(d_scores_(row, col));
    if (std::isfinite(d_score) || !all_finite(d_o.row(row)) || !all_finite(v.row(col))) return score * d_score;
    return weighted_product(d_o.row(row), v.row(col), score);
  }

  ConstPanel<A> queries(int64_t i, int64_t begin, int64_t rows) {
    return load<T>(args_.q, group_.queries(i), begin, rows, q_copy_);
  }
  ConstPanel<A> upstream(int64_t i, int64_t begin, int64_t rows) {
    return load<T>(args_.d_o, group_.queries(i), begin, rows, d_o_copy_);
  }
  ConstPanel<A> keys(int64_t begin, int64_t rows) { return load<T>(args_.k, group_.keys(), begin, rows, k_copy_); }
  ConstPanel<A> values(int64_t begin, int64_t rows) { return load<T>(args_.v, group_.keys(), begin, rows, v_copy_); }
  Panel<A> new_keys() { return scratch_.matrix<A>(kChunkRows, dim_); }
  Panel<A> new_values() { return scratch_.matrix<A>(kChunkRows, value_dim_); }

  const LinearAttentionBackwardArgs& args_;
  const HeadGroup group_;
  double* const d_log_decay_;
  const int64_t dim_ = args_.q.dim, value_dim_ = args_.v.dim;
  Scratch scratch_;
  GroupDecays<A> decays_;
  State<A> state_{scratch_, dim_, value_dim_};
  std::vector<State<A>> d_states_;          // of each head
  std::vector<StateHistory<A>> histories_;  // of each head, for d_log_decay
  Panel<A> scores_ = scratch_.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> d_scores_ = scratch_.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> weighted_ = new_keys(), spare_keys_ = new_keys(), spare_values_ = new_values();
  Panel<A> d_keys_ = new_keys();      // d_q or d_k
  Panel<A> d_values_ = new_values();  // d_v
  Panel<A> q_copy_ = new_keys(), k_copy_ = new_keys(), v_copy_ = new_values(), d_o_copy_ = new_values();
};

// Writes or adds d_log_decay, which is the sum over all tokens of the numbers (B, N, H), or where every token has a
// decay of its own these numbers.
template <class A>
void store_decay_gradients(const LinearAttentionBackwardArgs& args, const std::vector<double>& numbers) {
  A* const to = vector<A>(args.d_log_decay.view);
  const GradientMode mode = args.d_log_decay.mode;
  if (args.decay_per_token) {
    for (size_t i = 0; i < numbers.size(); ++i) store(to + i, static_cast<A>(numbers[i]), mode);
    return;
  }
  const auto heads = static_cast<size_t>(args.q.heads);
  std::vector<double> sums(heads, 0.0);
  for (size_t i = 0; i < numbers.size(); ++i) sums[i % heads] += numbers[i];
  for (size_t h = 0; h < heads; ++h) store(to + h, static_cast<A>(sums[h]), mode);
}

}  // namespace

void linear_attention_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  const int64_t tokens = args.q.batch * args.q.length;
  std::vector<double> d_log_decay(args.d_log_decay ? static_cast<size_t>(tokens * args.q.heads) : 0);
  for_each_group(context, args, [&](auto type, const HeadGroup& group) {
    double* const sequence =
        args.d_log_decay ? d_log_decay.data() + group.batch * args.q.length * args.q.heads : nullptr;
    BackwardGroup<decltype(type)>(args, group, sequence).run();
  });
  if (!args.d_log_decay) return;
  visit_floating(args.q.dtype,
                 [&](auto type) { store_decay_gradients<accumulate_t<decltype(type)>>(args, d_log_decay); });
}

}  // namespace heddle::kernels::cpu
