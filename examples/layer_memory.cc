// How much memory a layer takes, by what it is for, at the moment when it takes most: measured on the CPU, and on
// device meta, which counts the same bytes without having them.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "heddle/core/autograd/parameter.h"
#include "heddle/core/tensor/random.h"
#include "heddle/layers/modules/feed_forward.h"
#include "heddle/layers/modules/norm.h"

using namespace heddle;

constexpr double kMiB = 1 << 20;

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
  {
    const MemoryScope scope(context, "norm", MemoryCategory::activation);
    y = norm.forward(tape, x, residual).y;
  }
  {
    const MemoryScope scope(context, "channel", MemoryCategory::activation);
    y = channel.forward(tape, y);
  }
  const MemoryScope scope(context, "upstream", MemoryCategory::gradient);
  tape.backward(y, Tensor::zeros(context, y.shape(), y.dtype()));
}

MemoryStats measure(Device device, int64_t tokens, int64_t dim, bool print) {
  Context context(device);
  run_block(context, tokens, dim);
  const MemoryStats stats = context.allocator().stats();
  if (!print) return stats;

  fmt::print("{} at the peak, {} tokens of {} features: {:.2f} MiB\n", to_string(device), tokens, dim,
             static_cast<double>(stats.allocated.peak) / kMiB);
  for (const ScopeBytes& scope : context.allocator().scopes()) {
    for (int i = 0; i < kMemoryCategories; ++i) {
      const size_t bytes = scope.at_peak[static_cast<size_t>(i)];
      if (bytes == 0) continue;
      fmt::print("  {:10} {:10} {:9.2f} MiB\n", scope.scope, name(static_cast<MemoryCategory>(i)),
                 static_cast<double>(bytes) / kMiB);
    }
  }
  return stats;
}

int main() {
  const Device cpu{DeviceType::cpu}, meta{DeviceType::meta};
  const MemoryStats real = measure(cpu, 1024, 128, true);
  const MemoryStats counted = measure(meta, 1024, 128, false);
  fmt::print("meta counts {:.2f} MiB for the same\n\n", static_cast<double>(counted.allocated.peak) / kMiB);
  measure(meta, 1 << 20, 4096, true);  // more than this machine has
  return real.allocated.peak == counted.allocated.peak && real.allocations == counted.allocations ? 0 : 1;
}
