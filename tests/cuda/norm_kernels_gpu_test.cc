// Norm kernels on tensors of more than 2^31 elements: rows are counted in 32 bits, elements are not.
#include "kernels/norm.h"
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
    backward.d_x = {rows_view(part(d_x)), Accumulate::overwrite};
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

}  // namespace
}  // namespace heddle::kernels
