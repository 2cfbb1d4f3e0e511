// Chunked linear attention on the CPU. A chunk of C rows with the state S before it, lambda = exp(log_decay),
// M[i][j] = scale * lambda^(i-j) for j <= i else 0, F[i] = scale * lambda^(i+1), E[j] = lambda^(C-1-j):
//   o  = F .* (q S) + (q k^T .* M) v            S' = lambda^C S + (E .* k)^T v
//   d_q = F .* (d_o S^T) + (d_o v^T .* M) k     d_k = E .* (v d_S'^T) + (d_o v^T .* M)^T q
//   d_v = E .* (k d_S') + (q k^T .* M)^T d_o    d_S = lambda^C d_S' + (F .* q)^T d_o
// Each head of each sequence is one piece of work. Backward goes twice through its chunks: onwards with S for d_q, and
// back with d_S for d_k and d_v. Sums are in the arithmetic type, rounded once when they are stored.
#include "kernels/attention/linear_attention.h"

#include "kernels/attention/cpu/linear_attention.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

template <class T>
void forward_piece(const LinearAttentionForwardArgs& args, Piece piece) {
  using A = accumulate_t<T>;
  const int64_t dim = args.q.dim, value_dim = args.v.dim;
  Scratch<A> scratch(dim * value_dim + kChunkRows * (3 * dim + 2 * value_dim + kChunkRows));
  Panel<A> state = scratch.matrix(dim, value_dim);
  Panel<A> scores = scratch.matrix(kChunkRows, kChunkRows);
  Panel<A> weighted_k = scratch.matrix(kChunkRows, dim);
  Panel<A> out = scratch.matrix(kChunkRows, value_dim);
  Panel<A> q_copy = scratch.matrix(kChunkRows, dim), k_copy = scratch.matrix(kChunkRows, dim);
  Panel<A> v_copy = scratch.matrix(kChunkRows, value_dim);

  const Decay<A> decay(args.log_decay, piece.head, args.scale);
  const auto state_of = [&](const VectorView& states) {
    return head_state<A>(states, args.q.heads, piece, dim, value_dim);
  };
  bool has_state = static_cast<bool>(args.initial_state);
  if (has_state) {
    state = state_of(args.initial_state);
  } else {
    state.setZero();
  }
  for (int64_t begin = 0; begin < args.q.length; begin += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, args.q.length - begin);
    const ConstPanel<A> q = load<T>(args.q, piece, begin, rows, q_copy);
    const ConstPanel<A> k = load<T>(args.k, piece, begin, rows, k_copy);
    const ConstPanel<A> v = load<T>(args.v, piece, begin, rows, v_copy);
    auto o = out.topRows(rows);
    if (has_state) {
      o.noalias() = q * state;
      o.array().colwise() *= decay.from_start(rows);
    } else {
      o.setZero();
    }
    masked_scores(q, k, decay, scores);
    add_scores_product<A>(scores, v, o);
    store<T>({args.o, GradientMode::overwrite}, piece, begin, rows, out);
    if (begin + rows < args.q.length || args.final_state) {
      advance_state(decay.whole(rows), decay.to_end(rows), k, v, weighted_k, state);
      has_state = true;
    }
  }
  if (args.final_state) state_of(args.final_state) = state;
}

template <class T>
class BackwardPiece {
 public:
  using A = accumulate_t<T>;

  BackwardPiece(const LinearAttentionBackwardArgs& args, Piece piece)
      : args_(args),
        piece_(piece),
        scratch_(dim_ * value_dim_ + kChunkRows * (2 * kChunkRows + 4 * dim_ + 3 * value_dim_)),
        decay_(args.log_decay, piece.head, args.scale) {}

  // Onwards with the state: d_q.
  void sweep_forward() {
    bool has_state = static_cast<bool>(args_.initial_state);
    start_state(args_.initial_state);
    for (int64_t begin = 0; begin < length_; begin += kChunkRows) {
      const int64_t rows = std::min(kChunkRows, length_ - begin);
      const ConstPanel<A> k = load<T>(args_.k, piece_, begin, rows, k_copy_);
      const ConstPanel<A> v = load<T>(args_.v, piece_, begin, rows, v_copy_);
      const ConstPanel<A> d_o = load<T>(args_.d_o, piece_, begin, rows, d_o_copy_);
      auto d_q = d_keys_.topRows(rows);
      if (has_state) {
        d_q.noalias() = d_o * state_.transpose();
        d_q.array().colwise() *= decay_.from_start(rows);
      } else {
        d_q.setZero();
      }
      masked_scores(d_o, v, decay_, d_scores_);
      add_scores_product<A>(d_scores_, k, d_q);
      store<T>(args_.d_q, piece_, begin, rows, d_keys_);
      if (begin + rows < length_) {
        advance_state(decay_.whole(rows), decay_.to_end(rows), k, v, weighted_, state_);
        has_state = true;
      }
    }
  }

  // Back with the state's gradient: d_k, d_v, d_initial_state.
  void sweep_backward() {
    bool has_state = static_cast<bool>(args_.d_final_state);
    start_state(args_.d_final_state);
    for (int64_t end = length_, begin = 0; end > 0; end = begin) {
      begin = (end - 1) / kChunkRows * kChunkRows;
      const int64_t rows = end - begin;
      const ConstPanel<A> q = load<T>(args_.q, piece_, begin, rows, q_copy_);
      const ConstPanel<A> d_o = load<T>(args_.d_o, piece_, begin, rows, d_o_copy_);
      if (args_.d_k || args_.d_v) key_value_gradients(begin, rows, q, d_o, has_state);
      if (begin > 0 || args_.d_initial_state) {
        advance_state(decay_.whole(rows), decay_.from_start(rows), q, d_o, weighted_, state_);
        has_state = true;
      }
    }
    if (!args_.d_initial_state) return;
    Panel<A> to = head_state<A>(args_.d_initial_state.view, args_.q.heads, piece_, dim_, value_dim_);
    if (args_.d_initial_state.mode == GradientMode::accumulate) {
      to += state_;
    } else {
      to = state_;
    }
  }

 private:
  void start_state(const VectorView& states) {
    if (states) {
      state_ = head_state<A>(states, args_.q.heads, piece_, dim_, value_dim_);
    } else {
      state_.setZero();
    }
  }

  void key_value_gradients(int64_t begin, int64_t rows, const ConstPanel<A>& q, const ConstPanel<A>& d_o,
                           bool has_state) {
    const ConstPanel<A> k = load<T>(args_.k, piece_, begin, rows, k_copy_);
    const ConstPanel<A> v = load<T>(args_.v, piece_, begin, rows, v_copy_);
    if (args_.d_k) {
      auto d_k = d_keys_.topRows(rows);
      if (has_state) {
        d_k.noalias() = v * state_.transpose();
        d_k.array().colwise() *= decay_.to_end(rows);
      } else {
        d_k.setZero();
      }
      masked_scores(d_o, v, decay_, d_scores_);
      add_scores_transposed_product<A>(d_scores_, q, d_k);
      store<T>(args_.d_k, piece_, begin, rows, d_keys_);
    }
    if (args_.d_v) {
      auto d_v = d_values_.topRows(rows);
      if (has_state) {
        d_v.noalias() = k * state_;
        d_v.array().colwise() *= decay_.to_end(rows);
      } else {
        d_v.setZero();
      }
      masked_scores(q, k, decay_, scores_);
      add_scores_transposed_product<A>(scores_, d_o, d_v);
      store<T>(args_.d_v, piece_, begin, rows, d_values_);
    }
  }

  const LinearAttentionBackwardArgs& args_;
  const Piece piece_;
  const int64_t length_ = args_.q.length, dim_ = args_.q.dim, value_dim_ = args_.v.dim;
  Scratch<A> scratch_;
  const Decay<A> decay_;
  Panel<A> state_ = scratch_.matrix(dim_, value_dim_);  // S, or d_S on the way back
  Panel<A> scores_ = scratch_.matrix(kChunkRows, kChunkRows), d_scores_ = scratch_.matrix(kChunkRows, kChunkRows);
  Panel<A> weighted_ = scratch_.matrix(kChunkRows, dim_);
  Panel<A> d_keys_ = scratch_.matrix(kChunkRows, dim_);  // d_q or d_k
  Panel<A> d_values_ = scratch_.matrix(kChunkRows, value_dim_);
  Panel<A> q_copy_ = scratch_.matrix(kChunkRows, dim_), k_copy_ = scratch_.matrix(kChunkRows, dim_);
  Panel<A> v_copy_ = scratch_.matrix(kChunkRows, value_dim_), d_o_copy_ = scratch_.matrix(kChunkRows, value_dim_);
};

// Multiplications that are worth a thread's while: a step of one token stays on one.
constexpr int64_t kMinimumWork = 65536;

// Calls visit(T{}, piece) for every head of every sequence.
template <class Visit>
void for_each_piece(Context& context, const HeadsView& q, int64_t value_dim, const VectorView& log_decay,
                    const Visit& visit) {
  visit_floating(q.dtype, [&](auto type) {
    using A = accumulate_t<decltype(type)>;
    for (int64_t head = 0; head < log_decay.size; ++head) {
      const A value = vector<A>(log_decay)[head];
      check(value <= 0, "[linear_attention] log_decay[{}] is {}, expected a number <= 0", head, value);
    }
    const int64_t grain = 1 + kMinimumWork / (q.length * q.dim * value_dim + 1);
    parallel_ranges(context, q.batch * q.heads, grain, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) visit(type, Piece{index / q.heads, index % q.heads});
    });
  });
}

}  // namespace

void linear_attention_forward(Context& context, const LinearAttentionForwardArgs& args) {
  for_each_piece(context, args.q, args.v.dim, args.log_decay,
                 [&](auto type, Piece piece) { forward_piece<decltype(type)>(args, piece); });
}

void linear_attention_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  for_each_piece(context, args.q, args.v.dim, args.log_decay, [&](auto type, Piece piece) {
    BackwardPiece<decltype(type)> work(args, piece);
    if (args.d_q) work.sweep_forward();
    if (args.d_k || args.d_v || args.d_initial_state) work.sweep_backward();
  });
}

}  // namespace heddle::kernels::cpu
