// Chunked linear attention on the CPU. A chunk of C rows with the state S before it, lambda = exp(log_decay),
// M[i][j] = scale * lambda^(i-j) for j <= i else 0, F[i] = scale * lambda^(i+1), E[j] = lambda^(C-1-j):
//   o  = F .* (q S) + (q k^T .* M) v            S' = lambda^C S + (E .* k)^T v
//   d_q = F .* (d_o S^T) + (d_o v^T .* M) k     d_k = E .* (v d_S'^T) + (d_o v^T .* M)^T q
//   d_v = E .* (k d_S') + (q k^T .* M)^T d_o    d_S = lambda^C d_S' + (F .* q)^T d_o
// A thread works on one head of one sequence at a time. Backward passes through its chunks twice: forward in time with
// S for d_q, then backward in time with d_S for d_k and d_v. Sums are computed in the type of arithmetic and rounded
// once, when they are stored. Where lambda is 0 a chunk is one token, which sees no state.
#include "kernels/attention/linear_attention.h"

#include <cstdint>

#include "kernels/attention/cpu/linear_attention.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Writes (=) o and the final state of one head.
template <class T>
void forward_head(const LinearAttentionForwardArgs& args, HeadIndex index) {
  using A = accumulate_t<T>;
  const int64_t length = args.q.length, dim = args.q.dim, value_dim = args.v.dim;
  Scratch scratch(State<A>::bytes(dim, value_dim) +
                  kChunkRows * (3 * dim + 3 * value_dim + kChunkRows) * static_cast<int64_t>(sizeof(A)));
  State<A> state(scratch, dim, value_dim);
  Panel<A> scores = scratch.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> weighted_k = scratch.matrix<A>(kChunkRows, dim);
  Panel<A> out = scratch.matrix<A>(kChunkRows, value_dim), spare = scratch.matrix<A>(kChunkRows, value_dim);
  Panel<A> q_copy = scratch.matrix<A>(kChunkRows, dim), k_copy = scratch.matrix<A>(kChunkRows, dim);
  Panel<A> v_copy = scratch.matrix<A>(kChunkRows, value_dim);

  const Decay<A> decay(args.log_decay, index.head, args.scale);
  state.start(args.initial_state, args.q.heads, index);
  if (decay.forgets() && length > 0) state.clear();
  for (int64_t begin = 0; begin < length; begin += decay.chunk_rows()) {
    const int64_t rows = std::min(decay.chunk_rows(), length - begin);
    const ConstPanel<A> q = load<T>(args.q, index, begin, rows, q_copy);
    const ConstPanel<A> k = load<T>(args.k, index, begin, rows, k_copy);
    const ConstPanel<A> v = load<T>(args.v, index, begin, rows, v_copy);
    auto o = out.topRows(rows);
    if (state.is_zero()) {
      o.setZero();
    } else {
      o.noalias() = q * state.values();
      o.array().colwise() *= decay.from_start(rows);
    }
    masked_scores(q, k, decay, scores);
    add_scores_product<A>(scores, v, spare, o);
    store<T>({args.o, GradientMode::overwrite}, index, begin, rows, out);
    if (begin + rows < length ? !decay.forgets() : static_cast<bool>(args.final_state)) {
      state.advance(decay.whole(rows), decay.to_end(rows), k, v, weighted_k);
    }
  }
  if (args.final_state) {
    state.store(head_state<A>(args.final_state, args.q.heads, index, dim, value_dim), GradientMode::overwrite);
  }
}

// The backward pass of one head.
template <class T>
class BackwardHead {
 public:
  using A = accumulate_t<T>;

  BackwardHead(const LinearAttentionBackwardArgs& args, HeadIndex index)
      : args_(args),
        index_(index),
        scratch_(State<A>::bytes(dim_, value_dim_) +
                 kChunkRows * (2 * kChunkRows + 5 * dim_ + 4 * value_dim_) * static_cast<int64_t>(sizeof(A))),
        decay_(args.log_decay, index.head, args.scale) {}

  // Passes through the chunks forward in time, with the state, and writes or adds d_q.
  void sweep_forward() {
    state_.start(args_.initial_state, args_.q.heads, index_);
    if (decay_.forgets()) state_.clear();
    for (int64_t begin = 0; begin < length_; begin += decay_.chunk_rows()) {
      const int64_t rows = std::min(decay_.chunk_rows(), length_ - begin);
      const ConstPanel<A> k = load<T>(args_.k, index_, begin, rows, k_copy_);
      const ConstPanel<A> v = load<T>(args_.v, index_, begin, rows, v_copy_);
      const ConstPanel<A> d_o = load<T>(args_.d_o, index_, begin, rows, d_o_copy_);
      auto d_q = d_keys_.topRows(rows);
      if (state_.is_zero()) {
        d_q.setZero();
      } else {
        d_q.noalias() = d_o * state_.values().transpose();
        d_q.array().colwise() *= decay_.from_start(rows);
      }
      masked_scores(d_o, v, decay_, d_scores_);
      add_scores_product<A>(d_scores_, k, spare_keys_, d_q);
      store<T>(args_.d_q, index_, begin, rows, d_keys_);
      if (begin + rows < length_ && !decay_.forgets()) {
        state_.advance(decay_.whole(rows), decay_.to_end(rows), k, v, weighted_);
      }
    }
  }

  // Passes through the chunks backward in time, with the gradient of the state, and writes or adds d_k, d_v and
  // d_initial_state.
  void sweep_backward() {
    state_.start(args_.d_final_state, args_.q.heads, index_);
    for (int64_t end = length_, begin = 0; end > 0; end = begin) {
      begin = (end - 1) / decay_.chunk_rows() * decay_.chunk_rows();
      const int64_t rows = end - begin;
      const ConstPanel<A> q = load<T>(args_.q, index_, begin, rows, q_copy_);
      const ConstPanel<A> d_o = load<T>(args_.d_o, index_, begin, rows, d_o_copy_);
      if (args_.d_k || args_.d_v) key_value_gradients(begin, rows, q, d_o);
      if (decay_.forgets()) {
        state_.clear();
      } else if (begin > 0 || args_.d_initial_state) {
        state_.advance(decay_.whole(rows), decay_.from_start(rows), q, d_o, weighted_);
      }
    }
    if (!args_.d_initial_state) return;
    state_.store(head_state<A>(args_.d_initial_state.view, args_.q.heads, index_, dim_, value_dim_),
                 args_.d_initial_state.mode);
  }

 private:
  // d_k and d_v of the rows [begin, begin + rows); state_ is d_S after them.
  void key_value_gradients(int64_t begin, int64_t rows, const ConstPanel<A>& q, const ConstPanel<A>& d_o) {
    const ConstPanel<A> k = load<T>(args_.k, index_, begin, rows, k_copy_);
    const ConstPanel<A> v = load<T>(args_.v, index_, begin, rows, v_copy_);
    if (args_.d_k) {
      auto d_k = d_keys_.topRows(rows);
      if (state_.is_zero()) {
        d_k.setZero();
      } else {
        d_k.noalias() = v * state_.values().transpose();
        d_k.array().colwise() *= decay_.to_end(rows);
      }
      masked_scores(d_o, v, decay_, d_scores_);
      add_scores_transposed_product<A>(d_scores_, q, spare_keys_, d_k);
      store<T>(args_.d_k, index_, begin, rows, d_keys_);
    }
    if (args_.d_v) {
      auto d_v = d_values_.topRows(rows);
      if (state_.is_zero()) {
        d_v.setZero();
      } else {
        d_v.noalias() = k * state_.values();
        d_v.array().colwise() *= decay_.to_end(rows);
      }
      masked_scores(q, k, decay_, scores_);
      add_scores_transposed_product<A>(scores_, d_o, spare_values_, d_v);
      store<T>(args_.d_v, index_, begin, rows, d_values_);
    }
  }

  Panel<A> keys() { return scratch_.matrix<A>(kChunkRows, dim_); }
  Panel<A> values() { return scratch_.matrix<A>(kChunkRows, value_dim_); }

  const LinearAttentionBackwardArgs& args_;
  const HeadIndex index_;
  const int64_t length_ = args_.q.length, dim_ = args_.q.dim, value_dim_ = args_.v.dim;
  Scratch scratch_;
  const Decay<A> decay_;
  State<A> state_{scratch_, dim_, value_dim_};  // S while time runs forward, d_S while it runs backward
  Panel<A> scores_ = scratch_.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> d_scores_ = scratch_.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> weighted_ = keys(), spare_keys_ = keys(), spare_values_ = values();
  Panel<A> d_keys_ = keys();  // d_q or d_k
  Panel<A> d_values_ = values();
  Panel<A> q_copy_ = keys(), k_copy_ = keys(), v_copy_ = values(), d_o_copy_ = values();
};

// Multiplications of one task at least, so that a step of one token does not wake up other threads.
constexpr double kMinimumWork = 65536.0;

// Calls visit(T{}, index) for every head of every sequence, on several threads. Throws Error for a positive log_decay.
template <class Visit>
void for_each_head(Context& context, const HeadsView& q, int64_t value_dim, const VectorView& log_decay,
                   const Visit& visit) {
  visit_floating(q.dtype, [&](auto type) {
    using A = accumulate_t<decltype(type)>;
    for (int64_t head = 0; head < log_decay.size; ++head) {
      const A value = vector<A>(log_decay)[head];
      check(value <= 0, "[linear_attention] log_decay[{}] is {}, expected a number <= 0", head, value);
    }
    const double work = static_cast<double>(q.length) * static_cast<double>(q.dim) * static_cast<double>(value_dim);
    const auto grain = static_cast<int64_t>(1.0 + kMinimumWork / (work + 1.0));
    parallel_ranges(context, q.batch * q.heads, grain, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) visit(type, HeadIndex{index / q.heads, index % q.heads});
    });
  });
}

}  // namespace

void linear_attention_forward(Context& context, const LinearAttentionForwardArgs& args) {
  for_each_head(context, args.q, args.v.dim, args.log_decay,
                [&](auto type, HeadIndex index) { forward_head<decltype(type)>(args, index); });
}

void linear_attention_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  for_each_head(context, args.q, args.v.dim, args.log_decay, [&](auto type, HeadIndex index) {
    BackwardHead<decltype(type)> work(args, index);
    if (args.d_q) work.sweep_forward();
    if (args.d_k || args.d_v || args.d_initial_state) work.sweep_backward();
  });
}

}  // namespace heddle::kernels::cpu
