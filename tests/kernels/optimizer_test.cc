// The optimizer's kernels against loops in double, over several steps, and the same bits for any number of threads.
#include "kernels/optimizer/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "kernels/optimizer/muon.h"

namespace heddle::kernels {
namespace {

constexpr int64_t kSize = 40001;  // several partial sums, the last of fewer elements
constexpr double kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kLearningRate = 1e-2;

struct Settings {
  DType dtype = DType::float32;  // of the master
  DType value = DType::bfloat16;
  bool copy = true;  // whether there is a compute copy
  double clip_norm = 0.0;
  double gradient_scale = 1.0;
  double weight_decay = 0.1;
};

struct State {
  std::vector<double> master, m, v, value;
  double norm = 0.0;
};

std::vector<double> gradient_of_step(int step) {
  Random random(3, RandomStream::test, static_cast<uint32_t>(step));
  std::vector<double> values(kSize);
  for (double& value : values) value = static_cast<float>(random.next_normal());
  return values;
}

State run(int threads, int steps, const Settings& settings) {
  Context context(Device{}, {.threads = threads, .allocator = {}});
  const auto vector = [&](int64_t size, DType dtype) { return Tensor::empty(context, {size}, dtype); };
  const Tensor master = vector(kSize, settings.dtype), gradient = vector(kSize, settings.dtype);
  const Tensor m = vector(kSize, settings.dtype), v = vector(kSize, settings.dtype);
  const Tensor value = vector(kSize, settings.value), scalars = vector(step_scalars, settings.dtype);
  const Tensor partials = vector(gradient_norm_partials(kSize), settings.dtype);
  const Tensor parts = Tensor::empty(context, {1, part_columns}, DType::float64);
  write_values(context, parts, {kSize, 0, 1.0, settings.weight_decay});
  poison(context, value);
  poison(context, partials);
  fill_zero(context, m);
  fill_zero(context, v);
  Random random(4, RandomStream::test);
  fill_normal(context, master, random, 0.0, 1.0);
  for (int step = 1; step <= steps; ++step) {
    write_values(context, gradient, gradient_of_step(step));
    std::vector<double> numbers(step_scalars, 0.0);
    numbers[scalar_learning_rate] = kLearningRate;
    numbers[scalar_correction1] = 1.0 - std::pow(kBeta1, step);
    numbers[scalar_correction2] = 1.0 - std::pow(kBeta2, step);
    numbers[scalar_clip_norm] = settings.clip_norm;
    numbers[scalar_gradient_scale] = settings.gradient_scale;
    write_values(context, scalars, numbers);
    gradient_norm(context, {vector_view(gradient), vector_view(scalars), vector_view(partials)});
    update_parameters(context, {.master = vector_view(master),
                                .gradient = vector_view(gradient),
                                .m = vector_view(m),
                                .v = vector_view(v),
                                .value = settings.copy ? vector_view(value) : VectorView{},
                                .average = {},
                                .scalars = vector_view(scalars),
                                .parts = rows_view(parts),
                                .beta1 = kBeta1,
                                .beta2 = kBeta2,
                                .eps = kEps});
  }
  return {read_values(context, master), read_values(context, m), read_values(context, v), read_values(context, value),
          read_values(context, scalars)[scalar_gradient_norm]};
}

State expected(int steps, const Settings& settings) {
  State state = run(1, 0, settings);
  for (int step = 1; step <= steps; ++step) {
    const auto gradient = gradient_of_step(step);
    double square = 0.0;
    for (double g : gradient) square += g * g;
    state.norm = std::sqrt(square);
    const double norm = state.norm * settings.gradient_scale;
    const double clip = settings.clip_norm > 0.0 ? std::min(1.0, settings.clip_norm / norm) : 1.0;
    for (int64_t i = 0; i < kSize; ++i) {
      const double g = gradient[i] * settings.gradient_scale * clip;
      state.m[i] = kBeta1 * state.m[i] + (1.0 - kBeta1) * g;
      state.v[i] = kBeta2 * state.v[i] + (1.0 - kBeta2) * g * g;
      const double m = state.m[i] / (1.0 - std::pow(kBeta1, step)), v = state.v[i] / (1.0 - std::pow(kBeta2, step));
      state.master[i] -= kLearningRate * (m / (std::sqrt(v) + kEps) + settings.weight_decay * state.master[i]);
    }
  }
  return state;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& wanted, double relative) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_NEAR(found[i], wanted[i], relative * (1e-2 + std::abs(wanted[i]))) << "element " << i;
  }
}

void compare(const Settings& settings) {
  const State found = run(2, 3, settings), wanted = expected(3, settings);
  const double relative = settings.dtype == DType::float64 ? 1e-12 : 2e-5;
  EXPECT_NEAR(found.norm, wanted.norm, 0.1 * relative * wanted.norm);
  expect_near(found.m, wanted.m, relative);
  expect_near(found.v, wanted.v, relative);
  expect_near(found.master, wanted.master, relative);
}

TEST(AdamW, EqualsItsFormula) {
  for (DType dtype : {DType::float32, DType::float64}) {
    compare({.dtype = dtype});
    compare({.dtype = dtype, .copy = false, .weight_decay = 0.0});
    compare({.dtype = dtype, .clip_norm = 1.0, .gradient_scale = 0.25});
    compare({.dtype = dtype, .clip_norm = 1e6});
  }
}

TEST(AdamW, TheComputeCopyIsTheMasterRounded) {
  for (DType value : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const State state = run(2, 2, {.dtype = accumulate_type(value), .value = value});
    Context context;
    const Tensor rounded = Tensor::empty(context, {kSize}, value);
    write_values(context, rounded, state.master);
    EXPECT_EQ(state.value, read_values(context, rounded)) << name(value);
  }
}

TEST(AdamWThreaded, SameBitsForAnyNumberOfThreads) {
  const State one = run(1, 2, {.clip_norm = 1.0});
  for (int threads : {2, 3}) {
    const State several = run(threads, 2, {.clip_norm = 1.0});
    EXPECT_EQ(one.norm, several.norm);
    EXPECT_EQ(one.master, several.master);
    EXPECT_EQ(one.value, several.value);
  }
}

TEST(GradientNorm, OfNothingIsZero) {
  Context context;
  const Tensor scalars = Tensor::empty(context, {step_scalars}, DType::float32);
  poison(context, scalars);
  const Tensor none = Tensor::empty(context, {0}, DType::float32);
  gradient_norm(context, {vector_view(none), vector_view(scalars), vector_view(none)});
  EXPECT_EQ(read_values(context, scalars)[scalar_gradient_norm], 0.0);
}

// Equal numbers are the hardest to add up: all roundings of a binade have one direction.
TEST(GradientNorm, OfManyEqualNumbersIsRightToThreeRoundings) {
  Context context;
  for (const int64_t size : {16384, 3000001}) {
    const Tensor gradient = Tensor::empty(context, {size}, DType::float32);
    write_values(context, gradient, std::vector<double>(static_cast<size_t>(size), 0.1));
    const Tensor scalars = Tensor::zeros(context, {step_scalars}, DType::float32);
    const Tensor partials = Tensor::empty(context, {gradient_norm_partials(size)}, DType::float32);
    gradient_norm(
        context,
        {.gradient = vector_view(gradient), .scalars = vector_view(scalars), .partials = vector_view(partials)});
    const double wanted = 0.1f * std::sqrt(static_cast<double>(size));
    EXPECT_NEAR(read_values(context, scalars)[scalar_gradient_norm], wanted, 3 * 0x1p-24 * wanted);
  }
}

double norm_of(const std::vector<double>& numbers, DType dtype = DType::float32) {
  Context context;
  const auto size = static_cast<int64_t>(numbers.size());
  const Tensor gradient = Tensor::empty(context, {size}, dtype);
  write_values(context, gradient, numbers);
  const Tensor scalars = Tensor::zeros(context, {step_scalars}, dtype);
  const Tensor partials = Tensor::empty(context, {gradient_norm_partials(size)}, dtype);
  gradient_norm(
      context, {.gradient = vector_view(gradient), .scalars = vector_view(scalars), .partials = vector_view(partials)});
  return read_values(context, scalars)[scalar_gradient_norm];
}

// Of numbers of this size, in three partial norms.
void expect_norms_of_size(double size, DType dtype, double relative) {
  std::vector<double> numbers(40000, 0.0);
  numbers[3] = 0.6 * size;
  numbers[39999] = -0.8 * size;
  EXPECT_NEAR(norm_of(numbers, dtype), size, relative * size);
  numbers.assign(numbers.size(), size / 200.0);
  EXPECT_NEAR(norm_of(numbers, dtype), size, relative * size);
}

// Numbers whose squares, or the sums of those, do not fit the dtype.
TEST(GradientNorm, OfNumbersOfAnySize) {
  for (const double size : {3e38, 1e30, 1e19, 1e-19, 1e-23, 1e-30, 1e-36})
    expect_norms_of_size(size, DType::float32, 1e-6);
  for (const double size : {1.7e308, 1e200, 1e154, 1e150, 1.0, 1e-150, 1e-162, 1e-200, 1e-300}) {
    expect_norms_of_size(size, DType::float64, 1e-14);
  }
  EXPECT_EQ(norm_of({0.0, 5e-324, 0.0}, DType::float64), std::numeric_limits<double>::denorm_min());
  EXPECT_EQ(norm_of({0.0, 1e-45, 0.0}), static_cast<double>(std::numeric_limits<float>::denorm_min()));
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(norm_of({1.0, -infinity}), infinity);
  EXPECT_TRUE(std::isnan(norm_of({1.0, std::nan("")})));
  EXPECT_EQ(norm_of({3.4e38, 3.4e38}), infinity);  // the norm itself does not fit
  EXPECT_EQ(norm_of({1.0, -infinity}, DType::float64), infinity);
  EXPECT_TRUE(std::isnan(norm_of({1e300, std::nan("")}, DType::float64)));
  EXPECT_EQ(norm_of({1.7e308, 1.7e308}, DType::float64), infinity);
  EXPECT_EQ(norm_of({0.0, 0.0}, DType::float64), 0.0);
}

// A gradient whose square is infinite, without clipping: the second moment stays finite, and so falls again.
TEST(AdamW, SecondMomentsStayFinite) {
  Context context;
  const auto vector = [&](const std::vector<double>& numbers) {
    const Tensor tensor = Tensor::empty(context, {static_cast<int64_t>(numbers.size())}, DType::float32);
    write_values(context, tensor, numbers);
    return tensor;
  };
  const Tensor master = vector({1.0, 1.0}), gradient = vector({1e30, 0.5}), m = vector({0.0, 0.0});
  const Tensor v = vector({0.0, 0.0}), partials = vector({0.0});
  const Tensor scalars = vector({0.01, 0.1, 0.001, 0.0, 1.0, 0.0, 0.0, 1.0});
  const Tensor parts = Tensor::empty(context, {1, part_columns}, DType::float64);
  write_values(context, parts, {2.0, 0.0, 1.0, 0.0});
  gradient_norm(
      context, {.gradient = vector_view(gradient), .scalars = vector_view(scalars), .partials = vector_view(partials)});
  update_parameters(context, {.master = vector_view(master),
                              .gradient = vector_view(gradient),
                              .m = vector_view(m),
                              .v = vector_view(v),
                              .value = {},
                              .average = {},
                              .scalars = vector_view(scalars),
                              .parts = rows_view(parts)});
  EXPECT_EQ(read_values(context, v)[0], static_cast<double>(std::numeric_limits<float>::max()));
  EXPECT_NEAR(read_values(context, master)[1], 0.99, 1e-6);
  EXPECT_TRUE(std::isfinite(read_values(context, master)[0]));
}

// The direction of a matrix has norm 1, whatever the size of its momentum.
TEST(Muon, DirectionsOfLargeMomenta) {
  Context context;
  const std::vector<double> numbers = {6e29, -8e29, 0.0};
  const Tensor m = Tensor::empty(context, {3}, DType::float32), direction = Tensor::empty(context, {3}, DType::float32);
  write_values(context, m, numbers);
  const Tensor scalars = Tensor::zeros(context, {step_scalars}, DType::float32);
  const Tensor partials = Tensor::empty(context, {1}, DType::float32);
  muon_direction(context, {.gradient = vector_view(m),
                           .m = vector_view(m),
                           .scalars = vector_view(scalars),
                           .partials = vector_view(partials),
                           .direction = vector_view(direction),
                           .nesterov = false});
  const std::vector<double> found = read_values(context, direction);
  EXPECT_NEAR(found[0], 0.6, 1e-6);
  EXPECT_NEAR(found[1], -0.8, 1e-6);
}

// As weights and their averages change places.
TEST(Exchange, OfAllElements) {
  Context context(Device{}, {.threads = 2, .allocator = {}});
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{16384}, kSize}) {
    const Tensor a = Tensor::empty(context, {size}, DType::float32), b = Tensor::empty(context, {size}, DType::float32);
    Random random(5, RandomStream::test);
    fill_normal(context, a, random, 0.0, 1.0);
    fill_normal(context, b, random, 0.0, 1.0);
    const std::vector<double> first = read_values(context, a), second = read_values(context, b);
    exchange(context, {.a = vector_view(a), .b = vector_view(b)});
    EXPECT_EQ(read_values(context, a), second);
    EXPECT_EQ(read_values(context, b), first);
  }
}

}  // namespace
}  // namespace heddle::kernels
