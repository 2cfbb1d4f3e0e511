// Chunked linear attention on the CPU. A chunk of C rows with the state S before it, and L_i the sum of the log decays
// of its rows 0 .. i, M[i][j] = scale * exp(L_i - L_j) for j <= i else 0, F[i] = scale * exp(L_i), E[j] = exp(L_last -
// L_j):
//   o  = F .* (q S) + (q k^T .* M) v            S' = exp(L_last) S + (E .* k)^T v
//   d_q = F .* (d_o S^T) + (d_o v^T .* M) k     d_k = E .* (v d_S'^T) + (d_o v^T .* M)^T q
//   d_v = E .* (k d_S') + (q k^T .* M)^T d_o    d_S = exp(L_last) d_S' + (F .* q)^T d_o
// L_i depends on the log decay of row t where i >= t, and L_j enters with the opposite sign, so with
// P = (q k^T .* M) .* (d_o v^T) and c[j] = E[j] k_j^T d_S' v_j the gradient of that log decay is
//   sum_{j < t <= i} P[i][j] + sum_{i >= t} F[i] q_i^T S d_o_i + sum_{j < t} c[j] + exp(L_last) <S, d_S'>
// in which nothing cancels: where a strong decay makes it tiny it is tiny. A thread works on the heads of q of one head
// of k of one sequence at a time. Backward passes through their chunks twice: forward in time with S for d_q, then
// backward in time with d_S for d_k and d_v. Sums are computed in the type of arithmetic and rounded once, when they
// are stored.
#include "kernels/attention/linear_attention.h"

#include <cstdint>

#include "kernels/attention/cpu/head_group.h"
#include "kernels/attention/cpu/linear_attention.h"

namespace heddle::kernels::cpu {
namespace {

// Writes (=) o and the final states of the heads of a group.
template <class T>
void forward_group(const LinearAttentionForwardArgs& args, const HeadGroup& group) {
  using A = accumulate_t<T>;
  const int64_t dim = args.q.dim, value_dim = args.v.dim;
  Scratch scratch(State<A>::bytes(dim, value_dim) +
                  kChunkRows * (3 * dim + 3 * value_dim + kChunkRows) * static_cast<int64_t>(sizeof(A)));
  State<A> state(scratch, dim, value_dim);
  Panel<A> scores = scratch.matrix<A>(kChunkRows, kChunkRows);
  Panel<A> weighted_k = scratch.matrix<A>(kChunkRows, dim);
  Panel<A> out = scratch.matrix<A>(kChunkRows, value_dim), spare = scratch.matrix<A>(kChunkRows, value_dim);
  Panel<A> q_copy = scratch.matrix<A>(kChunkRows, dim), k_copy = scratch.matrix<A>(kChunkRows, dim);
  Panel<A> v_copy = scratch.matrix<A>(kChunkRows, value_dim);

  GroupDecays<A> decays(args, group);
  for (int64_t i = 0; i < group.count; ++i) {
    const HeadIndex index = group.queries(i);
    const HeadDecays<A>& head = decays.heads[static_cast<size_t>(i)];
    Decay<A>& decay = decays.weights[static_cast<size_t>(i)];
    state.start(args.initial_state, args.q.heads, index);
    for (size_t c = 0; c < decays.chunks.size(); ++c) {
      const auto [begin, rows] = decays.chunks[c];
      if (head.starts_anew(begin)) state.clear();
      decay.move_to(decays.chunks[c]);
      const ConstPanel<A> q = load<T>(args.q, index, begin, rows, q_copy);
      const ConstPanel<A> k = load<T>(args.k, group.keys(), begin, rows, k_copy);
      const ConstPanel<A> v = load<T>(args.v, group.keys(), begin, rows, v_copy);
      auto o = out.topRows(rows);
      if (state.is_zero()) {
        o.setZero();
      } else {
        weighted_rows_product<A>(q, state.values(), decay.from_start(rows), o);
      }
      masked_scores(q, k, decay, scores);
      add_scores_product<A>(scores, v, spare, o);
      store<T>({args.o, GradientMode::overwrite}, index, begin, rows, out);
      const bool is_last = c + 1 == decays.chunks.size();
      if (is_last ? static_cast<bool>(args.final_state) : !head.starts_anew(decays.chunks[c + 1].begin)) {
        state.advance(decay.whole(rows), decay.to_end(rows), k, v, weighted_k);
      }
    }
    if (args.final_state) {
      state.store(head_state<A>(args.final_state, args.q.heads, index, dim, value_dim), GradientMode::overwrite);
    }
  }
}

}  // namespace

void linear_attention_forward(Context& context, const LinearAttentionForwardArgs& args) {
  for_each_group(context, args, [&](auto type, const HeadGroup& group) { forward_group<decltype(type)>(args, group); });
}

}  // namespace heddle::kernels::cpu
