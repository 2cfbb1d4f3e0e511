// Linear attention of a few tokens from a state, as generation has it, for which a GPU has a kernel of its own: against
// the recurrence, and in every form in which its inputs and outputs may lie in memory.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "tests/layers/linear_attention_numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test {
namespace {

using Sizes = LinearAttentionSizes;

constexpr DType kStepTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// What a call is given beside q, k and v, and where the numbers lie.
struct StepForm {
  Decay decay = Decay::data;
  bool segments = true, initial_state = true, final_state = true;
  bool in_place = false;                         // the final state overwrites the initial one
  bool sliced = false;                           // q, k and v are parts of one tensor
  int64_t initial_offset = 0, final_offset = 0;  // of the states, in elements, from an aligned address
};

class LinearAttentionSteps : public LinearAttentionNumbers {
 protected:
  // o and, where it is wanted, final_state, of memory that was full of NaN; `x` is rounded to `dtype` first and is so
  // afterwards. With one decay a head that of the first token counts.
  Tensors attend(const Sizes& sizes, Tensors& x, DType dtype, const StepForm& form = {}) {
    const DType wide = accumulate_type(dtype);
    std::map<std::string, Tensor> tensors;
    const auto place = [&](const std::string& name, const Tensor& tensor) {
      write_values(context(), tensor, x.at(name));
      x[name] = read_values(context(), tensor);
      tensors[name] = tensor;
    };
    if (form.sliced) {
      const std::vector<int64_t> widths{sizes.heads * sizes.dim, sizes.key_heads * sizes.dim,
                                        sizes.key_heads * sizes.value_dim};
      const std::vector<Tensor> parts =
          memory({sizes.batch, sizes.length, widths[0] + widths[1] + widths[2]}, dtype).split(2, widths);
      const char* const names[] = {"q", "k", "v"};
      for (size_t i = 0; i < 3; ++i) place(names[i], parts[i].reshape(sizes.shape(names[i])));
    } else {
      for (const char* name : {"q", "k", "v"}) place(name, memory(sizes.shape(name), dtype));
    }
    kernels::LinearAttentionForwardArgs args;
    args.q = kernels::heads_view(tensors["q"]);
    args.k = kernels::heads_view(tensors["k"]);
    args.v = kernels::heads_view(tensors["v"]);
    args.scale = sizes.scale;
    tensors["o"] = memory(sizes.shape("o"), dtype);
    args.o = kernels::heads_view(tensors["o"]);
    if (form.decay == Decay::data) {
      place("log_decay", memory(sizes.shape("log_decay"), wide));
      args.decay_per_token = true;
    } else if (form.decay != Decay::none) {
      tensors["log_decay"] = memory({sizes.heads}, wide);
      const std::vector<double>& decays = x["log_decay"];
      write_values(context(), tensors["log_decay"], {decays.begin(), decays.begin() + sizes.heads});
    }
    args.log_decay = kernels::vector_view(tensors["log_decay"]);
    if (form.segments) place("segments", Tensor::zeros(context(), sizes.shape("segments"), DType::int32));
    args.segments = kernels::vector_view(tensors["segments"]);
    const Shape states = sizes.shape("initial_state");
    if (form.initial_state) place("initial_state", memory(states, wide, form.initial_offset));
    args.initial_state = kernels::vector_view(tensors["initial_state"]);
    if (form.final_state) {
      tensors["final_state"] = form.in_place ? tensors["initial_state"] : memory(states, wide, form.final_offset);
    }
    args.final_state = kernels::vector_view(tensors["final_state"]);
    const Tensor workspace =
        Tensor::empty(context(), {kernels::LinearAttentionWorkspace(args).bytes / 4 + 1}, DType::int32);
    args.workspace = kernels::vector_view(workspace);
    kernels::linear_attention_forward(context(), args);
    Tensors y{{"o", read_values(context(), tensors["o"])}};
    if (form.final_state) y["final_state"] = read_values(context(), tensors["final_state"]);
    return y;
  }

  Sizes scaled(Sizes sizes) const {
    sizes.scale = 1.0 / std::sqrt(static_cast<double>(sizes.dim));
    return sizes;
  }

 private:
  // A contiguous tensor full of NaN, `offset` elements from an aligned address.
  Tensor memory(const Shape& shape, DType dtype, int64_t offset = 0) {
    const Tensor all = Tensor::empty(context(), {offset + numel(shape)}, dtype);
    poison(context(), all);
    return all.slice(0, offset, offset + numel(shape)).reshape(shape);
  }
};

// Each of the kernels for so many key features, whole tiles of value features and parts of one.
const Sizes kStepSizes[] = {{1, 1, 1, 1, 1, 1},   {2, 1, 4, 2, 5, 3},     {1, 2, 2, 1, 16, 32},  {2, 15, 2, 2, 17, 33},
                            {2, 1, 3, 3, 64, 64}, {1, 3, 2, 1, 128, 128}, {1, 2, 1, 1, 129, 36}, {1, 2, 2, 1, 256, 40},
                            {1, 4, 1, 1, 200, 1}, {1, 15, 2, 1, 72, 36}};

TEST_P(LinearAttentionSteps, AreThoseOfTheRecurrence) {
  for (const Sizes& unscaled : kStepSizes) {
    const Sizes sizes = scaled(unscaled);
    for (const bool segments : {false, true}) {
      for (const DType dtype : kStepTypes) {
        Tensors x = draw(sizes);
        draw_decays(x);
        if (segments) draw_segments(sizes, x);
        const Tensors found = attend(sizes, x, dtype, {.segments = segments});
        Tensors wanted = recurrence(sizes, x);
        const double tolerance = dtype == DType::float64 ? 1e-12 : 1e-5;
        expect_near(found, {{"final_state", wanted["final_state"]}}, tolerance);
        if (HasFatalFailure()) return;
        const double rounding = dtype == DType::bfloat16 || dtype == DType::float16 ? roundoff(dtype) : 0.0;
        for (size_t i = 0; i < wanted["o"].size(); ++i) {
          const double exact = wanted["o"][i];
          ASSERT_NEAR(found.at("o")[i], exact, tolerance * (1.0 + std::abs(exact)) + rounding * std::abs(exact))
              << name(dtype) << " o " << i << " of " << to_string(sizes.shape("q")) << " x " << sizes.value_dim;
        }
      }
    }
  }
}

TEST_P(LinearAttentionSteps, EveryKindOfDecayAndWhatIsLeftOut) {
  for (const Sizes& sizes : {Sizes{2, 1, 4, 2, 20, 12}, Sizes{1, 6, 2, 1, 128, 64}, Sizes{1, 3, 2, 2, 7, 5}}) {
    Tensors x = draw(sizes);
    for (const double slope : {0.0, -1e-9, -0.3, -80.0, -kInfinity}) {
      for (size_t i = 0; i < x["log_decay"].size(); ++i) {
        x["log_decay"][i] = i % static_cast<size_t>(sizes.heads) == 0 ? -0.1 : slope;
      }
      Tensors wanted = attend(sizes, x, DType::float64);
      for (const Decay decay : {Decay::constant, Decay::learned}) {
        expect_near(attend(sizes, x, DType::float64, {.decay = decay}), wanted, 1e-12);
      }
      Tensors from_zeros = x;
      from_zeros["initial_state"].assign(x["initial_state"].size(), 0.0);
      expect_near(attend(sizes, x, DType::float64, {.initial_state = false}), attend(sizes, from_zeros, DType::float64),
                  1e-12);
      const Tensors without_state = attend(sizes, x, DType::float64, {.segments = false, .final_state = false});
      EXPECT_EQ(without_state.at("o"), wanted["o"]);
    }
    x["log_decay"].assign(x["log_decay"].size(), 0.0);
    expect_near(attend(sizes, x, DType::float64, {.decay = Decay::none}), attend(sizes, x, DType::float64), 1e-12);
  }
}

// Tokens one by one, with the state handed over, are what they are together: on a GPU the same bits.
TEST_P(LinearAttentionSteps, OneByOneAreAllTogether) {
  for (const Sizes& sizes : {Sizes{1, 15, 4, 2, 20, 12}, Sizes{1, 5, 2, 1, 128, 128}, Sizes{1, 7, 1, 1, 200, 33}}) {
    for (const DType dtype : kStepTypes) {
      Tensors x = draw(sizes);
      draw_decays(x);
      const Tensors wanted = attend(sizes, x, dtype);
      Sizes one = sizes;
      one.length = 1;
      Tensors found{{"o", {}}, {"final_state", x["initial_state"]}};
      for (int64_t t = 0; t < sizes.length; ++t) {
        Tensors y = x;
        for (const char* name : {"q", "k", "v", "log_decay", "segments"}) {
          const int64_t width = static_cast<int64_t>(x[name].size()) / sizes.length;
          y[name] = {x[name].begin() + t * width, x[name].begin() + (t + 1) * width};
        }
        y["initial_state"] = found["final_state"];
        const Tensors step = attend(one, y, dtype);
        found["o"].insert(found["o"].end(), step.at("o").begin(), step.at("o").end());
        found["final_state"] = step.at("final_state");
      }
      if (on_gpu()) {
        EXPECT_EQ(found, wanted) << name(dtype) << ", D = " << sizes.dim;
      } else {
        const bool is_rounded = dtype == DType::bfloat16 || dtype == DType::float16;
        expect_near(found, wanted, dtype == DType::float64 ? 1e-12 : is_rounded ? 2 * roundoff(dtype) : 2e-5);
      }
      if (HasFatalFailure()) return;
    }
  }
}

// Addresses, strides, and whether the state is overwritten change no bit, nor does a second run.
TEST_P(LinearAttentionSteps, AreTheSameBitsWhereverTheNumbersLie) {
  for (const Sizes& sizes : {Sizes{2, 1, 4, 2, 20, 12}, Sizes{1, 2, 2, 1, 128, 128}, Sizes{1, 1, 2, 2, 64, 64},
                             Sizes{1, 3, 1, 1, 256, 36}, Sizes{1, 1, 2, 1, 9, 5}}) {
    for (const DType dtype : kStepTypes) {
      Tensors x = draw(sizes);
      draw_decays(x);
      const Tensors wanted = attend(sizes, x, dtype);
      const StepForm forms[] = {{},
                                {.in_place = true},
                                {.sliced = true},
                                {.initial_offset = 1},
                                {.final_offset = 3},
                                {.in_place = true, .sliced = true, .initial_offset = 1},
                                {.segments = false}};
      for (const StepForm& form : forms) {
        EXPECT_EQ(attend(sizes, x, dtype, form), wanted) << name(dtype) << ", form " << &form - forms;
      }
    }
  }
}

// A state that is forgotten, by a decay or by a new document, is so whatever it holds.
TEST_P(LinearAttentionSteps, AForgottenStateIsForgottenWhole) {
  for (const DType dtype : kStepTypes) {
    const Sizes sizes{1, 2, 2, 1, 20, 36};
    Tensors x = draw(sizes);
    x["log_decay"] = {-kInfinity, -kInfinity, -0.5, -0.5};
    const Tensors wanted = attend(sizes, x, dtype);
    Tensors y = x;
    y["initial_state"].assign(x["initial_state"].size(), std::nan(""));
    EXPECT_EQ(attend(sizes, y, dtype), wanted) << name(dtype);
    y["log_decay"].assign(4, -0.5);
    y["segments"] = {4.0, 5.0};
    const Tensors found = attend(sizes, y, dtype);
    const auto tokens = static_cast<int64_t>(found.at("o").size()) / 2;
    for (int64_t i = 0; i < 2 * tokens; ++i) {
      EXPECT_EQ(std::isfinite(found.at("o")[i]), i >= tokens) << name(dtype) << " " << i;
    }
    Tensors second = y;
    second["segments"] = {5.0, 5.0};
    second["log_decay"] = {-0.5, -0.5, -kInfinity, -kInfinity};
    EXPECT_EQ(attend(sizes, second, dtype).at("final_state"), found.at("final_state")) << name(dtype);
  }
}

// An infinity or NaN changes no bit of an earlier token, of another value feature, or of another head or sequence.
TEST_P(LinearAttentionSteps, NothingIsSeenThatIsNotDependedOn) {
  for (const Sizes& sizes : {Sizes{2, 3, 2, 2, 5, 7}, Sizes{2, 1, 2, 2, 100, 36}, Sizes{2, 2, 2, 2, 128, 64}}) {
    for (const DType dtype : kStepTypes) {
      Tensors x = draw(sizes);
      const Tensors wanted = attend(sizes, x, dtype);
      const int64_t token = sizes.length - 1, head = 1, column = 3, values = sizes.value_dim;
      for (const std::string poisoned : {"q", "k", "v", "initial_state"}) {
        for (const double bad : {kInfinity, std::nan("")}) {
          Tensors y = x;
          const int64_t width = poisoned == "v" ? values : sizes.dim;
          const int64_t at = poisoned == "initial_state" ? (head * sizes.dim + 2) * values + column
                                                         : (token * sizes.heads + head) * width + column;
          y[poisoned][at] = bad;
          const Tensors found = attend(sizes, y, dtype);
          const bool all_columns = poisoned == "q" || poisoned == "k";
          for (int64_t i = 0; i < static_cast<int64_t>(wanted.at("o").size()); ++i) {
            const int64_t row = i / values, t = row / sizes.heads;  // of all sequences, of which the first is changed
            const bool is_its = t < sizes.length && row % sizes.heads == head && (all_columns || i % values == column);
            const bool sees = is_its && (poisoned == "initial_state" || t == token);
            if (sees) {
              ASSERT_FALSE(std::isfinite(found.at("o")[i])) << poisoned << " o " << i;
            } else {
              ASSERT_EQ(found.at("o")[i], wanted.at("o")[i]) << name(dtype) << " " << poisoned << " o " << i;
            }
          }
          for (int64_t i = 0; i < static_cast<int64_t>(wanted.at("final_state").size()); ++i) {
            const int64_t d = i / values;
            const bool is_its = d / sizes.dim == head && (poisoned == "k" || i % values == column);
            const bool is_row = poisoned == "v" || d % sizes.dim == (poisoned == "k" ? column : 2);
            const bool sees = poisoned != "q" && is_its && is_row;
            if (sees) continue;
            ASSERT_EQ(found.at("final_state")[i], wanted.at("final_state")[i]) << poisoned << " state " << i;
          }
        }
      }
    }
  }
}

// States of more than 2^31 numbers.
TEST_P(LinearAttentionSteps, StatesBeyondTheRangeOfAnInt) {
  if (!on_gpu() || context().properties().memory_bytes < (size_t{16} << 30)) GTEST_SKIP() << "no GPU with the memory";
  const int64_t heads = 32770, dim = 256;
  const auto rows = [&](int64_t count, double value) {
    const Tensor tensor = Tensor::empty(context(), {1, 1, count, dim}, DType::bfloat16);
    write_values(context(), tensor, std::vector<double>(static_cast<size_t>(count * dim), value));
    return tensor;
  };
  const Tensor q = rows(heads, 1.0), k = rows(1, 2.0), v = rows(1, 3.0), o = rows(heads, 0.0);
  const Tensor state = Tensor::zeros(context(), {1, heads, dim, dim}, DType::float32);
  const Tensor last = state.slice(1, heads - 1, heads);
  const std::vector<double> ones(static_cast<size_t>(dim * dim), 1.0);
  write_values(context(), last, ones);
  kernels::LinearAttentionForwardArgs args;
  args.q = kernels::heads_view(q);
  args.k = kernels::heads_view(k);
  args.v = kernels::heads_view(v);
  args.o = kernels::heads_view(o);
  args.initial_state = args.final_state = kernels::vector_view(state);
  kernels::linear_attention_forward(context(), args);
  EXPECT_EQ(read_values(context(), last), std::vector<double>(ones.size(), 7.0));
  EXPECT_EQ(read_values(context(), state.slice(1, 0, 1)), std::vector<double>(ones.size(), 6.0));
  const std::vector<double> found = read_values(context(), o);
  EXPECT_EQ(found.front(), 6.0 * 256);
  EXPECT_EQ(found.back(), 7.0 * 256);
}

HEDDLE_ON_DEVICES(LinearAttentionSteps);

}  // namespace
}  // namespace heddle::test
