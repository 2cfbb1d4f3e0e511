// The position encodings against the CPU where the work of a launch is cut in every way: sines shared or not, by the
// batch or by heads, the last blocks with a part of what shares them. The small cases are in tests/cases/.
#include <cstdint>

#include "kernels/position/lrpe_cosine.h"
#include "kernels/position/lrpe_rotate.h"
#include "tests/cuda/gpu_test.h"

namespace heddle::kernels {
namespace {

class LrpeGpu : public GpuTest {};

struct Size {
  int64_t batch, length, heads, dim, theta_heads;
  Layout layout = Layout::bnhd;
};

// A thousand blocks and more, replicas that no unrolling divides; a sequence that no cluster of blocks holds; as few
// blocks as fit on a GPU at once; and sequences for clusters of four and of eight blocks.
constexpr Size kSizes[] = {{3, 1060, 8, 128, 8}, {7, 1210, 3, 128, 1}, {3, 2113, 4, 128, 4, Layout::bhnd},
                           {1, 9000, 1, 128, 1}, {9, 65, 3, 64, 3},    {5, 33, 7, 32, 1, Layout::bhnd},
                           {6, 127, 1, 256, 1},  {2, 900, 3, 128, 1}};

struct Act {
  Activation act = Activation::none;
  Softmax softmax = Softmax::none;
};
constexpr Act kActs[] = {{}, {.act = Activation::silu}, {.softmax = Softmax::feature}, {.softmax = Softmax::sequence}};

template <class ForwardArgs, class BackwardArgs, class Options>
Results forward_and_backward(Context& context, DType dtype, const Size& size, const Options& options, int64_t angles,
                             int64_t outputs, GradientMode mode, void (*forward)(Context&, const ForwardArgs&),
                             void (*backward)(Context&, const BackwardArgs&)) {
  Random random(29, RandomStream::test);
  const auto tensor = [&](int64_t features, bool filled) {
    const Shape shape = size.layout == Layout::bnhd ? Shape{size.batch, size.length, size.heads, features}
                                                    : Shape{size.batch, size.heads, size.length, features};
    const Tensor result = Tensor::empty(context, shape, dtype);
    poison(context, result);
    if (filled) write_values(context, result, exact_values(result.numel(), random));
    return result;
  };
  const auto view = [&](const Tensor& of) { return heads_view(of, size.layout); };
  const Tensor x = tensor(size.dim, true), d_y = tensor(outputs, true), y = tensor(outputs, false);
  const Tensor d_x = tensor(size.dim, mode == GradientMode::accumulate);
  const Tensor theta = placed_values(context, size.theta_heads, angles, dtype, {}, random);
  const bool sequence = options.softmax == Softmax::sequence;
  const int64_t columns = sequence ? size.batch * size.heads * size.dim : 0;
  const DType wide = accumulate_type(dtype);
  const Tensor maximum = Tensor::empty(context, {columns}, wide), sum = Tensor::empty(context, {columns}, wide);
  const Tensor dots = Tensor::empty(context, {columns}, wide);
  const auto numbers = [&](const Tensor& of) { return sequence ? vector_view(of) : VectorView{}; };
  forward(context, {.x = view(x),
                    .y = view(y),
                    .theta = rows_view(theta),
                    .maximum = numbers(maximum),
                    .sum = numbers(sum),
                    .options = options});
  backward(context, {.x = view(x),
                     .d_y = view(d_y),
                     .theta = rows_view(theta),
                     .maximum = numbers(maximum),
                     .sum = numbers(sum),
                     .d_x = {view(d_x), mode},
                     .d_theta = {},
                     .partials = {},
                     .dots = numbers(dots),
                     .options = options});
  return {read_values(context, y), read_values(context, d_x)};
}

void run(bool cosine) {
  for (const Size& size : kSizes) {
    for (const Act& act : kActs) {
      for (const DType dtype : {DType::bfloat16, DType::float32}) {
        if (size.length > 1000 && dtype == DType::float32) continue;  // the CPU takes seconds
        const bool adds = (dtype == DType::float32) == (size.theta_heads > 1);
        const GradientMode mode = adds ? GradientMode::accumulate : GradientMode::overwrite;
        SCOPED_TRACE(::testing::Message() << size.batch << " x " << size.length << " x " << size.heads << " x "
                                          << size.dim << ", softmax " << static_cast<int>(act.softmax));
        expect_same_as_cpu(dtype, [&](Context& context, DType type) {
          if (cosine) {
            LrpeCosineOptions options{.act = act.act, .softmax = act.softmax, .extra_tokens = 1};
            options.extents[0] = size.length - 1;
            return forward_and_backward<LrpeCosineForwardArgs, LrpeCosineBackwardArgs>(
                context, type, size, options, size.dim, 2 * size.dim, mode, lrpe_cosine_forward, lrpe_cosine_backward);
          }
          const LrpeRotateOptions options{.act = act.act, .softmax = act.softmax};
          return forward_and_backward<LrpeRotateForwardArgs, LrpeRotateBackwardArgs>(
              context, type, size, options, size.dim / 2, size.dim, mode, lrpe_rotate_forward, lrpe_rotate_backward);
        });
      }
    }
  }
}

TEST_F(LrpeGpu, RotateMatchesTheCpu) { run(false); }
TEST_F(LrpeGpu, CosineMatchesTheCpu) { run(true); }

}  // namespace
}  // namespace heddle::kernels
