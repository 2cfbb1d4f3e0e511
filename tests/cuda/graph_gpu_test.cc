// Graphs of kernels: replay computes anew, their memory stays theirs, failures leave the context usable.
#include <gmock/gmock.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/runtime/graph.h"
#include "core/runtime/stream.h"
#include "kernels/dense/elementwise.h"
#include "kernels/dense/gemm.h"
#include "tests/cuda/gpu_test.h"

namespace heddle {
namespace {

using kernels::rows_view;

class GraphGpu : public GpuTest {};

// y = (2 x) x^T, with a temporary for 2 x.
Tensor double_square(Context& context, const Tensor& x) {
  const Tensor twice = Tensor::empty(context, x.shape(), x.dtype());
  kernels::accumulate(context, {.from = rows_view(x), .to = {rows_view(twice), GradientMode::overwrite}, .scale = 2.0});
  const Tensor y = Tensor::empty(context, {x.size(0), x.size(0)}, x.dtype());
  kernels::gemm(context, {.a = rows_view(twice),
                          .b = rows_view(x),
                          .transpose_b = kernels::Transpose::yes,
                          .bias = {},
                          .c = {rows_view(y), GradientMode::overwrite}});
  return y;
}

TEST_F(GraphGpu, ReplayComputesWhatTheWorkComputes) {
  Context context({DeviceType::cuda, 0});
  Random random(5, RandomStream::test);
  const Tensor x = Tensor::empty(context, {64, 256}, DType::bfloat16);
  write_values(context, x, exact_values(x.numel(), random));
  double_square(context, x);
  Tensor y;
  Graph graph = capture(context, [&] { y = double_square(context, x); });
  for (int round = 0; round < 3; ++round) {
    write_values(context, x, exact_values(x.numel(), random));
    poison(context, y);
    graph.replay();
    EXPECT_EQ(read_values(context, y), read_values(context, double_square(context, x)));
  }
}

// Marks for times in a graph are set anew by every replay.
TEST_F(GraphGpu, TimesAreThoseOfTheLastReplay) {
  Context context({DeviceType::cuda, 0});
  const Tensor x = Tensor::zeros(context, {4096, 8192}, DType::bfloat16);
  double_square(context, x);
  Event begin(context), middle(context), end(context);
  Graph graph = capture(context, [&] {
    begin.record_timing(context.stream());
    double_square(context, x);
    middle.record_timing(context.stream());
    end.record_timing(context.stream());
  });
  for (int round = 0; round < 2; ++round) {
    graph.replay();
    context.synchronize();
    EXPECT_GT(begin.milliseconds_to(middle), 0.05);  // 275 GFLOP
    EXPECT_LT(middle.milliseconds_to(end), begin.milliseconds_to(middle));
  }
}

TEST_F(GraphGpu, CountsBytesAsWithoutAGraph) {
  Context context({DeviceType::cuda, 0});
  const Tensor x = Tensor::zeros(context, {512, 512}, DType::float32);
  double_square(context, x);
  context.allocator().reset_peaks();
  double_square(context, x);
  const size_t peak = context.allocator().stats().allocated.peak;
  context.allocator().reset_peaks();
  Graph graph = capture(context, [&] { double_square(context, x); });
  EXPECT_EQ(context.allocator().stats().allocated.peak, peak);
  context.allocator().reset_peaks();
  graph.replay();
  EXPECT_EQ(context.allocator().stats().allocations, 0);
}

TEST_F(GraphGpu, MemoryStaysTheGraphsUntilItIsGone) {
  Context context({DeviceType::cuda, 0});
  CachingAllocator& allocator = context.allocator();
  const int64_t count = int64_t{64} << 20;
  void* address = nullptr;
  {
    Graph graph = capture(context, [&] {
      const Tensor temporary = Tensor::zeros(context, {count}, DType::float32);
      address = temporary.raw();
    });
    allocator.release_cached();
    const Tensor other = Tensor::zeros(context, {count}, DType::float32);
    EXPECT_NE(other.raw(), address);
    graph.replay();
    context.synchronize();
  }
  const size_t reserved = allocator.stats().reserved.current;
  allocator.release_cached();
  EXPECT_EQ(reserved - allocator.stats().reserved.current, 2 * static_cast<size_t>(count) * sizeof(float));
}

TEST_F(GraphGpu, AFailedCaptureLeavesTheContextUsable) {
  Context context({DeviceType::cuda, 0});
  const Tensor x = Tensor::zeros(context, {16, 16}, DType::float32);
  double_square(context, x);
  EXPECT_THROW(capture(context,
                       [&] {
                         double_square(context, x);
                         fail("something else");
                       }),
               Error);
  EXPECT_THROW(capture(context, [&] { context.synchronize(); }), Error);  // nothing may wait for the device
  EXPECT_EQ(read_values(context, double_square(context, x)), std::vector<double>(256, 0.0));
  Graph graph = capture(context, [&] { double_square(context, x); });
  graph.replay();
  context.synchronize();
  EXPECT_THROW(Graph().replay(), Error);
}

}  // namespace
}  // namespace heddle
