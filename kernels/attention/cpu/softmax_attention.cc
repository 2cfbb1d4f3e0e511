// Softmax attention on the CPU, by blocks of 64 queries and 64 keys. The keys that a query sees are one range, and
// neither end of it moves back from one query to the next. So a block of queries, or of keys, has one range of partners
// too, and nothing outside it is read. With P the probabilities of a block, s the scale:
//   forward, for each block of queries:      P = softmax(s q k^T);   o = P v
//   backward, for each block of queries:     dP = d_o v^T;   D = row sums of P .* dP;   dS = s P .* (dP - D);
//                                            d_q = dS k
//   then for each block of keys, by all heads and blocks of queries that see it:   d_v += P^T d_o;   d_k += dS^T q
// D is not taken as d_o . o, because o is rounded to the storage dtype. Masking is choosing: a number that a token does
// not depend on enters none of its products, not even times 0. Blocks and the order of sums depend on sizes and
// segments alone.
//
// A row whose scores are beyond float has no finite lse. Its scores are taken again in double, row by row, and its lse
// is infinity: that tells backward to do the same.
#include "kernels/attention/softmax_attention.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/runtime/error.h"
#include "kernels/attention/cpu/linear_attention.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

constexpr int64_t kBlock = 64;  // queries or keys of a block

// Indices [begin, end) of tokens, or of columns of a block.
struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  bool contains(int64_t index) const { return index >= begin && index < end; }
  // What this range and `columns` share, counted from the begin of `columns`; possibly empty.
  Range within(Range columns) const {
    const int64_t first = std::clamp(begin, columns.begin, columns.end);
    return {first - columns.begin, std::clamp(end, first, columns.end) - columns.begin};
  }
};

// Calls visit(block) for consecutive ranges of at most kBlock indices that together are `range`.
template <class Visit>
void for_each_block(Range range, const Visit& visit) {
  for (int64_t begin = range.begin; begin < range.end; begin += kBlock) {
    visit(Range{begin, std::min(begin + kBlock, range.end)});
  }
}

// Which keys the queries of one sequence see.
class Visibility {
 public:
  Visibility(const SoftmaxAttentionInputs& inputs, int64_t batch)
      : queries_(inputs.q.length), keys_(inputs.k.length), causal_(inputs.causal), window_(inputs.window) {
    if (inputs.segments) segments_ = vector<const int32_t>(inputs.segments) + batch * keys_;
  }

  // The keys that a query sees. Both ends are non-decreasing in the query.
  Range keys_of(int64_t query) const {
    const int64_t position = keys_ - queries_ + query;
    Range keys{0, keys_};
    if (segments_ != nullptr) {
      const auto [first, last] = std::equal_range(segments_, segments_ + keys_, segments_[position]);
      keys = {first - segments_, last - segments_};
    }
    if (causal_) keys.end = std::min(keys.end, position + 1);
    if (window_ > 0) keys.begin = std::max(keys.begin, position + 1 - window_);
    return keys;
  }
  // From the first key that one of the queries sees to the last.
  Range keys_of(Range queries) const { return {keys_of(queries.begin).begin, keys_of(queries.end - 1).end}; }
  // The queries that see at least one of the keys.
  Range queries_of(Range keys) const {
    const int64_t begin = first_query([&](int64_t query) { return keys_of(query).end > keys.begin; });
    return {begin, std::max(begin, first_query([&](int64_t query) { return keys_of(query).begin >= keys.end; }))};
  }

 private:
  // The first query for which `holds`, which then holds for all later ones; the number of queries when there is none.
  template <class Holds>
  int64_t first_query(const Holds& holds) const {
    Range rest{0, queries_};
    while (rest.size() > 0) {
      const int64_t middle = rest.begin + rest.size() / 2;
      (holds(middle) ? rest.end : rest.begin) = holds(middle) ? middle : middle + 1;
    }
    return rest.begin;
  }

  const int64_t queries_, keys_;
  const bool causal_;
  const int64_t window_;
  const int32_t* segments_ = nullptr;
};

// Scores to probabilities before they are normalized: values (=) exp(values - shift) in the visible columns and 0 in
// the others.
template <class A>
void exponentiate_row(A* values, int64_t cols, Range visible, A shift) {
  std::fill(values, values + visible.begin, A(0));
  HEDDLE_INDEPENDENT
  for (int64_t j = visible.begin; j < visible.end; ++j) values[j] = exponential(values[j] - shift);
  std::fill(values + visible.end, values + cols, A(0));
}

// Divides the visible columns by their sum. Returns the inverse of the sum.
template <class A>
A normalize_row(A* values, Range visible) {
  A* seen = values + visible.begin;
  const A inverse_sum = A(1) / sum_of<A>(visible.size(), [seen](int64_t j) { return seen[j]; });
  for (int64_t j = 0; j < visible.size(); ++j) seen[j] *= inverse_sum;
  return inverse_sum;
}

// From dP to dS: gradients (=) scale * p * (gradients - product) in the visible columns and 0 in the others.
template <class A>
void differentiate_row(const A* p, A* gradients, int64_t cols, Range visible, A scale, A product) {
  std::fill(gradients, gradients + visible.begin, A(0));
  for (int64_t j = visible.begin; j < visible.end; ++j) gradients[j] = scale * p[j] * (gradients[j] - product);
  std::fill(gradients + visible.end, gradients + cols, A(0));
}

// The place of query `query` of one head in lse or in what has its form.
template <class A>
A& at(const VectorView& rows, const HeadsView& q, HeadIndex index, int64_t query) {
  return vector<A>(rows)[(index.batch * q.heads + index.head) * q.length + query];
}

// The head of k and v that a head of q uses.
HeadIndex keys_of(const SoftmaxAttentionInputs& inputs, HeadIndex head) {
  return {head.batch, head.head / (inputs.q.heads / inputs.k.heads)};
}

// scores (=) scale * x y^T, where the rows of y are those of a head of `view` in `keys`.
template <class T, class A = accumulate_t<T>>
void multiply_transposed(const ConstPanel<A>& x, const HeadsView& view, HeadIndex index, Range keys, A scale,
                         Panel<A>& copy, Panel<A>& scores) {
  for_each_block(keys, [&](Range block) {
    const ConstPanel<A> y = load<T>(view, index, block.begin, block.size(), copy);
    scores.middleCols(block.begin - keys.begin, block.size()).noalias() = scale * x * y.transpose();
  });
}

// y (=) weights x, where the rows of x are those of a head of `view` in `keys`. Weights of keys that a query of
// `queries` does not see are 0, and there numbers of x that are not finite are left out. `copy` and `spare` are
// scratch.
template <class T, class A = accumulate_t<T>>
void multiply_visible(const Panel<A>& weights, Range queries, const Visibility& visibility, const HeadsView& view,
                      HeadIndex index, Range keys, Panel<A>& copy, Panel<A>& spare, Panel<A>& y) {
  auto result = y.topRows(queries.size());
  result.setZero();
  for_each_block(keys, [&](Range block) {
    const ConstPanel<A> x = load<T>(view, index, block.begin, block.size(), copy), finite = finite_part(x, spare);
    const int64_t shift = block.begin - keys.begin;
    result.noalias() += weights.middleCols(shift, block.size()) * finite;
    for_each_left_out(x, finite, [&](int64_t row, int64_t col) {
      for (int64_t i = 0; i < queries.size(); ++i) {
        const bool sees = visibility.keys_of(queries.begin + i).contains(block.begin + row);
        if (sees) result(i, col) += weights(i, shift + row) * x(row, col);
      }
    });
  });
}

// y (+=) weights^T x, where the rows of x are those of `queries` and those of y are `keys`. As above, a key takes no
// number that is not finite from a query that does not see it.
template <class A>
void add_transposed_visible(const Panel<A>& weights, const ConstPanel<A>& x, Range queries,
                            const Visibility& visibility, Range keys, Panel<A>& spare, Panel<A>& y) {
  const ConstPanel<A> finite = finite_part(x, spare);
  y.topRows(keys.size()).noalias() += weights.topRows(queries.size()).transpose() * finite;
  for_each_left_out(x, finite, [&](int64_t row, int64_t col) {
    const Range visible = visibility.keys_of(queries.begin + row).within(keys);
    for (int64_t j = visible.begin; j < visible.end; ++j) y(j, col) += weights(row, j) * x(row, col);
  });
}

// What lse is where the scores of a row overflowed A, which double does not.
template <class A>
constexpr A kOverflowed = std::numeric_limits<A>::infinity();

// exponentiate_row() of such a row, in double: values (=) exp(score - the largest score of the row) in those of
// `columns`, a range of keys, that the query sees. The other columns are left as they are.
template <class T>
void exponentiate_in_double(const SoftmaxAttentionInputs& inputs, HeadIndex index, int64_t query,
                            const Visibility& visibility, Range columns, accumulate_t<T>* values) {
  const HeadIndex kv_index = keys_of(inputs, index);
  const T* q = head<const T>(inputs.q, index.batch, query, index.head);
  const Range seen = visibility.keys_of(query);
  std::vector<double> scores(static_cast<size_t>(seen.size()));
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t key = seen.begin; key < seen.end; ++key) {
    const T* k = head<const T>(inputs.k, kv_index.batch, key, kv_index.head);
    double product = 0.0;
    for (int64_t i = 0; i < inputs.q.dim; ++i) product += static_cast<double>(q[i]) * static_cast<double>(k[i]);
    const double score = static_cast<double>(inputs.scale) * product;
    scores[static_cast<size_t>(key - seen.begin)] = score;
    largest = score > largest ? score : largest;
  }
  const Range visible = seen.within(columns);
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const double score = scores[static_cast<size_t>(columns.begin + j - seen.begin)];
    values[j] = static_cast<accumulate_t<T>>(std::exp(score - largest));
  }
}

// Bytes of scratch memory for `matrices` of a block of rows with `cols` columns.
template <class A>
int64_t bytes_of(int64_t matrices, int64_t cols) {
  return matrices * kBlock * cols * static_cast<int64_t>(sizeof(A));
}

// Writes (=) o and lse of a block of queries of one head.
template <class T>
void forward_block(const SoftmaxAttentionForwardArgs& args, HeadIndex index, Range queries) {
  using A = accumulate_t<T>;
  const HeadsView &q = args.inputs.q, &k = args.inputs.k, &v = args.inputs.v;
  const Visibility visibility(args.inputs, index.batch);
  const HeadIndex kv_index = keys_of(args.inputs, index);
  const Range keys = visibility.keys_of(queries);
  const A scale = static_cast<A>(args.inputs.scale);

  Scratch scratch(bytes_of<A>(1, keys.size()) + bytes_of<A>(2, q.dim) + bytes_of<A>(3, v.dim));
  Panel<A> p = scratch.matrix<A>(queries.size(), keys.size());
  Panel<A> q_copy = scratch.matrix<A>(kBlock, q.dim), k_copy = scratch.matrix<A>(kBlock, q.dim);
  Panel<A> v_copy = scratch.matrix<A>(kBlock, v.dim), spare = scratch.matrix<A>(kBlock, v.dim);
  Panel<A> o = scratch.matrix<A>(kBlock, v.dim);

  const ConstPanel<A> q_rows = load<T>(q, index, queries.begin, queries.size(), q_copy);
  multiply_transposed<T>(q_rows, k, kv_index, keys, scale, k_copy, p);
  for (int64_t row = 0; row < queries.size(); ++row) {
    const Range visible = visibility.keys_of(queries.begin + row).within(keys);
    A* scores = p.row(row).data();
    const A* seen = scores + visible.begin;
    const A largest = maximum_of<A>(visible.size(), [seen](int64_t j) { return seen[j]; });
    exponentiate_row(scores, keys.size(), visible, largest);
    A inverse_sum = normalize_row(scores, visible);
    bool is_overflowed = false;
    if (!std::is_same_v<A, double> && std::isnan(inverse_sum)) {
      exponentiate_in_double<T>(args.inputs, index, queries.begin + row, visibility, keys, scores);
      inverse_sum = normalize_row(scores, visible);
      is_overflowed = !std::isnan(inverse_sum);  // else q or k are not finite
    }
    if (!args.lse) continue;
    const A lse = is_overflowed ? kOverflowed<A> : largest - std::log(inverse_sum);
    at<A>(args.lse, q, index, queries.begin + row) = lse;
  }
  multiply_visible<T>(p, queries, visibility, v, kv_index, keys, v_copy, spare, o);
  store<T>({args.o, GradientMode::overwrite}, index, queries.begin, queries.size(), o);
}

// Backward of a block of queries of one head: writes (=) what its blocks of keys need to know of each row, and writes
// or adds d_q.
template <class T>
void backward_queries(const SoftmaxAttentionBackwardArgs& args, HeadIndex index, Range queries) {
  using A = accumulate_t<T>;
  const HeadsView &q = args.inputs.q, &k = args.inputs.k, &v = args.inputs.v;
  const Visibility visibility(args.inputs, index.batch);
  const HeadIndex kv_index = keys_of(args.inputs, index);
  const Range keys = visibility.keys_of(queries);
  const A scale = static_cast<A>(args.inputs.scale);

  Scratch scratch(bytes_of<A>(2, keys.size()) + bytes_of<A>(4, q.dim) + bytes_of<A>(2, v.dim));
  Panel<A> p = scratch.matrix<A>(queries.size(), keys.size());
  Panel<A> d_scores = scratch.matrix<A>(queries.size(), keys.size());  // dP, then dS
  Panel<A> q_copy = scratch.matrix<A>(kBlock, q.dim), k_copy = scratch.matrix<A>(kBlock, q.dim);
  Panel<A> spare = scratch.matrix<A>(kBlock, q.dim), d_q = scratch.matrix<A>(kBlock, q.dim);
  Panel<A> v_copy = scratch.matrix<A>(kBlock, v.dim), d_o_copy = scratch.matrix<A>(kBlock, v.dim);

  const ConstPanel<A> q_rows = load<T>(q, index, queries.begin, queries.size(), q_copy);
  const ConstPanel<A> d_o_rows = load<T>(args.d_o, index, queries.begin, queries.size(), d_o_copy);
  multiply_transposed<T>(q_rows, k, kv_index, keys, scale, k_copy, p);
  multiply_transposed<T>(d_o_rows, v, kv_index, keys, A(1), v_copy, d_scores);
  for (int64_t row = 0; row < queries.size(); ++row) {
    const int64_t query = queries.begin + row;
    const Range visible = visibility.keys_of(query).within(keys);
    A *p_row = p.row(row).data(), *d_row = d_scores.row(row).data();
    const A lse = at<A>(args.lse, q, index, query);
    exponentiate_row(p_row, keys.size(), visible, lse);
    if (lse == kOverflowed<A>) exponentiate_in_double<T>(args.inputs, index, query, visibility, keys, p_row);
    // lse is known to its own rounding only, which is much where scores are large, so P is normalized as in forward.
    at<A>(args.inverse_sums, q, index, query) = normalize_row(p_row, visible);
    const A product = sum_of<A>(visible.size(), [p_seen = p_row + visible.begin, d_seen = d_row + visible.begin](
                                                    int64_t j) { return p_seen[j] * d_seen[j]; });
    at<A>(args.row_products, q, index, query) = product;
    differentiate_row(p_row, d_row, keys.size(), visible, scale, product);
  }
  if (!args.d_q) return;
  multiply_visible<T>(d_scores, queries, visibility, k, kv_index, keys, k_copy, spare, d_q);
  store<T>(args.d_q, index, queries.begin, queries.size(), d_q);
}

// Backward of a block of keys of one head: writes or adds d_k and d_v.
template <class T>
void backward_keys(const SoftmaxAttentionBackwardArgs& args, HeadIndex index, Range keys) {
  using A = accumulate_t<T>;
  const HeadsView &q = args.inputs.q, &k = args.inputs.k, &v = args.inputs.v;
  const Visibility visibility(args.inputs, index.batch);
  const A scale = static_cast<A>(args.inputs.scale);

  Scratch scratch(bytes_of<A>(2, kBlock) + bytes_of<A>(4, q.dim) + bytes_of<A>(4, v.dim));
  Panel<A> p = scratch.matrix<A>(kBlock, keys.size()), d_scores = scratch.matrix<A>(kBlock, keys.size());
  Panel<A> q_copy = scratch.matrix<A>(kBlock, q.dim), k_copy = scratch.matrix<A>(kBlock, q.dim);
  Panel<A> spare_q = scratch.matrix<A>(kBlock, q.dim), d_k = scratch.matrix<A>(kBlock, q.dim);
  Panel<A> d_o_copy = scratch.matrix<A>(kBlock, v.dim), v_copy = scratch.matrix<A>(kBlock, v.dim);
  Panel<A> spare_d_o = scratch.matrix<A>(kBlock, v.dim), d_v = scratch.matrix<A>(kBlock, v.dim);

  const ConstPanel<A> k_rows = load<T>(k, index, keys.begin, keys.size(), k_copy);
  const ConstPanel<A> v_rows = load<T>(v, index, keys.begin, keys.size(), v_copy);
  d_k.setZero();
  d_v.setZero();
  const auto add_block = [&](HeadIndex head, Range queries) {
    const ConstPanel<A> q_rows = load<T>(q, head, queries.begin, queries.size(), q_copy);
    const ConstPanel<A> d_o_rows = load<T>(args.d_o, head, queries.begin, queries.size(), d_o_copy);
    p.topRows(queries.size()).noalias() = scale * q_rows * k_rows.transpose();
    if (args.d_k) d_scores.topRows(queries.size()).noalias() = d_o_rows * v_rows.transpose();
    for (int64_t row = 0; row < queries.size(); ++row) {
      const int64_t query = queries.begin + row;
      const Range visible = visibility.keys_of(query).within(keys);
      A* p_row = p.row(row).data();
      const A lse = at<A>(args.lse, q, head, query);
      exponentiate_row(p_row, keys.size(), visible, lse);
      if (lse == kOverflowed<A>) exponentiate_in_double<T>(args.inputs, head, query, visibility, keys, p_row);
      p.row(row).segment(visible.begin, visible.size()) *= at<A>(args.inverse_sums, q, head, query);
      if (!args.d_k) continue;
      differentiate_row(p_row, d_scores.row(row).data(), keys.size(), visible, scale,
                        at<A>(args.row_products, q, head, query));
    }
    if (args.d_k) add_transposed_visible(d_scores, q_rows, queries, visibility, keys, spare_q, d_k);
    if (args.d_v) add_transposed_visible(p, d_o_rows, queries, visibility, keys, spare_d_o, d_v);
  };
  const int64_t group = q.heads / k.heads;
  for (int64_t head = index.head * group; head < (index.head + 1) * group; ++head) {
    for_each_block(visibility.queries_of(keys), [&](Range queries) { add_block({index.batch, head}, queries); });
  }
  if (args.d_k) store<T>(args.d_k, index, keys.begin, keys.size(), d_k);
  if (args.d_v) store<T>(args.d_v, index, keys.begin, keys.size(), d_v);
}

void check_segments(const SoftmaxAttentionInputs& inputs) {
  if (!inputs.segments) return;
  const int64_t length = inputs.k.length;
  const int32_t* segments = vector<const int32_t>(inputs.segments);
  for (int64_t i = 1; i < inputs.segments.size; ++i) {
    check(i % length == 0 || segments[i] >= segments[i - 1],
          "[softmax_attention] segments[{}][{}] is {} after {}, expected numbers that do not decrease", i / length,
          i % length, segments[i], segments[i - 1]);
  }
}

// Calls visit(T{}, head, block) for every block of `tokens`, q or k, of every head, on several threads. Each token
// meets up to `partners` others.
template <class Visit>
void for_each_task(Context& context, const SoftmaxAttentionInputs& inputs, const HeadsView& tokens, int64_t partners,
                   const Visit& visit) {
  const int64_t blocks = (tokens.length + kBlock - 1) / kBlock;
  const double work = static_cast<double>(std::min(tokens.length, kBlock)) * static_cast<double>(partners) *
                      static_cast<double>(inputs.q.dim + inputs.v.dim);
  visit_floating(tokens.dtype, [&](auto type) {
    parallel_ranges(context, tokens.batch * tokens.heads * blocks, grain_of(work), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / blocks, first = task % blocks * kBlock;
        visit(type, HeadIndex{head / tokens.heads, head % tokens.heads},
              Range{first, std::min(first + kBlock, tokens.length)});
      }
    });
  });
}

}  // namespace

void softmax_attention_forward(Context& context, const SoftmaxAttentionForwardArgs& args) {
  check_segments(args.inputs);
  for_each_task(context, args.inputs, args.inputs.q, args.inputs.k.length,
                [&](auto type, HeadIndex head, Range queries) { forward_block<decltype(type)>(args, head, queries); });
}

void softmax_attention_backward(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  for_each_task(
      context, args.inputs, args.inputs.q, args.inputs.k.length,
      [&](auto type, HeadIndex head, Range queries) { backward_queries<decltype(type)>(args, head, queries); });
  if (!args.d_k && !args.d_v) return;
  for_each_task(context, args.inputs, args.inputs.k, args.inputs.q.length,
                [&](auto type, HeadIndex head, Range keys) { backward_keys<decltype(type)>(args, head, keys); });
}

}  // namespace heddle::kernels::cpu
