// Embedding, cross entropy and the optimizer against the CPU.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/dense/embedding.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/optimizer/muon.h"
#include "kernels/optimizer/optimizer.h"
#include "tests/cuda/gpu_test.h"

namespace heddle::kernels {
namespace {

class EmbeddingGpu : public GpuTest {};
class CrossEntropyGpu : public GpuTest {};
class OptimizerGpu : public GpuTest {};

struct EmbeddingCase {
  int64_t tokens, vocabulary, dim;
  Place place = {};
  int64_t used = 0;  // tokens below this only; 0: all
  int64_t padding_idx = -1;
};

TEST_F(EmbeddingGpu, MatchesTheCpu) {
  for (const DType dtype : kFloating) {
    for (const EmbeddingCase& c :
         {EmbeddingCase{1, 1, 1}, EmbeddingCase{1000, 256, 64}, EmbeddingCase{3000, 7, 300},
          EmbeddingCase{513, 1000, 33}, EmbeddingCase{500, 300, 40, {3, 1}}, EmbeddingCase{2000, 50, 24, {8, 0}, 1},
          EmbeddingCase{20000, 256, 8, {}, 3}, EmbeddingCase{0, 20, 8}, EmbeddingCase{3000, 7, 300, {}, 0, 0},
          EmbeddingCase{2000, 50, 24, {3, 1}, 1, 0}, EmbeddingCase{513, 1000, 33, {}, 0, 999}}) {
      for (const bool wide : {false, true}) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          expect_same_as_cpu(dtype, [&](Context& context, DType type) -> Results {
            Random random(16, RandomStream::test);
            const Tensor tokens = int32_values(context, c.tokens, c.used > 0 ? c.used : c.vocabulary, random);
            const Tensor weight = placed_values(context, c.vocabulary, c.dim, type, c.place, random);
            const Tensor y = placed(context, c.tokens, c.dim, type, c.place);
            embedding_forward(context, {.tokens = vector_view(tokens), .weight = rows_view(weight), .y = rows_view(y)});
            const Tensor d_y = placed_values(context, c.tokens, c.dim, type, c.place, random);
            const DType result = wide ? accumulate_type(type) : type;
            const Tensor d_weight = mode == GradientMode::accumulate
                                        ? placed_values(context, c.vocabulary, c.dim, result, c.place, random)
                                        : placed(context, c.vocabulary, c.dim, result, c.place);
            const Tensor workspace =
                Tensor::empty(context, {embedding_workspace(c.tokens, c.vocabulary)}, DType::int32);
            embedding_backward(context, {.tokens = vector_view(tokens),
                                         .d_y = rows_view(d_y),
                                         .d_weight = {rows_view(d_weight), mode},
                                         .workspace = vector_view(workspace),
                                         .padding_idx = c.padding_idx});
            return {read_values(context, y), read_values(context, d_weight)};
          });
        }
      }
    }
  }
}

// What is no token of the vocabulary, which a GPU does not report, is no number.
TEST_F(EmbeddingGpu, UnknownTokensAreNaN) {
  Context context({DeviceType::cuda, 0});
  const Tensor weight = Tensor::zeros(context, {5, 3}, DType::float32);
  const Tensor y = Tensor::empty(context, {4, 3}, DType::float32), tokens = Tensor::empty(context, {4}, DType::int32);
  write_values(context, tokens, {4, 5, -1, 0});
  embedding_forward(context, {.tokens = vector_view(tokens), .weight = rows_view(weight), .y = rows_view(y)});
  const std::vector<double> found = read_values(context, y);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(std::isnan(found[i]), i / 3 == 1 || i / 3 == 2) << i;
}

// The workspace is enough for the sort of many tokens, few or many of them different.
TEST_F(EmbeddingGpu, WorkspaceHoldsTheSort) {
  Context context({DeviceType::cuda, 0});
  for (const int64_t count : {1, 1000, 100000, 3000000, 20000000}) {
    for (const int64_t vocabulary : {2, 256, 50304, 1000000}) {
      const Tensor tokens = Tensor::zeros(context, {count}, DType::int32);
      const Tensor d_y = Tensor::zeros(context, {count, 1}, DType::float32);
      const Tensor d_weight = Tensor::empty(context, {vocabulary, 1}, DType::float32);
      const Tensor workspace = Tensor::empty(context, {embedding_workspace(count, vocabulary)}, DType::int32);
      EXPECT_NO_THROW(embedding_backward(context, {.tokens = vector_view(tokens),
                                                   .d_y = rows_view(d_y),
                                                   .d_weight = {rows_view(d_weight), GradientMode::overwrite},
                                                   .workspace = vector_view(workspace)}));
      context.synchronize();
    }
  }
}

struct LossCase {
  int64_t rows, classes;
  Place place = {};
  double smoothing = 0.0;
  bool all_ignored = false;
  Reduction reduction = Reduction::mean;
  double z_loss = 0.0;
  bool upstream = true;
};

TEST_F(CrossEntropyGpu, MatchesTheCpu) {
  for (const DType dtype : kFloating) {
    for (const LossCase& c :
         {LossCase{64, 256}, LossCase{1, 1}, LossCase{7, 33, {}, 0.1}, LossCase{9, 1000, {3, 1}, 0.1},
          LossCase{33, 5000}, LossCase{3, 50304, {8, 0}, 0.2}, LossCase{5, 4099}, LossCase{4, 256, {}, 0.1, true},
          LossCase{9, 1000, {3, 1}, 0.1, false, Reduction::sum}, LossCase{33, 5000, {}, 0.0, false, Reduction::none},
          LossCase{7, 33, {}, 0.1, false, Reduction::none, 0.02},
          LossCase{3, 4099, {8, 0}, 0.0, false, Reduction::sum, 0.02},
          LossCase{64, 256, {}, 0.0, false, Reduction::mean, 0.02},
          LossCase{4, 256, {}, 0.1, true, Reduction::sum, 0.02}, LossCase{4, 40, {}, 0.1, true, Reduction::none, 0.02},
          LossCase{7, 33, {}, 0.1, false, Reduction::mean, 0.0, false},
          LossCase{7, 33, {}, 0.1, false, Reduction::sum, 0.0, false},
          LossCase{7, 33, {}, 0.1, false, Reduction::none, 0.0, false}}) {
      for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
        for (const bool in_place : {false, true}) {
          if (in_place && mode == GradientMode::accumulate) continue;
          expect_same_as_cpu(dtype, [&](Context& context, DType type) -> Results {
            Random random(17, RandomStream::test);
            const DType wide = accumulate_type(type);
            const Tensor logits = placed_values(context, c.rows, c.classes, type, c.place, random);
            const Tensor targets = int32_values(context, c.rows, c.classes, random);
            if (c.all_ignored) {
              write_values(context, targets, std::vector<double>(static_cast<size_t>(c.rows), -100.0));
            } else if (c.rows > 2) {
              write_values(context, targets.slice(0, 1, 2), {-100.0});
            }
            const Tensor loss = placed(context, 1, 1, wide, {}), count = placed(context, 1, 1, wide, {});
            const Tensor maxima = placed(context, 1, c.rows, wide, {}), rests = placed(context, 1, c.rows, wide, {});
            const Tensor losses = placed(context, 1, c.rows, wide, {});
            const CrossEntropyOptions options = {
                .label_smoothing = c.smoothing, .reduction = c.reduction, .z_loss = c.z_loss};
            const bool reduces = c.reduction != Reduction::none;
            cross_entropy_forward(context, {.logits = rows_view(logits),
                                            .targets = vector_view(targets),
                                            .loss = reduces ? vector_view(loss) : VectorView{},
                                            .maxima = vector_view(maxima),
                                            .rests = vector_view(rests),
                                            .row_losses = vector_view(losses),
                                            .count = reduces ? vector_view(count) : VectorView{},
                                            .d_logits = {},
                                            .options = options});
            const Tensor d_loss = Tensor::empty(context, {reduces ? 1 : c.rows}, wide);
            std::vector<double> upstream(static_cast<size_t>(d_loss.numel()));
            for (size_t i = 0; i < upstream.size(); ++i) upstream[i] = 1.5 + static_cast<double>(i);
            write_values(context, d_loss, upstream);
            const Tensor d_logits = in_place ? logits
                                    : mode == GradientMode::accumulate
                                        ? placed_values(context, c.rows, c.classes, type, c.place, random)
                                        : placed(context, c.rows, c.classes, type, c.place);
            cross_entropy_backward(context, {.logits = rows_view(logits),
                                             .targets = vector_view(targets),
                                             .maxima = vector_view(maxima),
                                             .rests = vector_view(rests),
                                             .count = reduces ? vector_view(count) : VectorView{},
                                             .d_loss = c.upstream ? vector_view(d_loss) : VectorView{},
                                             .d_logits = {rows_view(d_logits), mode},
                                             .options = options});
            Results results = {read_values(context, losses), read_values(context, maxima), read_values(context, rests),
                               read_values(context, d_logits)};
            if (reduces) results.insert(results.end(), {read_values(context, loss), read_values(context, count)});
            return results;
          });
        }
      }
    }
  }
}

// Gradients in forward, also over the logits: where shared memory holds a row, and where it does not.
TEST_F(CrossEntropyGpu, GradientsInForwardAreThoseOfTheCpu) {
  for (const DType dtype : kFloating) {
    for (const LossCase& c : {LossCase{7, 33, {}, 0.1}, LossCase{9, 1024, {3, 1}, 0.1}, LossCase{9, 1025},
                              LossCase{33, 5000, {8, 0}, 0.1, false, Reduction::none, 0.02}, LossCase{5, 4099, {3, 1}},
                              LossCase{3, 50304}, LossCase{3, 120000}, LossCase{4, 2048, {}, 0.1, true}}) {
      for (const bool in_place : {false, true}) {
        expect_same_as_cpu(dtype, [&](Context& context, DType type) -> Results {
          Random random(19, RandomStream::test);
          const DType wide = accumulate_type(type);
          const Tensor logits = placed_values(context, c.rows, c.classes, type, c.place, random);
          const Tensor targets = int32_values(context, c.rows, c.classes, random);
          if (c.all_ignored) {
            write_values(context, targets, std::vector<double>(static_cast<size_t>(c.rows), -100.0));
          } else {
            write_values(context, targets.slice(0, 1, 2), {-100.0});
          }
          const Tensor maxima = placed(context, 1, c.rows, wide, {}), rests = placed(context, 1, c.rows, wide, {});
          const Tensor losses = placed(context, 1, c.rows, wide, {});
          const Tensor d_logits = in_place ? logits : placed(context, c.rows, c.classes, type, c.place);
          cross_entropy_forward(
              context, {.logits = rows_view(logits),
                        .targets = vector_view(targets),
                        .loss = {},
                        .maxima = vector_view(maxima),
                        .rests = vector_view(rests),
                        .row_losses = vector_view(losses),
                        .count = {},
                        .d_logits = rows_view(d_logits),
                        .options = {.label_smoothing = c.smoothing, .reduction = Reduction::none, .z_loss = c.z_loss}});
          return {read_values(context, losses), read_values(context, maxima), read_values(context, rests),
                  read_values(context, d_logits)};
        });
      }
    }
  }
}

// One step with clipping, of parts with rates and decays of their own: the scalars, master, m, v and the compute
// copy after it.
Results run_step(Context& context, DType value, int64_t size, int64_t shift) {
  Random random(18, RandomStream::test);
  const DType master = accumulate_type(value);
  const auto values = [&] { return placed_values(context, 1, size, master, {0, shift}, random).reshape({size}); };
  const Tensor weights = values(), gradient = values(), m = values(), v = values();
  std::vector<double> squares = read_values(context, v);
  for (double& square : squares) square += 4.5;
  write_values(context, v, squares);
  const Tensor copy = placed(context, 1, size, value, {0, shift}).reshape({size});
  const Tensor scalars = Tensor::empty(context, {step_scalars}, master);
  write_values(context, scalars, {0.01, 0.1, 0.05, 1.0, 0.5, 0.0, 0.0, 0.0});
  const Tensor partials = Tensor::empty(context, {gradient_norm_partials(size)}, master);
  const auto middle = static_cast<double>(size / 256 * 128);
  std::vector<double> columns;
  if (middle > 0.0) columns = {middle, 0.0, 1.0, 0.1};
  columns.insert(columns.end(), {static_cast<double>(size), middle, 0.5, 0.3});
  const Tensor parts =
      Tensor::empty(context, {static_cast<int64_t>(columns.size()) / part_columns, part_columns}, DType::float64);
  write_values(context, parts, columns);
  gradient_norm(
      context, {.gradient = vector_view(gradient), .scalars = vector_view(scalars), .partials = vector_view(partials)});
  update_parameters(context, {.master = vector_view(weights),
                              .gradient = vector_view(gradient),
                              .m = vector_view(m),
                              .v = vector_view(v),
                              .value = vector_view(copy),
                              .average = {},
                              .scalars = vector_view(scalars),
                              .parts = rows_view(parts)});
  Results results;
  for (const Tensor& result : {scalars, weights, m, v, copy}) results.push_back(read_values(context, result));
  return results;
}

// Numbers whose squares, or the sums of those, do not fit the dtype.
TEST_F(OptimizerGpu, NormsOfNumbersOfAnySize) {
  Context context({DeviceType::cuda, 0});
  constexpr int64_t kSize = 40000;  // three partial norms
  const auto norm_of = [&](DType dtype, double number) {
    const Tensor gradient = Tensor::empty(context, {kSize}, dtype);
    write_values(context, gradient, std::vector<double>(kSize, number));
    const Tensor scalars = Tensor::zeros(context, {step_scalars}, dtype);
    const Tensor partials = Tensor::empty(context, {gradient_norm_partials(kSize)}, dtype);
    gradient_norm(
        context,
        {.gradient = vector_view(gradient), .scalars = vector_view(scalars), .partials = vector_view(partials)});
    return read_values(context, scalars)[scalar_gradient_norm];
  };
  for (const double size : {1e36, 1e30, 1e19, 1e-19, 1e-23, 1e-30}) {
    EXPECT_NEAR(norm_of(DType::float32, size), 200.0 * size, 1e-6 * 200.0 * size);
  }
  for (const double size : {8e305, 1e200, 1e154, 1e150, 1.0, 1e-150, 1e-162, 1e-200, 1e-300}) {
    EXPECT_NEAR(norm_of(DType::float64, size), 200.0 * size, 1e-13 * 200.0 * size);
  }
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  EXPECT_EQ(norm_of(DType::float64, 0.0), 0.0);
  EXPECT_EQ(norm_of(DType::float64, 1e308), kInfinite);  // the norm itself does not fit
  EXPECT_EQ(norm_of(DType::float64, kInfinite), kInfinite);
  EXPECT_TRUE(std::isnan(norm_of(DType::float64, std::nan(""))));
}

// The direction of Muon, which is divided by the norm of the matrix.
TEST_F(OptimizerGpu, MuonNormalizesNumbersOfAnySize) {
  Context context({DeviceType::cuda, 0});
  constexpr int64_t kSize = 40000;
  for (const double size : {1e300, 1e160, 1.0, 1e-160, 1e-300}) {
    const Tensor m = Tensor::empty(context, {kSize}, DType::float64),
                 direction = Tensor::empty(context, {kSize}, m.dtype());
    write_values(context, m, std::vector<double>(kSize, size));
    const Tensor scalars = Tensor::zeros(context, {step_scalars}, m.dtype());
    const Tensor partials = Tensor::empty(context, {gradient_norm_partials(kSize)}, m.dtype());
    muon_direction(context, {.gradient = vector_view(m),
                             .m = vector_view(m),
                             .scalars = vector_view(scalars),
                             .partials = vector_view(partials),
                             .direction = vector_view(direction),
                             .nesterov = false,
                             .eps = 0.0});
    for (const double number : read_values(context, direction)) ASSERT_NEAR(number, 1.0 / 200.0, 1e-15) << size;
  }
}

TEST_F(OptimizerGpu, MatchesTheCpu) {
  for (const DType value : kFloating) {
    for (const int64_t size :
         {1, 1000, 16384, 100001, 3000001}) {  // with the last one a thread comes from part to part
      for (const int64_t shift : {0, 1}) {
        if (size > 1000000 && (value != DType::float32 || shift != 0)) continue;
        Context cpu, gpu({DeviceType::cuda, 0});
        const Results expected = run_step(cpu, value, size, shift), found = run_step(gpu, value, size, shift);
        for (size_t i = 0; i < found.size(); ++i) {
          const double allowed = tolerance(i == 4 ? value : accumulate_type(value));
          EXPECT_LE(largest_error(found[i], expected[i]), allowed)
              << "result " << i << " " << name(value) << ", size " << size;
        }
        EXPECT_EQ(found, run_step(gpu, value, size, shift));
      }
    }
  }
}

}  // namespace
}  // namespace heddle::kernels
