// Gradients of the logits where a layer does not take them: without upstream gradients.
#include "kernels/loss/cross_entropy.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/tensor/transfer.h"

namespace heddle::kernels {
namespace {

TEST(CrossEntropyBackward, TakesOneForEachLossWithoutUpstreamGradients) {
  Context context;
  constexpr int64_t kRows = 3, kClasses = 5;
  const auto tensor = [&](const Shape& shape, DType dtype, const std::vector<double>& values) {
    const Tensor result = Tensor::empty(context, shape, dtype);
    write_values(context, result, values);
    return result;
  };
  const Tensor logits = tensor({kRows, kClasses}, DType::float32,
                               {0.5, -1.0, 2.0, 0.25, 1.0, 3.0, 0.0, -2.0, 1.5, 0.75, 1.0, 1.0, -1.0, 0.0, 4.0});
  const Tensor targets = tensor({kRows}, DType::int32, {2, -100, 4});
  const Tensor losses = Tensor::empty(context, {kRows}, DType::float32);
  const Tensor maxima = Tensor::empty(context, {kRows}, DType::float32);
  const Tensor rests = Tensor::empty(context, {kRows}, DType::float32);
  const Tensor loss = Tensor::empty(context, {1}, DType::float32), count = Tensor::empty(context, {1}, DType::float32);
  for (const Reduction reduction : {Reduction::none, Reduction::sum, Reduction::mean}) {
    const bool reduces = reduction != Reduction::none;
    const CrossEntropyOptions options = {.label_smoothing = 0.1, .reduction = reduction};
    cross_entropy_forward(context, {.logits = rows_view(logits),
                                    .targets = vector_view(targets),
                                    .loss = reduces ? vector_view(loss) : VectorView{},
                                    .maxima = vector_view(maxima),
                                    .rests = vector_view(rests),
                                    .row_losses = vector_view(losses),
                                    .count = reduces ? vector_view(count) : VectorView{},
                                    .d_logits = {},
                                    .options = options});
    const auto gradient = [&](const Tensor& upstream) {
      const Tensor d_logits = Tensor::empty(context, {kRows, kClasses}, DType::float32);
      cross_entropy_backward(context, {.logits = rows_view(logits),
                                       .targets = vector_view(targets),
                                       .maxima = vector_view(maxima),
                                       .rests = vector_view(rests),
                                       .count = reduces ? vector_view(count) : VectorView{},
                                       .d_loss = vector_view(upstream),
                                       .d_logits = {rows_view(d_logits)},
                                       .options = options});
      return read_values(context, d_logits);
    };
    const auto upstream = [&](double last) {
      return reduces ? tensor({1}, DType::float32, {last}) : tensor({kRows}, DType::float32, {1.0, 1.0, last});
    };
    EXPECT_EQ(gradient({}), gradient(upstream(1.0)));
    EXPECT_NE(gradient({}), gradient(upstream(2.0)));
  }
}

}  // namespace
}  // namespace heddle::kernels
