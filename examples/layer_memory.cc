// How much memory a layer takes, by what it is for, at the moment when it takes most: measured on the CPU, and on
// device meta, which counts the same bytes without having them.
#include <fmt/format.h>

#include <cstdint>

#include "heddle/core/autograd/parameter.h"
#include "heddle/core/tensor/random.h"
#include "heddle/layers/modules/feed_forward.h"
#include "heddle/layers/modules/norm.h"
#include "heddle/tools/memory_report.h"
#include "heddle/tools/memory_tables.h"

using namespace heddle;

// One block of a model, forward and backward: h = x + residual; y = glu(norm(h)).
void run_block(Context& context, int64_t tokens, int64_t dim) {
  ParameterSet parameters;
  const ModuleBuilder builder(parameters);
  const Norm norm(Norm::Options::of(NormType::rms_norm), builder.child("norm"), dim);
  const FeedForward channel({.hidden = 2 * dim}, builder.child("channel"), dim);
  parameters.materialize(context, DType::float32, 1);

  Gradient d_x, d_residual;
  Tape tape(context);
  Variable x, residual, y;
  {
    const MemoryScope scope(context, "inputs", MemoryCategory::data);
    x = tape.leaf(Tensor::zeros(context, {tokens, dim}, DType::float32), d_x, "x");
    residual = tape.leaf(Tensor::zeros(context, {tokens, dim}, DType::float32), d_residual, "residual");
  }
  context.mark("forward");
  {
    const MemoryScope scope(context, "norm", MemoryCategory::activation);
    y = norm.forward(tape, x, residual).y;
  }
  {
    const MemoryScope scope(context, "channel", MemoryCategory::activation);
    y = channel.forward(tape, y);
  }
  context.mark("backward");
  const MemoryScope scope(context, "upstream", MemoryCategory::gradient);
  tape.backward(y, Tensor::zeros(context, y.shape(), y.dtype()));
}

int main() {
  const auto block = [](int64_t tokens, int64_t dim) {
    return [=](Context& context) { run_block(context, tokens, dim); };
  };
  const MemoryReport real = measure_memory({DeviceType::cpu}, block(1024, 128));
  const MemoryReport counted = measure_memory({DeviceType::meta}, block(1024, 128));
  fmt::print("1024 tokens of 128 features\n{}\n", to_text(real));
  fmt::print("meta counts {} bytes for the same\n\n", counted.stats.allocated.peak);
  const MemoryReport large = measure_memory({DeviceType::meta}, block(1 << 20, 4096));
  fmt::print("1048576 tokens of 4096 features, more than this machine may have\n{}", to_text(large));
  return real.layers == counted.layers && real.stats.allocations == counted.stats.allocations ? 0 : 1;
}
