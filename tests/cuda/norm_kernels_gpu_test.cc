// Norm kernels on large tensors: more than 2^31 elements (rows are counted in 32 bits, elements are not), and so many
// rows that other shapes of a kernel are chosen.
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/norm/norm.h"
#include "tests/cuda/gpu_test.h"

namespace heddle::kernels {
namespace {

class NormGpu : public GpuTest {};

// A row gives the same bits wherever it lies: the last of many as the only one.
TEST_F(NormGpu, MoreThanTwoBillionElements) {
  Context context({DeviceType::cuda, 0});
  if (context.properties().memory_bytes < size_t{24} << 30) GTEST_SKIP() << "takes 19 GB of device memory";
  const int64_t rows = 280000, cols = 8192;
  Random random(5, RandomStream::test);
  const DType dtype = DType::bfloat16;
  const Tensor x = Tensor::zeros(context, {rows, cols}, dtype), d_y = Tensor::zeros(context, {rows, cols}, dtype);
  const Tensor y = Tensor::empty(context, {rows, cols}, dtype), d_x = Tensor::empty(context, {rows, cols}, dtype);
  const Tensor mean = Tensor::empty(context, {rows}, DType::float32);
  const Tensor inv_std = Tensor::empty(context, {rows}, DType::float32);
  const auto last = [&](const Tensor& tensor) { return tensor.slice(0, rows - 1, rows); };
  fill_normal(context, last(x), random, 1, 2);
  fill_normal(context, last(d_y), random, 0, 1);
  poison(context, y);
  poison(context, d_x);
  const auto run = [&](const auto& part) {
    NormForwardArgs forward;
    forward.x = rows_view(part(x));
    forward.y = rows_view(part(y));
    forward.mean = vector_view(part(mean));
    forward.inv_std = vector_view(part(inv_std));
    forward.options.center = true;
    norm_forward(context, forward);
    NormBackwardArgs backward;
    backward.x = forward.x;
    backward.mean = forward.mean;
    backward.inv_std = forward.inv_std;
    backward.d_y = rows_view(part(d_y));
    backward.d_x = {rows_view(part(d_x)), GradientMode::overwrite};
    backward.options = forward.options;
    norm_backward(context, backward);
    return std::pair(read_values(context, last(y)), read_values(context, last(d_x)));
  };
  const auto found = run([](const Tensor& tensor) { return tensor; });
  const auto wanted = run(last);
  EXPECT_EQ(found, wanted);
  EXPECT_NE(found.first, std::vector<double>(static_cast<size_t>(cols), 0.0));
  EXPECT_EQ(read_values(context, y.slice(0, rows / 2, rows / 2 + 1)),
            std::vector<double>(static_cast<size_t>(cols), 0.0));
}

// The same rows over and over give the same bits each time, the results of one time worked out alone, and its sums as
// often.
void compare_many_with_few(int64_t rows, int64_t times, int64_t cols, DType dtype, bool center, DType parameters) {
  Context context({DeviceType::cuda, 0});
  Random random(6, RandomStream::test);
  const auto values = [&](int64_t count) {
    const Tensor tensor = Tensor::empty(context, {count, cols}, dtype);
    fill_normal(context, tensor, random, 0, 1);
    return tensor;
  };
  const Tensor x = values(rows), residual = values(rows), d_y = values(rows), before = values(rows);
  const Tensor weight = Tensor::empty(context, {cols}, parameters);
  fill_normal(context, weight, random, 0, 1);
  const auto repeated = [&](const Tensor& once, int64_t count) {
    const Tensor tensor = Tensor::empty(context, {count * rows, cols}, dtype);
    for (int64_t i = 0; i < count; ++i) copy(context, tensor.slice(0, i * rows, (i + 1) * rows), once);
    return tensor;
  };
  NormOptions options;
  options.center = center;
  for (const bool adds : {false, true}) {  // two streams are read, or five
    const auto run = [&](int64_t count) {
      const Tensor all_x = repeated(x, count), all_d_y = repeated(d_y, count), all_residual = repeated(residual, count);
      const Tensor d_x = repeated(before, count), d_residual = repeated(before, count);
      const Tensor d_weight = Tensor::empty(context, {cols}, DType::float32);
      const Tensor d_bias = Tensor::empty(context, {cols}, DType::float32);
      const Tensor inv_std = Tensor::empty(context, {count * rows}, DType::float32);
      const Tensor mean = Tensor::empty(context, {count * rows}, DType::float32);
      const Tensor partials = Tensor::empty(context, {norm_partials(count * rows), 2 * cols}, DType::float32);
      for (const Tensor& tensor : {d_weight, d_bias, inv_std, mean, partials}) poison(context, tensor);
      if (!adds) poison(context, d_x);
      NormForwardArgs forward;
      forward.options = options;
      forward.x = rows_view(all_x);
      if (adds) forward.residual = rows_view(all_residual);
      forward.weight = vector_view(weight);
      forward.inv_std = vector_view(inv_std);
      if (center) forward.mean = vector_view(mean);
      const Tensor y = Tensor::empty(context, {count * rows, cols}, dtype);
      forward.y = rows_view(y);
      norm_forward(context, forward);
      NormBackwardArgs backward;
      backward.options = options;
      backward.x = forward.x;
      backward.residual = forward.residual;
      backward.weight = forward.weight;
      backward.inv_std = forward.inv_std;
      backward.mean = forward.mean;
      backward.d_y = rows_view(all_d_y);
      backward.d_x = {rows_view(d_x), adds ? GradientMode::accumulate : GradientMode::overwrite};
      if (adds) backward.d_residual = {rows_view(d_residual), GradientMode::accumulate};
      backward.d_weight = {vector_view(d_weight), GradientMode::overwrite};
      if (center) backward.d_bias = {vector_view(d_bias), GradientMode::overwrite};
      backward.partials = rows_view(partials);
      norm_backward(context, backward);
      std::vector<std::vector<double>> results;
      for (int64_t i : {int64_t{0}, count / 2, count - 1}) {
        results.push_back(read_values(context, d_x.slice(0, i * rows, (i + 1) * rows)));
        results.push_back(read_values(context, d_residual.slice(0, i * rows, (i + 1) * rows)));
      }
      results.push_back(read_values(context, d_weight));
      if (center) results.push_back(read_values(context, d_bias));
      return results;
    };
    const auto many = run(times);
    auto few = run(1);
    for (size_t i = 0; i < many.size(); ++i) {
      const bool is_sum = i >= 6;  // d_weight, d_bias
      if (is_sum) {
        for (double& sum : few[i]) sum *= static_cast<double>(times);
      }
      EXPECT_LE(largest_error(many[i], few[i]), is_sum ? 1e-5 : tolerance(dtype)) << i << " " << adds;
    }
    EXPECT_EQ(many[0], many[2]) << adds;
    EXPECT_EQ(many[0], many[4]) << adds;
  }
}
TEST_F(NormGpu, ManyRowsAreAsFewOfThem) {
  compare_many_with_few(600, 41, 2048, DType::bfloat16, false, DType::bfloat16);
}
TEST_F(NormGpu, ManyWideRowsAreAsFewOfThem) {
  compare_many_with_few(300, 9, 4088, DType::float16, true, DType::float16);
}
// So few that each block takes its own range of them.
TEST_F(NormGpu, StretchesOfWideRowsAreAsFewOfThem) {
  compare_many_with_few(61, 9, 4088, DType::float16, true, DType::float16);
}
// The kernel for any length, whose blocks then take several rows each.
TEST_F(NormGpu, ManyRowsOfAnyLengthAreAsFewOfThem) {
  compare_many_with_few(100, 95, 3, DType::float32, true, DType::float32);
  compare_many_with_few(100, 13, 515, DType::bfloat16, false, DType::bfloat16);
}
// Kernels that keep the weight in registers, and in shared memory.
TEST_F(NormGpu, ManyRowsWithFullPrecisionWeightsAreAsFewOfThem) {
  compare_many_with_few(600, 41, 2048, DType::bfloat16, true, DType::float32);
  compare_many_with_few(300, 9, 4088, DType::float16, false, DType::float32);
  compare_many_with_few(200, 9, 8192, DType::bfloat16, true, DType::float32);
}

// Rows whose gradients leave the range of float32 on the way are marked in inv_std, which is the caller's, and done at
// the end.
TEST_F(NormGpu, BackwardLeavesTheStatisticsAsTheyWere) {
  Context context({DeviceType::cuda, 0});
  constexpr int64_t kRows = 40, kCols = 512;
  Random random(8, RandomStream::test);
  const Tensor x = Tensor::empty(context, {kRows, kCols}, DType::float32);
  const Tensor d_y = Tensor::empty(context, {kRows, kCols}, DType::float32);
  const Tensor y = Tensor::empty(context, {kRows, kCols}, DType::float32);
  const Tensor d_x = Tensor::empty(context, {kRows, kCols}, DType::float32);
  const Tensor inv_std = Tensor::empty(context, {kRows}, DType::float32);
  fill_normal(context, x, random, 0, 1);
  fill_normal(context, d_y, random, 0, 1);
  fill_normal(context, d_y.slice(0, 3, 9), random, 0, 1e37);
  fill_normal(context, d_y.slice(0, 20, 30), random, 0, 1e-37);
  NormForwardArgs forward;
  forward.x = rows_view(x);
  forward.y = rows_view(y);
  forward.inv_std = vector_view(inv_std);
  norm_forward(context, forward);
  const std::vector<double> before = read_values(context, inv_std);
  NormBackwardArgs backward;
  backward.x = forward.x;
  backward.inv_std = forward.inv_std;
  backward.d_y = rows_view(d_y);
  backward.d_x = {rows_view(d_x), GradientMode::overwrite};
  norm_backward(context, backward);
  EXPECT_EQ(read_values(context, inv_std), before);
}

}  // namespace
}  // namespace heddle::kernels
