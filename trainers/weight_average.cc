#include "trainers/weight_average.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/tensor/transfer.h"
#include "kernels/dense/elementwise.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle {

WeightAverage::WeightAverage(Context& context, ParameterSet& parameters, double decay)
    : context_(context), parameters_(parameters), decay_(decay) {
  const MemoryScope scope(context, MemoryCategory::optimizer);
  average_ = Tensor::empty(context, parameters.master().shape(), parameters.master().dtype());
  restart();
}

double WeightAverage::decay(int64_t step) const {
  const double t = static_cast<double>(step);
  return std::min(decay_, (1.0 + t) / (10.0 + t));
}

void WeightAverage::restart() { copy(context_, average_, parameters_.master()); }

std::vector<NamedTensor> WeightAverage::tensors() const {
  std::vector<NamedTensor> tensors;
  size_t index = 0;
  for (const Parameter& parameter : parameters_.all()) {
    const int64_t begin = parameters_.offset(index++);
    const Tensor part = average_.slice(0, begin, begin + numel(parameter.shape)).reshape(parameter.shape);
    tensors.push_back({parameter.name, part});
  }
  return tensors;
}

void WeightAverage::exchange() {
  kernels::exchange(context_, {.a = kernels::vector_view(parameters_.master()), .b = kernels::vector_view(average_)});
  write_compute_copies(context_, parameters_);
}

void write_compute_copies(Context& context, const ParameterSet& parameters) {
  if (parameters.value().dtype() == parameters.master().dtype()) return;
  kernels::accumulate(context, {.from = kernels::rows_view(parameters.master()),
                                .to = {kernels::rows_view(parameters.value()), GradientMode::overwrite}});
}

}  // namespace heddle
