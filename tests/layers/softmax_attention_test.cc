// What softmax attention promises beyond its formula: who depends on whom, exactly; documents, caches, accuracy in 16
// bits, scores of any size, and clear errors.
#include "layers/ops/softmax_attention.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::softmax_attention_test {
namespace {

using test::kInfinity;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsNan;
using ::testing::ThrowsMessage;

constexpr DType kAllDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// The sizes and options of one call, for one sequence.
struct Call {
  int64_t length, keys, heads, kv_heads, dim, value_dim;
  SoftmaxAttentionOptions options = {};
  std::vector<double> segments = {};

  bool sees(int64_t query, int64_t key) const {
    const int64_t position = keys - length + query;
    return (!options.causal || key <= position) && (options.window == 0 || key > position - options.window) &&
           (segments.empty() || segments[static_cast<size_t>(key)] == segments[static_cast<size_t>(position)]);
  }
  // For each key, whether a query sees it and `other`.
  std::vector<bool> keys_seen_beside(int64_t other) const {
    std::vector<bool> seen(static_cast<size_t>(keys));
    for (int64_t query = 0; query < length; ++query) {
      for (int64_t key = 0; key < keys && sees(query, other); ++key) {
        if (sees(query, key)) seen[static_cast<size_t>(key)] = true;
      }
    }
    return seen;
  }
};

// The inputs of a call, or its results, as lists of numbers.
struct Numbers {
  std::vector<double> q, k, v, d_o;
};
struct Results {
  std::vector<double> o, d_q, d_k, d_v;
};

class SoftmaxAttentionTest : public test::OnDevices {
 protected:
  Tensor tensor(const Shape& shape, const std::vector<double>& values, DType dtype) {
    Tensor result = Tensor::empty(context(), shape, dtype);
    write_values(context(), result, values);
    return result;
  }
  Tensor normal(const Shape& shape, DType dtype = DType::float64) {
    Tensor result = Tensor::empty(context(), shape, dtype);
    fill_normal(context(), result, random_, 0.0, 1.0);
    return result;
  }
  std::vector<double> read(const Tensor& values) { return read_values(context(), values); }

  Numbers draw(const Call& call) {
    const auto numbers = [&](int64_t count) {
      std::vector<double> values(static_cast<size_t>(count));
      for (double& value : values) value = random_.next_normal();
      return values;
    };
    return {numbers(call.length * call.heads * call.dim), numbers(call.keys * call.kv_heads * call.dim),
            numbers(call.keys * call.kv_heads * call.value_dim), numbers(call.length * call.heads * call.value_dim)};
  }

  Results run(const Call& call, const Numbers& x, DType dtype) {
    Tape tape(context());
    std::array<Gradient, 3> gradients;
    const Variable q = tape.leaf(tensor({1, call.length, call.heads, call.dim}, x.q, dtype), gradients[0], "q");
    const Variable k = tape.leaf(tensor({1, call.keys, call.kv_heads, call.dim}, x.k, dtype), gradients[1], "k");
    const Variable v = tape.leaf(tensor({1, call.keys, call.kv_heads, call.value_dim}, x.v, dtype), gradients[2], "v");
    Variable segments;
    if (!call.segments.empty()) segments = tape.constant(tensor({1, call.keys}, call.segments, DType::int32));
    const Variable o = softmax_attention(tape, q, k, v, segments, call.options);
    tape.backward(o, tensor(o.shape(), x.d_o, dtype));
    return {read(o.value), read(gradients[0].tensor), read(gradients[1].tensor), read(gradients[2].tensor)};
  }

  // An infinity or NaN of one token reaches the results of all that see it, in a call of one head.
  void expect_not_finite(const Call& call, DType dtype) {
    const Numbers numbers = draw(call);
    const auto place = [](int64_t at, int64_t width) { return static_cast<size_t>(at * width + 2); };
    for (const int64_t at : {0, 63, 64, 130}) {
      Numbers x = numbers;
      x.v[place(at, call.value_dim)] = kInfinity;
      const Results by_v = run(call, x, dtype);
      x = numbers;
      x.d_o[place(at, call.value_dim)] = kInfinity;
      const Results by_d_o = run(call, x, dtype);
      x = numbers;
      x.k[place(at, call.dim)] = std::nan("");
      const Results by_k = run(call, x, dtype);
      x = numbers;
      x.q[place(at, call.dim)] = std::nan("");
      const Results by_q = run(call, x, dtype);
      for (int64_t token = 0; token < call.length; ++token) {
        for (int64_t col = 0; col < call.value_dim; ++col) {
          const auto i = static_cast<size_t>(token * call.value_dim + col);
          EXPECT_EQ(by_v.o[i] == kInfinity, call.sees(token, at) && col == 2) << token << ", " << col;
          EXPECT_EQ(by_d_o.d_v[i] == kInfinity, call.sees(at, token) && col == 2) << token << ", " << col;
        }
        for (int64_t col = 0; col < call.dim; ++col) {
          const auto i = static_cast<size_t>(token * call.dim + col);
          EXPECT_EQ(std::isnan(by_k.d_q[i]), call.sees(token, at)) << token;
          EXPECT_EQ(std::isnan(by_q.d_k[i]), call.sees(at, token)) << token;
        }
      }
    }
  }

  Random random_{7, RandomStream::test};
};

void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(found.size(), wanted.size()) << what;
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_NEAR(found[i], wanted[i], tolerance * (1.0 + std::abs(wanted[i]))) << what << "[" << i << "]";
  }
}

// Documents of these lengths, numbered by every other number.
std::vector<double> documents(const std::vector<int64_t>& lengths) {
  std::vector<double> segments;
  for (size_t i = 0; i < lengths.size(); ++i) {
    segments.insert(segments.end(), static_cast<size_t>(lengths[i]), 2.0 * static_cast<double>(i));
  }
  return segments;
}

// --- Exact dependence ---

// Every number of `found`, rows of `width` numbers for each token and head, is bit for bit as in `clean`, where
// `may_change(token, head)` does not say that it depends on what was changed.
template <class MayChange>
void expect_unchanged(const std::vector<double>& found, const std::vector<double>& clean, int64_t heads, int64_t width,
                      const MayChange& may_change, const char* what) {
  for (int64_t i = 0; i < static_cast<int64_t>(found.size()); ++i) {
    const int64_t token = i / width / heads, head = i / width % heads;
    if (found[i] == clean[i] || may_change(token, head)) continue;
    FAIL() << found[i] << " instead of " << clean[i] << " in " << what << " of token " << token << ", head " << head;
  }
}

// `input` is 'q', 'k', 'v' or 'o' for d_o, of which a number of token `at` in head 0 is `bad`.
void expect_exact_dependence(const Call& call, char input, int64_t at, const Results& found, const Results& clean) {
  const int64_t group = call.heads / call.kv_heads;
  const bool of_query = input == 'q' || input == 'o';
  const std::vector<bool> beside = call.keys_seen_beside(at);
  const auto query_may = [&](int64_t query, int64_t head) {
    return of_query ? query == at && head == 0 : call.sees(query, at) && head < group;
  };
  const auto key_may = [&](int64_t key, int64_t head) {
    return head == 0 && (of_query ? call.sees(at, key) : beside[static_cast<size_t>(key)]);
  };
  const auto never = [](int64_t, int64_t) { return false; };
  if (input == 'o') {
    expect_unchanged(found.o, clean.o, call.heads, call.value_dim, never, "o");
  } else {
    expect_unchanged(found.o, clean.o, call.heads, call.value_dim, query_may, "o");
  }
  expect_unchanged(found.d_q, clean.d_q, call.heads, call.dim, query_may, "d_q");
  expect_unchanged(found.d_k, clean.d_k, call.kv_heads, call.dim, key_may, "d_k");
  if (input == 'v') {
    expect_unchanged(found.d_v, clean.d_v, call.kv_heads, call.value_dim, never, "d_v");
  } else {
    expect_unchanged(found.d_v, clean.d_v, call.kv_heads, call.value_dim, key_may, "d_v");
  }
}

TEST_P(SoftmaxAttentionTest, NoTokenSeesWhatItDoesNotDependOn) {
  const std::vector<double> segments = documents({1, 30, 64, 36});
  std::vector<Call> calls = {
      {131, 131, 4, 2, 3, 5},
      {131, 131, 4, 2, 3, 5, {.window = 40}},
      {131, 131, 4, 2, 3, 5, {.window = 20}, segments},
      {131, 131, 4, 2, 3, 5, {.causal = false}, segments},
      {70, 131, 4, 2, 3, 5, {}, segments},
  };
  if (on_gpu()) {  // heads of 64 and 128 features have kernels of their own there
    calls.push_back({131, 131, 4, 2, 64, 64});
    calls.push_back({131, 131, 4, 2, 128, 128, {.window = 40}});
    calls.push_back({70, 131, 4, 2, 64, 64, {}, segments});
  }
  for (size_t which = 0; which < calls.size(); ++which) {
    const Call& call = calls[which];
    const Numbers numbers = draw(call);
    for (const DType dtype : kAllDTypes) {
      if (call.dim >= 64 && size_of(dtype) > 2) continue;
      const Results clean = run(call, numbers, dtype);
      for (const char input : {'q', 'k', 'v', 'o'}) {
        for (const int64_t at : {0, 1, 63, 64, 130}) {
          const bool of_query = input == 'q' || input == 'o';
          if (of_query && at >= call.length) continue;
          for (const double bad : {kInfinity, -kInfinity, std::nan("")}) {
            SCOPED_TRACE(::testing::Message()
                         << name(dtype) << " call " << which << ": " << bad << " in " << input << " of token " << at);
            Numbers x = numbers;
            auto& poisoned = input == 'q' ? x.q : input == 'k' ? x.k : input == 'v' ? x.v : x.d_o;
            const int64_t width = input == 'q' || input == 'k' ? call.dim : call.value_dim;
            poisoned[static_cast<size_t>(at * (of_query ? call.heads : call.kv_heads) * width + 2)] = bad;
            expect_exact_dependence(call, input, at, run(call, x, dtype), clean);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// What is left out of the products for those that do not see it is not lost for those that do.
TEST_P(SoftmaxAttentionTest, WhatIsNotFiniteReachesAllThatDependOnIt) {
  for (const DType dtype : kAllDTypes) {
    const Call call{131, 131, 1, 1, 3, 5, {.window = 70}};
    expect_not_finite(call, dtype);
    if (!on_gpu() || size_of(dtype) > 2) continue;
    expect_not_finite({131, 131, 1, 1, 64, 64, {.window = 70}}, dtype);
    for (const int64_t dim : {64, 128}) expect_not_finite({700, 700, 1, 1, dim, dim, {.window = 450}}, dtype);
  }
}

// --- Documents and caches ---

TEST_P(SoftmaxAttentionTest, PackedDocumentsAreTheDocumentsAlone) {
  const std::vector<int64_t> lengths = {1, 70, 3, 64, 33};
  for (const SoftmaxAttentionOptions& options :
       {SoftmaxAttentionOptions{}, SoftmaxAttentionOptions{.window = 9}, SoftmaxAttentionOptions{.causal = false}}) {
    const Call packed{171, 171, 4, 2, 5, 3, options, documents(lengths)};
    const Numbers x = draw(packed);
    const Results whole = run(packed, x, DType::float64);
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      Call alone{length, length, 4, 2, 5, 3, options};
      const auto part = [&](const std::vector<double>& values) {
        const int64_t width = static_cast<int64_t>(values.size()) / 171;
        return std::vector<double>(values.begin() + begin * width, values.begin() + (begin + length) * width);
      };
      const Results found = run(alone, {part(x.q), part(x.k), part(x.v), part(x.d_o)}, DType::float64);
      expect_near(part(whole.o), found.o, 1e-12, "o");
      expect_near(part(whole.d_q), found.d_q, 1e-12, "d_q");
      expect_near(part(whole.d_k), found.d_k, 1e-12, "d_k");
      expect_near(part(whole.d_v), found.d_v, 1e-12, "d_v");
      begin += length;
    }
  }
}

// A sequence read in pieces, where each piece sees the keys and values up to its end, outputs and gradients.
TEST_P(SoftmaxAttentionTest, PiecesWithAGrowingCacheAreTheWhole) {
  constexpr int64_t kLength = 150;
  for (const DType dtype : {DType::float64, DType::float32}) {
    const double tolerance = dtype == DType::float64 ? 1e-12 : 1e-5;
    for (const int64_t window : {0, 40}) {
      for (const bool segmented : {false, true}) {
        const Tensor q = normal({2, kLength, 4, 5}, dtype), k = normal({2, kLength, 2, 5}, dtype);
        const Tensor v = normal({2, kLength, 2, 3}, dtype), d_o = normal({2, kLength, 4, 3}, dtype);
        std::vector<double> numbers = documents({50, 100});
        const std::vector<double> others = documents({90, 60});
        numbers.insert(numbers.end(), others.begin(), others.end());
        const Tensor segments = tensor({2, kLength}, numbers, DType::int32);

        const auto read_in_pieces = [&](const std::vector<int64_t>& ends) {
          Tape tape(context());
          std::array<Gradient, 3> gradients;
          const Variable whole[] = {tape.leaf(q, gradients[0], "q"), tape.leaf(k, gradients[1], "k"),
                                    tape.leaf(v, gradients[2], "v")};
          const auto tokens = [&](const Variable& x, int64_t begin, int64_t end) {
            return tape.view(x, [=](const Tensor& all) { return all.slice(1, begin, end); });
          };
          const Tensor o = Tensor::empty(context(), d_o.shape(), dtype);
          std::vector<Tape::Root> roots;
          int64_t begin = 0;
          for (const int64_t end : ends) {
            Variable seen;
            if (segmented) {
              seen = tape.constant(Tensor::empty(context(), {2, end}, DType::int32));
              write_values(context(), seen.value, read(segments.slice(1, 0, end)));
            }
            const Variable part = softmax_attention(tape, tokens(whole[0], begin, end), tokens(whole[1], 0, end),
                                                    tokens(whole[2], 0, end), seen, {.window = window});
            write_values(context(), o.slice(1, begin, end), read(part.value));
            roots.push_back({part, tensor(part.shape(), read(d_o.slice(1, begin, end)), dtype)});
            begin = end;
          }
          tape.backward(roots);
          return Results{read(o), read(gradients[0].tensor), read(gradients[1].tensor), read(gradients[2].tensor)};
        };
        const Results whole = read_in_pieces({kLength});
        for (const std::vector<int64_t>& ends : {std::vector<int64_t>{1, 2, 64, 66, kLength}, {100, 149, kLength}}) {
          const Results found = read_in_pieces(ends);
          expect_near(found.o, whole.o, tolerance, "o");
          expect_near(found.d_q, whole.d_q, tolerance, "d_q");
          expect_near(found.d_k, whole.d_k, tolerance, "d_k");
          expect_near(found.d_v, whole.d_v, tolerance, "d_v");
        }
      }
    }
  }
}

// One query, as in generation: a GPU cuts its keys into spans that are joined, and saves lse for backward.
TEST_P(SoftmaxAttentionTest, OneQueryOfManyKeys) {
  struct Sizes {
    int64_t keys, heads, kv_heads, dim, value_dim, window;
  };
  constexpr Sizes kSizes[] = {{1, 1, 1, 8, 8, 0},        {7, 2, 1, 64, 64, 0},    {300, 4, 2, 128, 128, 0},
                              {3001, 1, 1, 128, 128, 0}, {2000, 12, 1, 64, 8, 0}, {2500, 8, 1, 72, 40, 1030},
                              {1100, 3, 1, 256, 256, 0}, {700, 2, 2, 5, 3, 600},  {600, 9, 3, 16, 264, 0}};
  for (const Sizes& sizes : kSizes) {
    const Call call{1, sizes.keys, sizes.heads, sizes.kv_heads, sizes.dim, sizes.value_dim, {.window = sizes.window}};
    for (const DType dtype : kAllDTypes) {
      SCOPED_TRACE(fmt::format("{} keys, {} / {} heads, {} and {} features, window {}, {}", sizes.keys, sizes.heads,
                               sizes.kv_heads, sizes.dim, sizes.value_dim, sizes.window, name(dtype)));
      Numbers x = draw(call);
      for (std::vector<double>* numbers : {&x.q, &x.k, &x.v, &x.d_o}) {
        *numbers = read(tensor({static_cast<int64_t>(numbers->size())}, *numbers, dtype));
      }
      const Results found = run(call, x, dtype);
      std::vector<double> o(found.o.size()), d_v(found.d_v.size());
      for (int64_t head = 0; head < call.heads; ++head) {
        const int64_t kv_head = head / (call.heads / call.kv_heads);
        std::vector<double> p(static_cast<size_t>(call.keys));
        double sum = 0.0;
        for (int64_t key = 0; key < call.keys; ++key) {
          if (!call.sees(0, key)) continue;
          double score = 0.0;
          for (int64_t i = 0; i < call.dim; ++i) {
            score += x.q[static_cast<size_t>(head * call.dim + i)] *
                     x.k[static_cast<size_t>((key * call.kv_heads + kv_head) * call.dim + i)];
          }
          p[static_cast<size_t>(key)] = std::exp(score / std::sqrt(static_cast<double>(call.dim)));
          sum += p[static_cast<size_t>(key)];
        }
        for (int64_t key = 0; key < call.keys; ++key) {
          for (int64_t i = 0; i < call.value_dim; ++i) {
            const auto of_value = static_cast<size_t>((key * call.kv_heads + kv_head) * call.value_dim + i);
            const auto of_query = static_cast<size_t>(head * call.value_dim + i);
            o[of_query] += p[static_cast<size_t>(key)] / sum * x.v[of_value];
            d_v[of_value] += p[static_cast<size_t>(key)] / sum * x.d_o[of_query];
          }
        }
      }
      const double rounding = test::roundoff(dtype);
      expect_near(found.o, o, dtype == DType::float64 ? 1e-12 : std::max(1e-5, 1.01 * rounding), "o");
      expect_near(found.d_v, d_v, dtype == DType::float64 ? 1e-12 : std::max(1e-5, 4 * rounding), "d_v");
    }
  }
}

// A window of one token: each token is given its own value, whatever its score.
TEST_P(SoftmaxAttentionTest, AWindowOfOneTokenIsTheToken) {
  const Call call{131, 131, 1, 1, 3, 3, {.window = 1}};
  for (const DType dtype : kAllDTypes) {
    const Numbers x = draw(call);
    const Results found = run(call, x, dtype);
    EXPECT_EQ(found.o, read(tensor({393}, x.v, dtype))) << name(dtype);
    EXPECT_EQ(found.d_v, read(tensor({393}, x.d_o, dtype))) << name(dtype);
    EXPECT_THAT(found.d_q, Each(0.0)) << name(dtype);
    EXPECT_THAT(found.d_k, Each(::testing::DoubleNear(0.0, 1e-4))) << name(dtype);
  }
}

// --- Accuracy ---

double root_mean_square_error(const std::vector<double>& found, const std::vector<double>& wanted) {
  double sum = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) sum += (found[i] - wanted[i]) * (found[i] - wanted[i]);
  return std::sqrt(sum / static_cast<double>(wanted.size()));
}

// Long rows in 16 bits: the error is that of rounding the exact result once. In bfloat16 and heads of 64 and 128
// features a GPU may round the probabilities and their gradients, too, as other implementations do.
TEST_P(SoftmaxAttentionTest, SixteenBitsAreRoundedOnce) {
  for (const int64_t dim : {64, 96, 128}) {
    const Call call{2048, 2048, 1, 1, dim, dim};
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      const bool coarser = on_gpu() && dim != 96 && dtype == DType::bfloat16;
      const auto rounded = [&](const std::vector<double>& values) {
        return read(tensor({static_cast<int64_t>(values.size())}, values, dtype));
      };
      const Numbers drawn = draw(call), x{rounded(drawn.q), rounded(drawn.k), rounded(drawn.v), rounded(drawn.d_o)};
      const Results exact = run(call, x, DType::float64), found = run(call, x, dtype);
      const auto expect_error = [&](const std::vector<double>& result, const std::vector<double>& wanted, double times,
                                    const char* what) {
        const double least = root_mean_square_error(rounded(wanted), wanted);
        EXPECT_LE(root_mean_square_error(result, wanted), times * least) << name(dtype) << " " << dim << " " << what;
      };
      const double gradients = coarser ? 1.6 : 1.02;
      expect_error(found.o, exact.o, coarser ? 1.4 : 1.02, "o");
      expect_error(found.d_q, exact.d_q, gradients, "d_q");
      expect_error(found.d_k, exact.d_k, gradients, "d_k");
      expect_error(found.d_v, exact.d_v, gradients, "d_v");
    }
  }
}

// Blocks of a GPU that add to one d_q do so in a fixed order.
TEST_P(SoftmaxAttentionTest, AllRunsGiveTheSameBits) {
  for (const int64_t dim : {64, 96, 128}) {
    for (const SoftmaxAttentionOptions& options : {SoftmaxAttentionOptions{}, SoftmaxAttentionOptions{.window = 300},
                                                   SoftmaxAttentionOptions{.causal = false}}) {
      const Call call{on_gpu() ? 1000 : 200, on_gpu() ? 1000 : 200, 4, 2, dim, dim, options};
      const Numbers x = draw(call);
      const Results first = run(call, x, DType::bfloat16);
      for (int repeat = 0; repeat < 3; ++repeat) {
        const Results again = run(call, x, DType::bfloat16);
        EXPECT_EQ(again.o, first.o) << dim;
        EXPECT_EQ(again.d_q, first.d_q) << dim;
        EXPECT_EQ(again.d_k, first.d_k) << dim;
        EXPECT_EQ(again.d_v, first.d_v) << dim;
      }
    }
  }
}

// Scores of 1e4 and more: each token sees the one with the largest score, and no gradient goes into the scores.
TEST_P(SoftmaxAttentionTest, HugeScoresDoNotOverflow) {
  const Call call{3, 3, 1, 1, 1, 1, {.scale = 1.0}};
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    for (const double huge : {1e4, 1e18}) {
      const Results found = run(call, {{huge, -huge, huge}, {1.0, -1.0, 2.0}, {3.0, 5.0, 7.0}, {1.0, 2.0, 4.0}}, dtype);
      EXPECT_THAT(found.o, ElementsAre(3.0, 5.0, 7.0)) << name(dtype);
      EXPECT_THAT(found.d_q, Each(0.0)) << name(dtype);
      EXPECT_THAT(found.d_k, Each(0.0)) << name(dtype);
      EXPECT_THAT(found.d_v, ElementsAre(1.0, 2.0, 4.0)) << name(dtype);
    }
  }
}

// The same in wide heads, whose other features are 0.
TEST_P(SoftmaxAttentionTest, HugeScoresDoNotOverflowInWideHeads) {
  for (const int64_t dim : {64, 128}) {
    const Call call{130, 130, 1, 1, dim, dim, {.scale = 1.0}};
    for (const double huge : {1e4, 1e18}) {
      const auto zeros = std::vector<double>(static_cast<size_t>(130 * dim));
      Numbers x{zeros, zeros, zeros, zeros};
      for (int64_t token = 0; token < 130; ++token) {
        const auto i = static_cast<size_t>(token * dim);
        x.q[i] = huge;
        x.k[i] = x.v[i] = static_cast<double>(token);
        x.d_o[i] = 1.0;
      }
      const Results found = run(call, x, DType::bfloat16);
      EXPECT_EQ(found.o, x.v) << dim << ", " << huge;
      EXPECT_THAT(found.d_q, Each(0.0)) << dim << ", " << huge;
      EXPECT_THAT(found.d_k, Each(0.0)) << dim << ", " << huge;
      EXPECT_EQ(found.d_v, x.d_o) << dim << ", " << huge;
    }
  }
}

// Scores that grow, or fall, by 0.1 from key to key: what was summed before is scaled down by much in each block of
// keys, and by no more than float32 shows.
TEST_P(SoftmaxAttentionTest, ScoresThatGrowFromKeyToKey) {
  for (const int64_t dim : {3, 64, 128}) {
    for (const double step : {0.1, -0.1}) {
      const Call call{500, 500, 1, 1, dim, dim, {.causal = false, .scale = 1.0}};
      Numbers x = draw(call);
      for (int64_t token = 0; token < 500; ++token) {
        const auto begin = static_cast<size_t>(token * dim);
        std::fill_n(x.q.begin() + static_cast<ptrdiff_t>(begin), dim, 0.0);
        x.q[begin] = step;
        x.k[begin] = static_cast<double>(token);
      }
      for (const DType dtype : kAllDTypes) {
        SCOPED_TRACE(fmt::format("{} features, {}, {}", dim, step, name(dtype)));
        Numbers rounded = x;
        for (std::vector<double>* numbers : {&rounded.q, &rounded.k, &rounded.v, &rounded.d_o}) {
          *numbers = read(tensor({static_cast<int64_t>(numbers->size())}, *numbers, dtype));
        }
        const Results exact = run(call, rounded, DType::float64), found = run(call, rounded, dtype);
        const double tolerance = dtype == DType::float64 ? 1e-12 : std::max(1e-4, 4 * test::roundoff(dtype));
        expect_near(found.o, exact.o, tolerance, "o");
        expect_near(found.d_v, exact.d_v, tolerance, "d_v");
      }
    }
  }
}

// Two equal scores far from 0, where the log-sum-exp of a row is rounded to more than its logarithm of 2.
TEST_P(SoftmaxAttentionTest, ProbabilitiesAddUpToOneWhereScoresAreLarge) {
  const Call call{2, 2, 1, 1, 1, 1, {.causal = false, .scale = 1.0}};
  const Results found = run(call, {{1e8, 1e8}, {1.0, 1.0}, {3.0, 5.0}, {1.0, 1.0}}, DType::float32);
  EXPECT_THAT(found.o, ElementsAre(4.0, 4.0));
  EXPECT_THAT(found.d_v, ElementsAre(1.0, 1.0));
  EXPECT_THAT(found.d_q, ElementsAre(0.0, 0.0));
  EXPECT_THAT(found.d_k, ElementsAre(-1e8, 1e8));
}

// Scores that float does not hold, on the CPU: some of the row, all of them, of terms that cancel, and in more than one
// block of queries and of keys.
TEST(SoftmaxAttentionScores, BeyondFloatAreThoseOfDouble) {
  const auto run = [](const Call& call, const Numbers& x, DType dtype) {
    Context context(Device{}, {.threads = 1});
    const auto tensor = [&](const Shape& shape, const std::vector<double>& values) {
      const Tensor result = Tensor::empty(context, shape, dtype);
      write_values(context, result, values);
      return result;
    };
    Tape tape(context);
    std::array<Gradient, 3> gradients;
    const Variable q = tape.leaf(tensor({1, call.length, call.heads, call.dim}, x.q), gradients[0], "q");
    const Variable k = tape.leaf(tensor({1, call.keys, call.kv_heads, call.dim}, x.k), gradients[1], "k");
    const Variable v = tape.leaf(tensor({1, call.keys, call.kv_heads, call.value_dim}, x.v), gradients[2], "v");
    const Variable o = softmax_attention(tape, q, k, v, {}, call.options);
    tape.backward(o, tensor(o.shape(), x.d_o));
    const auto read = [&](const Tensor& values) { return read_values(context, values); };
    return Results{read(o.value), read(gradients[0].tensor), read(gradients[1].tensor), read(gradients[2].tensor)};
  };
  const Call call{3, 3, 1, 1, 1, 1, {.causal = false, .scale = 1.0}};
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const Results all = run(call, {{1e20, -1e20, 2e20}, {1e20, -1e20, 2e20}, {3.0, 5.0, 7.0}, {1.0, 2.0, 4.0}}, dtype);
    EXPECT_THAT(all.o, ElementsAre(7.0, 5.0, 7.0)) << name(dtype);
    EXPECT_THAT(all.d_q, Each(0.0)) << name(dtype);
    EXPECT_THAT(all.d_k, Each(0.0)) << name(dtype);
    EXPECT_THAT(all.d_v, ElementsAre(0.0, 2.0, 5.0)) << name(dtype);
  }
  // Two equal scores beyond float, beside one that fits.
  const Results equal =
      run(call, {{1e20, 1e20, 1e20}, {1e20, 1e20, 1.0}, {3.0, 5.0, 9.0}, {1.0, 2.0, 5.0}}, DType::float32);
  EXPECT_THAT(equal.o, Each(4.0));
  EXPECT_THAT(equal.d_v, ElementsAre(4.0, 4.0, 0.0));
  // Scores of at most a few, whose terms cancel, beside usual ones; blocks of more than one size.
  Call blocks{130, 130, 2, 1, 2, 3, {.scale = 0.5}};
  Random random(3, RandomStream::test);
  Numbers x;
  for (auto* numbers : {&x.q, &x.k, &x.v, &x.d_o}) {
    const bool is_of_q = numbers == &x.q || numbers == &x.d_o;
    numbers->resize(static_cast<size_t>(130 * (is_of_q ? 2 : 1) * (numbers == &x.q || numbers == &x.k ? 2 : 3)));
    for (double& number : *numbers) number = round_to(DType::float32, random.next_normal());
  }
  const auto set = [](std::vector<double>& numbers, int64_t row, double first, double second) {
    numbers[static_cast<size_t>(2 * row)] = first;
    numbers[static_cast<size_t>(2 * row + 1)] = second;
  };
  set(x.q, 2 * 3, 1e25, 1e25);        // token 3, head 0
  set(x.q, 2 * 100 + 1, 1e25, 1e25);  // token 100, head 1
  set(x.k, 2, 1e15, -1e15);
  set(x.k, 70, 2e15, -2e15);
  const Results exact = run(blocks, x, DType::float64), found = run(blocks, x, DType::float32);
  expect_near(found.o, exact.o, 1e-5, "o");
  expect_near(found.d_v, exact.d_v, 1e-5, "d_v");
  for (const std::vector<double>& gradient : {found.d_q, found.d_k}) {
    for (const double number : gradient) EXPECT_TRUE(std::isfinite(number));
  }
}

// As in PyTorch: exp(-infinity) is 0, and a row of nothing else has no softmax.
TEST_P(SoftmaxAttentionTest, InfiniteScores) {
  const Call call{3, 3, 1, 1, 1, 1, {.scale = 1.0}};
  const auto outputs = [&](const std::vector<double>& k) {
    return run(call, {{1.0, 1.0, 1.0}, k, {3.0, 5.0, 7.0}, {1.0, 1.0, 1.0}}, DType::float32).o;
  };
  EXPECT_THAT(outputs({0.0, -kInfinity, -kInfinity}), ElementsAre(3.0, 3.0, 3.0));
  EXPECT_THAT(outputs({-kInfinity, -kInfinity, 0.0}), ElementsAre(IsNan(), IsNan(), 7.0));
  EXPECT_THAT(outputs({0.0, kInfinity, 0.0}), ElementsAre(3.0, IsNan(), IsNan()));
}

// --- Inputs of any form ---

// The log-sum-exp of each row is made for backward alone.
TEST_P(SoftmaxAttentionTest, WithoutBackwardThereIsNoLogSumExp) {
  const auto peak = [&](bool recorded) {
    const Tensor x = normal({1, 256, 4, 8}, DType::float32);
    Tape tape(context());
    Gradient d_x;
    const Variable q = recorded ? tape.leaf(x, d_x, "x") : tape.constant(x);
    const size_t before = context().allocator().stats().allocated.current;
    context().allocator().reset_peaks();
    const Variable o = softmax_attention(tape, q, q, q);
    return context().allocator().stats().allocated.peak - before;
  };
  EXPECT_EQ(peak(true) - peak(false), size_t{256} * 4 * 4);
}

// q, k and v may be one value, parts of one value with other heads, and k and v the same.
TEST_P(SoftmaxAttentionTest, OneValueMayBeEveryInput) {
  const GradcheckFunction same = [&](Tape& tape, const std::vector<Variable>& x) {
    return std::vector<Variable>{softmax_attention(tape, x[0], x[0], x[0])};
  };
  EXPECT_GRADIENTS_MATCH(context(), same, {{"x", normal({1, 66, 2, 1})}});
  const GradcheckFunction parts = [&](Tape& tape, const std::vector<Variable>& x) {
    const Variable heads = tape.view(x[0], [](const Tensor& all) { return all.slice(2, 1, 3); });
    return std::vector<Variable>{softmax_attention(tape, x[0], heads, heads)};
  };
  EXPECT_GRADIENTS_MATCH(context(), parts, {{"x", normal({1, 66, 4, 1})}});
  const GradcheckFunction other_heads = [&](Tape& tape, const std::vector<Variable>& x) {
    const auto heads = [&](int64_t begin) {
      return tape.view(x[1], [=](const Tensor& all) { return all.slice(2, begin, begin + 2); });
    };
    return std::vector<Variable>{softmax_attention(tape, x[0], heads(0), heads(1))};
  };
  EXPECT_GRADIENTS_MATCH(context(), other_heads, {{"q", normal({1, 5, 2, 2})}, {"x", normal({1, 5, 3, 2})}});
}

// Any extent but the features may be 0; a query that sees no key gives 0 and no gradient.
TEST_P(SoftmaxAttentionTest, EmptyExtents) {
  for (const DType dtype : kAllDTypes) {
    for (const Shape& shape : {Shape{0, 3, 2, 4}, Shape{2, 0, 2, 4}, Shape{2, 3, 0, 4}}) {
      Tape tape(context());
      Gradient gradient;
      const Variable x = tape.leaf(normal(shape, dtype), gradient, "x");
      const Variable o = softmax_attention(tape, x, x, x);
      EXPECT_EQ(o.shape(), shape);
      tape.backward(o, normal(shape, dtype));
      EXPECT_EQ(gradient.tensor.shape(), shape);
    }
    const Call no_keys{3, 0, 2, 1, 2, 2, {.causal = false}}, no_queries{0, 3, 2, 1, 2, 2};
    const Results without_keys = run(no_keys, draw(no_keys), dtype);
    EXPECT_EQ(without_keys.o, std::vector<double>(12, 0.0));
    EXPECT_EQ(without_keys.d_q, std::vector<double>(12, 0.0));
    const Results without_queries = run(no_queries, draw(no_queries), dtype);
    EXPECT_EQ(without_queries.d_k, std::vector<double>(6, 0.0));
    EXPECT_EQ(without_queries.d_v, std::vector<double>(6, 0.0));
  }
}

TEST_P(SoftmaxAttentionTest, ErrorsNameArgumentAndShapes) {
  Tape tape(context());
  const auto floats = [&](const Shape& shape) { return tape.constant(normal(shape, DType::float32)); };
  const Variable q = floats({2, 5, 4, 8}), k = floats({2, 5, 2, 8}), v = floats({2, 5, 2, 6});
  const auto expect_error = [&](const std::string& message, const Variable& q, const Variable& k, const Variable& v,
                                const Variable& segments = {}, const SoftmaxAttentionOptions& options = {}) {
    EXPECT_THAT([&] { softmax_attention(tape, q, k, v, segments, options); },
                ThrowsMessage<Error>(HasSubstr("[softmax_attention] " + message)));
  };
  expect_error("q is missing", {}, k, v);
  expect_error("k is float32 (2, 5, 16), expected real numbers (batch, length, heads, dim)", q, floats({2, 5, 16}), v);
  expect_error("v has shape (2, 5, 2, 0), expected at least one feature", q, k, floats({2, 5, 2, 0}));
  expect_error(
      "k is float32 (2, 5, 2, 7), expected float32 (2, 5, 2, 8): that of q but for its own length and number of heads",
      q, floats({2, 5, 2, 7}), v);
  expect_error("v is float32 (2, 4, 2, 6), expected float32 (2, 5, 2, 6): that of k but for its own last dimension", q,
               k, floats({2, 4, 2, 6}));
  expect_error("v is float64 (2, 5, 2, 6), expected float32 (2, 5, 2, 6)", q, k, tape.constant(normal({2, 5, 2, 6})));
  expect_error("k has 3 heads in shape (2, 5, 3, 8), expected a number that divides the 4 heads of q (2, 5, 4, 8)", q,
               floats({2, 5, 3, 8}), floats({2, 5, 3, 6}));
  expect_error("window is -1, expected 0, for none, or more", q, k, v, {}, {.window = -1});
  expect_error("window is 3, expected 0: causal is false", q, k, v, {}, {.causal = false, .window = 3});
  expect_error("k has 4 tokens in shape (2, 4, 2, 8), expected at least the 5 of q (2, 5, 4, 8): causal is true", q,
               floats({2, 4, 2, 8}), floats({2, 4, 2, 6}));
  const Variable four = tape.constant(tensor({2, 4}, std::vector<double>(8, 0.0), DType::int32));
  expect_error("k has 4 tokens in shape (2, 4, 2, 8), expected at least the 5 of q (2, 5, 4, 8): there are segments", q,
               floats({2, 4, 2, 8}), floats({2, 4, 2, 6}), four, {.causal = false});
  expect_error("segments is int32 (2, 4), expected int32 (2, 5): (batch, length of k)", q, k, v, four);
  const Tensor wide = tensor({2, 6}, std::vector<double>(12, 0.0), DType::int32);
  expect_error("segments is not contiguous", q, k, v, tape.constant(wide.slice(1, 0, 5)));
  if (on_gpu()) return;  // its kernels do not read segments back
  const std::vector<double> falling = {1, 1, 2, 2, 3, 0, 1, 0, 2, 2};
  expect_error("segments[1][2] is 0 after 1, expected numbers that do not decrease", q, k, v,
               tape.constant(tensor({2, 5}, falling, DType::int32)));
}

HEDDLE_ON_DEVICES(SoftmaxAttentionTest);

}  // namespace
}  // namespace heddle::softmax_attention_test
