// Linear attention against its recurrence, token by token, in double; and that no token sees what it does not depend
// on.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/linear_attention.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::linear_attention_recurrence_test {
namespace {

// The inputs, or the outputs and gradients, as lists of numbers.
struct Numbers {
  std::vector<double> q, k, v, d_o, initial_state, d_final_state;
};
struct Results {
  std::vector<double> o, final_state, d_q, d_k, d_v, d_initial_state;
  auto parts() const { return std::array{&o, &final_state, &d_q, &d_k, &d_v, &d_initial_state}; }
};

struct Sizes {
  int64_t length, dim, value_dim;
  std::vector<double> log_decay;  // one for each head
  double scale = 0.5;
  int64_t heads() const { return static_cast<int64_t>(log_decay.size()); }
};

// S_t = lambda S_{t-1} + k_t v_t^T, o_t = scale q_t^T S_t, and backward in time
// dS_t = lambda dS_{t+1} + scale q_t do_t^T, dq_t = scale S_t do_t, dk_t = dS_t v_t, dv_t = dS_t^T k_t. One batch.
Results recurrence(const Sizes& sizes, const Numbers& x) {
  const auto& [length, dim, value_dim, log_decay, scale] = sizes;
  const int64_t heads = sizes.heads(), size = dim * value_dim;
  Results y{std::vector<double>(x.v.size()), x.initial_state,
            std::vector<double>(x.q.size()), std::vector<double>(x.k.size()),
            std::vector<double>(x.v.size()), x.d_final_state};
  for (int64_t h = 0; h < heads; ++h) {
    const double lambda = std::exp(log_decay[h]);
    double *state = &y.final_state[h * size], *d_state = &y.d_initial_state[h * size];
    for (int64_t t = 0; t < length; ++t) {
      const int64_t key = (t * heads + h) * dim, value = (t * heads + h) * value_dim;
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < value_dim; ++j) {
          double& s = state[i * value_dim + j];
          s = lambda * s + x.k[key + i] * x.v[value + j];
          y.o[value + j] += scale * x.q[key + i] * s;
          y.d_q[key + i] += scale * s * x.d_o[value + j];
        }
      }
    }
    for (int64_t t = length - 1; t >= 0; --t) {
      const int64_t key = (t * heads + h) * dim, value = (t * heads + h) * value_dim;
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < value_dim; ++j) {
          double& d_s = d_state[i * value_dim + j];
          d_s += scale * x.q[key + i] * x.d_o[value + j];
          y.d_k[key + i] += d_s * x.v[value + j];
          y.d_v[value + j] += d_s * x.k[key + i];
          d_s *= lambda;
        }
      }
    }
  }
  return y;
}

class LinearAttentionRecurrence : public OnDevices {
 protected:
  Tensor tensor(const Shape& shape, const std::vector<double>& values, DType dtype) {
    Tensor result = Tensor::empty(context(), shape, dtype);
    write_values(context(), result, values);
    return result;
  }

  // The operator; `x` is rounded to `dtype` first and is so afterwards.
  Results run(const Sizes& sizes, Numbers& x, DType dtype) {
    const auto& [length, dim, value_dim, log_decay, scale] = sizes;
    const int64_t heads = sizes.heads();
    const DType wide = accumulate_type(dtype);
    const auto round = [&](std::vector<double>& values, const Shape& shape, DType type) {
      const Tensor stored = tensor(shape, values, type);
      values = read_values(context(), stored);
      return stored;
    };
    const Shape keys{1, length, heads, dim}, values{1, length, heads, value_dim}, states{1, heads, dim, value_dim};
    const std::array inputs = {round(x.q, keys, dtype), round(x.k, keys, dtype), round(x.v, values, dtype),
                               round(x.initial_state, states, wide)};
    Tape tape(context());
    std::array<Gradient, 4> gradients;
    std::array<Variable, 4> leaves;
    for (size_t i = 0; i < 4; ++i) leaves[i] = tape.leaf(inputs[i], gradients[i], "input");
    const Variable decay = tape.constant(tensor({heads}, log_decay, wide));
    const LinearAttention found = linear_attention(tape, leaves[0], leaves[1], leaves[2], {decay, leaves[3]},
                                                   {.decay = Decay::constant, .scale = scale});
    tape.backward({{found.o, round(x.d_o, values, dtype)}, {found.final_state, round(x.d_final_state, states, wide)}});
    const auto read = [&](const Tensor& result) { return read_values(context(), result); };
    return {read(found.o.value),       read(found.final_state.value), read(gradients[0].tensor),
            read(gradients[1].tensor), read(gradients[2].tensor),     read(gradients[3].tensor)};
  }

  Numbers draw(const Sizes& sizes) {
    const auto numbers = [&](int64_t count) {
      std::vector<double> values(static_cast<size_t>(count));
      for (double& value : values) value = random_.next_normal();
      return values;
    };
    const int64_t keys = sizes.length * sizes.heads() * sizes.dim, states = sizes.heads() * sizes.dim * sizes.value_dim;
    const int64_t values = sizes.length * sizes.heads() * sizes.value_dim;
    return {numbers(keys), numbers(keys), numbers(values), numbers(values), numbers(states), numbers(states)};
  }

  Random random_{9, RandomStream::test};
};

// Several chunks, so that the state is handed over in both directions of time, with decays from 1 to 0.
TEST_P(LinearAttentionRecurrence, IsRightFarFromTheStart) {
  const Sizes sizes{301, 5, 7, {0.0, -1e-3, -0.02, -3.0, -kInfinity}};
  for (const DType dtype : {DType::float64, DType::float32}) {
    Numbers x = draw(sizes);
    const Results found = run(sizes, x, dtype), wanted = recurrence(sizes, x);
    for (size_t part = 0; part < wanted.parts().size(); ++part) {
      const std::vector<double>& numbers = *wanted.parts()[part];
      for (size_t i = 0; i < numbers.size(); ++i) {
        const double tolerance = (dtype == DType::float64 ? 1e-12 : 2e-5) * (1.0 + std::abs(numbers[i]));
        ASSERT_NEAR((*found.parts()[part])[i], numbers[i], tolerance) << name(dtype) << " result " << part << ", " << i;
      }
    }
  }
}

// An infinity or NaN in one token changes, bit for bit, only what depends on that token: outputs and d_q of that token
// and later ones, d_k and d_v of that token and earlier ones. Where lambda is 0 it is that token alone.
TEST_P(LinearAttentionRecurrence, NoTokenSeesWhatItDoesNotDependOn) {
  const Sizes sizes{131, 5, 7, {-0.1, -kInfinity}};
  const int64_t heads = sizes.heads();
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    Numbers clean = draw(sizes);
    const Results wanted = run(sizes, clean, dtype);
    for (const int64_t token : {0, 1, 31, 32, 63, 64, 100, 130}) {
      for (const double bad : {kInfinity, -kInfinity, std::nan("")}) {
        for (const char poisoned : {'q', 'k', 'v', 'o'}) {
          Numbers x = clean;
          std::vector<double>& numbers = poisoned == 'q' ? x.q : poisoned == 'k' ? x.k : poisoned == 'v' ? x.v : x.d_o;
          const int64_t width = poisoned == 'q' || poisoned == 'k' ? sizes.dim : sizes.value_dim;
          for (int64_t h = 0; h < heads; ++h) numbers[(token * heads + h) * width + 2] = bad;
          const Results found = run(sizes, x, dtype);
          const bool of_keys = poisoned == 'k' || poisoned == 'v';  // reaches later tokens, the others earlier ones
          const auto expect = [&](const std::vector<double>& numbers, const std::vector<double>& clean_numbers,
                                  int64_t width, auto may_change, const char* what) {
            for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i) {
              const int64_t at = i / width / heads, head = i / width % heads;
              if (may_change(at) && (at == token || std::isfinite(sizes.log_decay[head]))) continue;
              ASSERT_EQ(numbers[i], clean_numbers[i])
                  << name(dtype) << ": " << bad << " in " << poisoned << " of token " << token << " changes " << what
                  << " of token " << at << ", head " << head;
            }
          };
          const auto later = [&](int64_t at) { return of_keys ? at >= token : at == token; };
          const auto earlier = [&](int64_t at) { return of_keys ? at == token : at <= token; };
          const auto never = [](int64_t) { return false; };
          expect(
              found.o, wanted.o, sizes.value_dim, [&](int64_t at) { return poisoned != 'o' && later(at); }, "o");
          expect(
              found.d_q, wanted.d_q, sizes.dim, [&](int64_t at) { return poisoned != 'q' && later(at); }, "d_q");
          expect(
              found.d_k, wanted.d_k, sizes.dim, [&](int64_t at) { return poisoned != 'k' && earlier(at); }, "d_k");
          expect(
              found.d_v, wanted.d_v, sizes.value_dim, [&](int64_t at) { return poisoned != 'v' && earlier(at); },
              "d_v");
          if (!of_keys) expect(found.final_state, wanted.final_state, sizes.dim * sizes.value_dim, never, "the state");
          if (of_keys) {
            expect(found.d_initial_state, wanted.d_initial_state, sizes.dim * sizes.value_dim, never,
                   "the initial state's gradient");
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(LinearAttentionRecurrence, AnInfiniteValueIsInfiniteFromThereOn) {
  const Sizes sizes{2, 1, 1, {0.0}, 1.0};
  Numbers x{{1.0, 1.0}, {1.0, 1.0}, {1.0, kInfinity}, {1.0, 1.0}, {0.0}, {0.0}};
  EXPECT_EQ(run(sizes, x, DType::float32).o, (std::vector<double>{1.0, kInfinity}));
}

// Where lambda is 0 nothing is left of an initial state, whatever it holds, and it has no gradient.
TEST_P(LinearAttentionRecurrence, AForgottenStateIsForgottenWhole) {
  const Sizes sizes{3, 2, 3, {-kInfinity}};
  Numbers x = draw(sizes);
  const Results wanted = run(sizes, x, DType::float32);
  for (double& value : x.initial_state) value = std::nan("");
  const Results found = run(sizes, x, DType::float32);
  EXPECT_EQ(found.o, wanted.o);
  EXPECT_EQ(found.final_state, wanted.final_state);
  EXPECT_EQ(found.d_q, wanted.d_q);
  EXPECT_EQ(found.d_initial_state, std::vector<double>(6, 0.0));
}

// An infinite upstream gradient reaches d_v of its own token and of all before it.
TEST_P(LinearAttentionRecurrence, AnInfiniteGradientIsNotFiniteUpToThere) {
  const Sizes sizes{131, 5, 7, {-0.01}};
  for (const DType dtype : {DType::float64, DType::float32}) {
    for (const int64_t token : {0, 31, 32, 63, 64, 130}) {
      Numbers x = draw(sizes);
      x.d_o[static_cast<size_t>(token * sizes.value_dim + 2)] = kInfinity;
      const Results found = run(sizes, x, dtype);
      for (int64_t i = 0; i < sizes.length; ++i) {
        const double value = found.d_v[static_cast<size_t>(i * sizes.value_dim + 2)];
        EXPECT_EQ(std::isfinite(value), i > token) << name(dtype) << " token " << i << " of an infinity at " << token;
      }
    }
  }
}

// lambda times infinity is infinite for every lambda above 0, however often: a state that overflowed is seen at the
// end.
TEST_P(LinearAttentionRecurrence, AnInfiniteStateIsNotFiniteAtTheEnd) {
  const Sizes sizes{131, 2, 3, {-0.1, -20.0}};
  for (const DType dtype : {DType::float64, DType::float32}) {
    Numbers x = draw(sizes);
    for (double& value : x.initial_state) value = kInfinity;
    for (const double value : run(sizes, x, dtype).final_state) EXPECT_FALSE(std::isfinite(value)) << name(dtype);
  }
}

// In 16 bits the state and the scores keep more digits than the results: the error is hardly more than that of rounding
// the exact result.
TEST_P(LinearAttentionRecurrence, TheErrorIsThatOfOneRounding) {
  for (const auto& [dim, value_dim] : {std::pair<int64_t, int64_t>{64, 64}, {33, 130}, {200, 24}}) {
    const Sizes sizes{300, dim, value_dim, {0.0, -0.02}, 1.0 / std::sqrt(static_cast<double>(dim))};
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      Numbers x = draw(sizes);
      const Results found = run(sizes, x, dtype), wanted = recurrence(sizes, x);
      for (const size_t part : {0, 2, 3, 4}) {  // o, d_q, d_k, d_v
        const std::vector<double>& exact = *wanted.parts()[part];
        const std::vector<double> rounded =
            read_values(context(), tensor({static_cast<int64_t>(exact.size())}, exact, dtype));
        double error = 0.0, error_of_rounding = 0.0;
        for (size_t i = 0; i < exact.size(); ++i) {
          error += std::pow((*found.parts()[part])[i] - exact[i], 2);
          error_of_rounding += std::pow(rounded[i] - exact[i], 2);
        }
        EXPECT_LE(std::sqrt(error), 1.25 * std::sqrt(error_of_rounding))
            << name(dtype) << " " << dim << " x " << value_dim << " result " << part;
      }
    }
  }
}

// A state beyond 65504, and scores beyond it, in float16: the results are within its range.
TEST_P(LinearAttentionRecurrence, AStateBeyondTheRangeOfFloat16DoesNoHarm) {
  const Sizes sizes{1200, 4, 4, {0.0}, 1e-3};
  Numbers x = draw(sizes);
  for (std::vector<double>* numbers : {&x.k, &x.v, &x.q}) {
    for (double& value : *numbers) value = 10.0 + value;
  }
  const Results found = run(sizes, x, DType::float16), wanted = recurrence(sizes, x);
  ASSERT_GT(wanted.final_state[0], 1e5);
  for (size_t i = 0; i < wanted.o.size(); ++i) ASSERT_NEAR(found.o[i], wanted.o[i], 1e-3 * std::abs(wanted.o[i]));
}

HEDDLE_ON_DEVICES(LinearAttentionRecurrence);

}  // namespace
}  // namespace heddle::test::linear_attention_recurrence_test
