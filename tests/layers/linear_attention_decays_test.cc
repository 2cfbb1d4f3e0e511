// Linear attention with decays for each token, segments, and fewer heads of k than of q, against its recurrence in
// double; and what follows from the recurrence: pieces with the state handed over are the whole, packed documents are
// the documents alone.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/linear_attention.h"
#include "tests/layers/linear_attention_numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::linear_attention_decays_test {
namespace {

using Sizes = LinearAttentionSizes;

class LinearAttentionDecays : public LinearAttentionNumbers {};

TEST_P(LinearAttentionDecays, AreThoseOfTheRecurrence) {
  for (const Sizes& sizes : {Sizes{2, 201, 4, 2, 5, 3}, Sizes{1, 130, 3, 1, 17, 33}, Sizes{1, 64, 2, 2, 1, 1},
                             Sizes{1, 150, 2, 1, 70, 66}, Sizes{1, 150, 1, 1, 64, 64}, Sizes{1, 70, 1, 1, 128, 64}}) {
    for (const bool segments : {false, true}) {
      Tensors x = draw(sizes);
      draw_decays(x);
      if (segments) draw_segments(sizes, x);
      const Tensors exact = run(sizes, x, DType::float64);
      expect_near(exact, recurrence(sizes, x), 1e-12);
      const Tensors single = run(sizes, x, DType::float32);
      expect_near(single, recurrence(sizes, x), 2e-5);
      if (HasFatalFailure()) return;
    }
  }
}

// A mask by the least number of a dtype instead of -infinity: the tokens after it keep their digits.
TEST_P(LinearAttentionDecays, LeastNumbersForget) {
  const Sizes sizes{2, 150, 3, 3, 5, 4};
  for (const double least : {-1e9, -1e17, -3.4e38}) {
    Tensors x = draw(sizes);
    draw_decays(x);
    for (double& value : x["log_decay"]) value = random_.next_below(12) == 0 ? least : value;
    expect_near(run(sizes, x, DType::float64), recurrence(sizes, x), 1e-11);
    expect_near(run(sizes, x, DType::float32), recurrence(sizes, x), 2e-5);
    if (HasFatalFailure()) return;
  }
}

// A score of two tokens, or the product of a query with the state, is beyond float where nothing of it is left: it is
// as if it were not there. Every token sees itself alone, and all numbers are products of a few.
TEST_P(LinearAttentionDecays, ProductsBeyondTheRangeAreNotSeenWhereAllIsForgotten) {
  if (on_gpu()) GTEST_SKIP() << "tensor cores multiply before they weigh";
  const Sizes sizes{1, 150, 2, 2, 1, 1};
  for (const double least : {-200.0, -1e9, -3.4e38, -kInfinity}) {
    for (const std::string large : {"q k", "d_o v"}) {
      SCOPED_TRACE(fmt::format("{} {}", large, least));
      Tensors x = draw(sizes);
      x["log_decay"].assign(x["log_decay"].size(), least);
      x["initial_state"].assign(2, 1.0);
      x["d_final_state"].assign(2, 1.0);
      const bool of_keys = large == "q k";
      for (double& value : x[of_keys ? "q" : "d_o"]) value *= random_.next_below(2) == 0 ? 1e20 : 1.0;
      const std::vector<double>& queries = x[of_keys ? "q" : "d_o"];
      std::vector<double>& keys = x[of_keys ? "k" : "v"];
      for (size_t i = 0; i < keys.size(); ++i) keys[i] *= std::abs(queries[i]) > 1e10 ? 1.0 : 1e20;
      expect_near(run(sizes, x, DType::float32), recurrence(sizes, x), 2e-5);
      if (HasFatalFailure()) return;
    }
  }
}

// A decay that leaves something of a score beyond float leaves what it should.
TEST_P(LinearAttentionDecays, ProductsBeyondTheRangeDecay) {
  if (on_gpu()) GTEST_SKIP() << "tensor cores multiply before they weigh";
  const Sizes sizes{1, 3, 1, 1, 1, 1};
  Tensors x = draw(sizes);
  x["q"] = {1.0, 1.0, 1e20};
  x["k"] = {1e20, 1.0, 1.0};
  x["v"] = {2.0, 1.0, 1.0};
  x["d_o"] = {1.0, 1.0, 1.0};
  x["initial_state"] = x["d_final_state"] = {0.0};
  x["log_decay"] = {0.0, -25.0, -25.0};
  const Tensors found = run(sizes, x, DType::float32), wanted = recurrence(sizes, x);
  EXPECT_NEAR(found.at("o")[2], wanted.at("o")[2], 1e-5 * wanted.at("o")[2]);
  EXPECT_NEAR(found.at("d_v")[0], wanted.at("d_v")[0], 1e-5 * wanted.at("d_v")[0]);
}

// The gradient of a decay that is the same for all tokens is the sum of those of the tokens; a constant one has none.
TEST_P(LinearAttentionDecays, OneForEachHead) {
  const Sizes sizes{2, 150, 3, 3, 4, 6};
  for (const double slope : {0.0, -1e-3, -0.3, -30.0}) {
    Tensors x = draw(sizes);
    x["log_decay"].assign(static_cast<size_t>(numel(sizes.shape("log_decay"))), slope);
    Tensors wanted = recurrence(sizes, x);
    std::vector<double> sums(3, 0.0);
    for (size_t i = 0; i < wanted["d_log_decay"].size(); ++i) sums[i % 3] += wanted["d_log_decay"][i];
    wanted["d_log_decay"] = sums;
    x["log_decay"].assign(3, slope);
    expect_near(run(sizes, x, DType::float64, Decay::learned), wanted, 1e-11);
    wanted.erase("d_log_decay");
    const Tensors constant = run(sizes, x, DType::float64, Decay::constant);
    expect_near(constant, wanted, 1e-11);
    EXPECT_FALSE(constant.contains("d_log_decay"));
  }
}

// No large terms cancel in the gradient of a decay: where a strong decay makes it tiny, its digits are right.
TEST_P(LinearAttentionDecays, TinyGradientsKeepTheirDigits) {
  const Sizes sizes{1, 100, 1, 1, 8, 8};
  Tensors x = draw(sizes);
  for (double& value : x["log_decay"]) value = -25.0;
  const std::vector<double> found = run(sizes, x, DType::float32)["d_log_decay"];
  const std::vector<double> wanted = recurrence(sizes, x)["d_log_decay"];
  const double largest = std::abs(
      *std::max_element(wanted.begin(), wanted.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }));
  ASSERT_LT(largest, 1e-8);
  for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found[i], wanted[i], 1e-5 * largest) << i;
}

// A sequence cut anywhere, with the state handed over, is the whole one.
TEST_P(LinearAttentionDecays, PiecesAreTheWhole) {
  const Sizes sizes{2, 137, 4, 2, 6, 5};
  for (const DType dtype : {DType::float64, DType::float32}) {
    for (int pieces = 1; pieces <= 5; ++pieces) {
      Tensors x = draw(sizes);
      draw_decays(x);
      const Tensors whole = run(sizes, x, dtype);
      std::vector<int64_t> cuts{0, sizes.length};
      while (static_cast<int>(cuts.size()) <= pieces) cuts.push_back(static_cast<int64_t>(random_.next_below(138)));
      std::sort(cuts.begin(), cuts.end());
      std::vector<double> state = x["initial_state"];
      for (size_t piece = 0; piece + 1 < cuts.size(); ++piece) {
        Sizes part = sizes;
        part.length = cuts[piece + 1] - cuts[piece];
        // Tokens [from, from + part.length) of every sequence.
        const auto cut = [&](const std::vector<double>& numbers, int64_t from) {
          const auto token = static_cast<int64_t>(numbers.size()) / sizes.batch / sizes.length;
          std::vector<double> taken;
          for (int64_t b = 0; b < sizes.batch; ++b) {
            const auto start = numbers.begin() + (b * sizes.length + from) * token;
            taken.insert(taken.end(), start, start + part.length * token);
          }
          return taken;
        };
        Tensors y = x;
        for (const char* name : {"q", "k", "v", "log_decay", "segments", "d_o"}) y[name] = cut(x[name], cuts[piece]);
        y["initial_state"] = state;
        const Tensors found = run(part, y, dtype);
        expect_near({{"o", found.at("o")}}, {{"o", cut(whole.at("o"), cuts[piece])}},
                    dtype == DType::float64 ? 1e-12 : 1e-5);
        if (HasFatalFailure()) return;
        state = found.at("final_state");
      }
      expect_near({{"final_state", state}}, {{"final_state", whole.at("final_state")}},
                  dtype == DType::float64 ? 1e-12 : 1e-5);
    }
  }
}

// An infinity or NaN in a token changes, bit for bit, no output before it, none of another document, and no gradient
// that does not depend on it.
TEST_P(LinearAttentionDecays, NoTokenSeesAnotherDocumentOrTheFuture) {
  const Sizes sizes{1, 140, 2, 1, 3, 3};
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    Tensors clean = draw(sizes);
    for (double& value : clean["log_decay"]) value = -0.1 * random_.next_uniform();
    for (int64_t t = 0; t < sizes.length; ++t) clean["segments"][t] = t < 50 ? 0.0 : t < 110 ? 1.0 : 2.0;
    const Tensors wanted = run(sizes, clean, dtype);
    for (const int64_t token : {0, 49, 50, 63, 64, 109, 139}) {
      for (const std::string poisoned : {"q", "k", "v", "d_o"}) {
        Tensors x = clean;
        const int64_t width = static_cast<int64_t>(x[poisoned].size()) / sizes.length;
        x[poisoned][token * width + 1] = token % 2 == 0 ? kInfinity : std::nan("");
        const Tensors found = run(sizes, x, dtype);
        for (const std::string name : {"o", "d_q", "d_k", "d_v", "d_log_decay"}) {
          const std::vector<double>& numbers = found.at(name);
          const auto count = static_cast<int64_t>(numbers.size()) / sizes.length;
          for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i) {
            const int64_t at = i / count;
            const bool same_document = clean["segments"][at] == clean["segments"][token];
            const bool forward = (name == "o" || name == "d_q") && at >= token;
            const bool backward = (name == "d_k" || name == "d_v") && at <= token;
            if (same_document && (forward || backward || name == "d_log_decay")) continue;
            ASSERT_EQ(numbers[i], wanted.at(name)[i])
                << poisoned << " of token " << token << " changes " << name << " of token " << at;
          }
        }
      }
    }
  }
}

TEST_P(LinearAttentionDecays, PackedDocumentsAreTheDocumentsAlone) {
  const Sizes sizes{1, 150, 2, 2, 5, 4};
  Tensors x = draw(sizes);
  for (double& value : x["log_decay"]) value = -0.2 * random_.next_uniform();
  for (double& value : x["initial_state"]) value = 0.0;
  const std::vector<int64_t> starts{0, 1, 40, 64, 65, 150};
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    for (int64_t t = starts[d]; t < starts[d + 1]; ++t) x["segments"][t] = static_cast<double>(d);
  }
  const Tensors packed = run(sizes, x, DType::float64);
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    Sizes alone = sizes;
    alone.length = starts[d + 1] - starts[d];
    const auto part = [&](const std::vector<double>& numbers) {
      const auto token = static_cast<int64_t>(numbers.size()) / sizes.length;
      return std::vector<double>(numbers.begin() + starts[d] * token, numbers.begin() + starts[d + 1] * token);
    };
    Tensors y = x;
    for (const char* name : {"q", "k", "v", "log_decay", "segments", "d_o"}) y[name] = part(x[name]);
    if (d + 2 < starts.size()) y["d_final_state"].assign(y["d_final_state"].size(), 0.0);
    const Tensors found = run(alone, y, DType::float64);
    for (const std::string name : {"o", "d_q", "d_k", "d_v", "d_log_decay"}) {
      expect_near({{name, part(packed.at(name))}}, {{name, found.at(name)}}, 1e-12);
    }
  }
}

TEST_P(LinearAttentionDecays, BadInputsAreRefused) {
  if (on_gpu()) GTEST_SKIP() << "numbers on a GPU are not looked at";
  const auto refusal = [&](const Sizes& sizes, Tensors x, Decay decay = Decay::data) -> std::string {
    try {
      run(sizes, x, DType::float32, decay);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const Sizes sizes{1, 3, 2, 2, 1, 1};
  Tensors x = draw(sizes);
  x["log_decay"][4] = 0.5;
  EXPECT_EQ(refusal(sizes, x), "[linear_attention] log_decay[4] is 0.5, expected a number <= 0");
  x["log_decay"][4] = std::nan("");
  EXPECT_EQ(refusal(sizes, x), "[linear_attention] log_decay[4] is nan, expected a number <= 0");
  x["log_decay"][4] = -0.5;
  x["segments"] = {1, 2, 1};
  EXPECT_EQ(refusal(sizes, x),
            "[linear_attention] segments falls from 2 to 1 at token 2 of sequence 0, expected numbers that never fall");
  EXPECT_THAT(refusal({1, 3, 3, 2, 1, 1}, draw({1, 3, 3, 2, 1, 1})),
              ::testing::StartsWith("[linear_attention] k has 2 heads, expected a divisor of the 3 heads of q"));
}

HEDDLE_ON_DEVICES(LinearAttentionDecays);

}  // namespace
}  // namespace heddle::test::linear_attention_decays_test
