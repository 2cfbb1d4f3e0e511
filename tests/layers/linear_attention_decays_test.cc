// Linear attention with decays for each token, segments, and fewer heads of k than of q, against its recurrence in
// double; and what follows from the recurrence: pieces with the state handed over are the whole, packed documents are
// the documents alone.
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
#include "tests/layers/on_devices.h"

namespace heddle::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Tensors = std::map<std::string, std::vector<double>>;

struct Sizes {
  int64_t batch = 1, length = 1, heads = 1, key_heads = 1, dim = 1, value_dim = 1;
  double scale = 0.5;

  // The shapes of inputs and outputs; a gradient has that of its value.
  Shape shape(std::string name) const {
    if (name.starts_with("d_")) name = name.substr(2);
    if (name == "q") return {batch, length, heads, dim};
    if (name == "k") return {batch, length, key_heads, dim};
    if (name == "v") return {batch, length, key_heads, value_dim};
    if (name == "o") return {batch, length, heads, value_dim};
    if (name == "log_decay") return {batch, length, heads};
    if (name == "segments") return {batch, length};
    return {batch, heads, dim, value_dim};
  }
};

// From inputs and upstream gradients to outputs and gradients.
Tensors recurrence(const Sizes& sizes, const Tensors& x) {
  const int64_t batch = sizes.batch, length = sizes.length, heads = sizes.heads, key_heads = sizes.key_heads;
  const int64_t dim = sizes.dim, value_dim = sizes.value_dim;
  const double scale = sizes.scale;
  Tensors y;
  for (const std::string name : {"o", "final_state", "d_q", "d_k", "d_v", "d_log_decay", "d_initial_state"}) {
    y[name].assign(static_cast<size_t>(numel(sizes.shape(name))), 0.0);
  }
  y["final_state"] = x.at("initial_state");
  y["d_initial_state"] = x.at("d_final_state");
  const int64_t size = dim * value_dim;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      double* state = &y["final_state"][(b * heads + h) * size];
      double* d_state = &y["d_initial_state"][(b * heads + h) * size];
      std::vector<std::vector<double>> before;  // the states before each token
      const auto place = [&](int64_t t) { return (b * length + t) * heads + h; };
      const auto key_place = [&](int64_t t) { return (b * length + t) * key_heads + h / (heads / key_heads); };
      const auto lambda = [&](int64_t t) {
        const std::vector<double>& segments = x.at("segments");
        const bool starts = t > 0 && segments[b * length + t] != segments[b * length + t - 1];
        return starts ? 0.0 : std::exp(x.at("log_decay")[place(t)]);
      };
      for (int64_t t = 0; t < length; ++t) {
        before.emplace_back(state, state + size);
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& s = state[i * value_dim + j];
            s = lambda(t) * s + x.at("k")[key_place(t) * dim + i] * x.at("v")[key_place(t) * value_dim + j];
            y["o"][place(t) * value_dim + j] += scale * x.at("q")[place(t) * dim + i] * s;
            y["d_q"][place(t) * dim + i] += scale * s * x.at("d_o")[place(t) * value_dim + j];
          }
        }
      }
      for (int64_t t = length - 1; t >= 0; --t) {
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& d_s = d_state[i * value_dim + j];
            d_s += scale * x.at("q")[place(t) * dim + i] * x.at("d_o")[place(t) * value_dim + j];
            y["d_k"][key_place(t) * dim + i] += d_s * x.at("v")[key_place(t) * value_dim + j];
            y["d_v"][key_place(t) * value_dim + j] += d_s * x.at("k")[key_place(t) * dim + i];
            y["d_log_decay"][place(t)] += lambda(t) * d_s * before[static_cast<size_t>(t)][i * value_dim + j];
            d_s *= lambda(t);
          }
        }
      }
    }
  }
  return y;
}

class LinearAttentionDecays : public OnDevices {
 protected:
  // The operator; `x` is rounded to `dtype` first and is so afterwards.
  Tensors run(const Sizes& sizes, Tensors& x, DType dtype, Decay decay = Decay::data) {
    const DType wide = accumulate_type(dtype);
    const auto rounded = [&](const std::string& name) {
      const bool is_wide = name == "log_decay" || name == "initial_state" || name == "d_final_state";
      const DType type = name == "segments" ? DType::int32 : is_wide ? wide : dtype;
      const Shape shape = name == "log_decay" && decay != Decay::data ? Shape{sizes.heads} : sizes.shape(name);
      const Tensor tensor = Tensor::empty(context(), shape, type);
      write_values(context(), tensor, x.at(name));
      x[name] = read_values(context(), tensor);
      return tensor;
    };
    Tape tape(context());
    tape.allow_unused_leaves();
    std::map<std::string, Gradient> gradients;
    const auto leaf = [&](const std::string& name) { return tape.leaf(rounded(name), gradients[name], name); };
    const Variable q = leaf("q"), k = leaf("k"), v = leaf("v");
    LinearAttentionInputs inputs{leaf("log_decay"), leaf("initial_state"), rounded("segments")};
    const LinearAttention found =
        linear_attention(tape, q, k, v, inputs, {.decay = decay, .scale = sizes.scale, .return_final_state = true});
    tape.backward({{found.o, rounded("d_o")}, {found.final_state, rounded("d_final_state")}});
    Tensors y{{"o", read_values(context(), found.o.value)},
              {"final_state", read_values(context(), found.final_state.value)}};
    for (const auto& [name, gradient] : gradients) {
      if (gradient.written) y["d_" + name] = read_values(context(), gradient.tensor);
    }
    return y;
  }

  // One document a sequence, without decay.
  Tensors draw(const Sizes& sizes) {
    Tensors x;
    for (const std::string name : {"q", "k", "v", "d_o", "initial_state", "d_final_state"}) {
      for (int64_t i = 0; i < numel(sizes.shape(name)); ++i) x[name].push_back(random_.next_normal());
    }
    x["log_decay"].assign(static_cast<size_t>(numel(sizes.shape("log_decay"))), 0.0);
    x["segments"].assign(static_cast<size_t>(sizes.batch * sizes.length), 0.0);
    return x;
  }
  // Log decays from 0 to -80 and -inf, and the tiny ones that rounding to 1 would lose.
  void draw_decays(Tensors& x) {
    const double scales[] = {0.0, 3e-10, 1e-3, 0.1, 1.0, 80.0, kInfinity};
    for (double& value : x["log_decay"]) {
      const double scale = scales[random_.next_below(std::size(scales))];
      value = scale == 0.0 || scale == kInfinity ? -scale : -scale * random_.next_uniform();
    }
  }
  void draw_segments(const Sizes& sizes, Tensors& x) {
    for (int64_t i = 0; i < sizes.batch * sizes.length; ++i) {
      x["segments"][i] = i % sizes.length == 0 ? 3.0 : x["segments"][i - 1] + (random_.next_below(20) == 0 ? 2.0 : 0.0);
    }
  }

  static void expect_near(const Tensors& found, const Tensors& wanted, double tolerance) {
    for (const auto& [name, numbers] : wanted) {
      ASSERT_EQ(found.at(name).size(), numbers.size()) << name;
      for (size_t i = 0; i < numbers.size(); ++i) {
        ASSERT_NEAR(found.at(name)[i], numbers[i], tolerance * (1.0 + std::abs(numbers[i]))) << name << " " << i;
      }
    }
  }

  Random random_{17, RandomStream::test};
};

TEST_P(LinearAttentionDecays, AreThoseOfTheRecurrence) {
  for (const Sizes& sizes : {Sizes{2, 201, 4, 2, 5, 3}, Sizes{1, 130, 3, 1, 17, 33}, Sizes{1, 64, 2, 2, 1, 1},
                             Sizes{1, 150, 2, 1, 70, 66}}) {
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
}  // namespace heddle::test
