#include "trainers/weight_average.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/tensor/transfer.h"
#include "kernels/dense/elementwise.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle {

WeightAverage::WeightAverage(Context& context, ParameterSet& parameters, double decay, DataParallel* parallel)
    : context_(context),
      parameters_(parameters),
      decay_(decay),
      parallel_(parallel),
      range_(updated_range(parallel, parameters)) {
  const MemoryScope scope(context, MemoryCategory::optimizer);
  average_ = Tensor::empty(context, {range_.size()}, parameters.master().dtype());
  restart();
}

double WeightAverage::decay(int64_t step) const {
  const double t = static_cast<double>(step);
  return std::min(decay_, (1.0 + t) / (10.0 + t));
}

void WeightAverage::restart() {
  if (range_.size() > 0) copy(context_, average_, parameters_.master().slice(0, range_.begin, range_.end));
}

std::vector<ShardedTensor> WeightAverage::parts() const {
  std::vector<ShardedTensor> tensors;
  for (size_t index = 0; index < parameters_.all().size(); ++index) {
    const int64_t begin = std::max(parameters_.offset(index), range_.begin) - range_.begin;
    const std::string& name = parameters_.all()[index].name;
    tensors.push_back(part_of_parameter(parallel_, parameters_, index, name, average_, begin));
  }
  return tensors;
}

void WeightAverage::exchange() {
  if (range_.size() > 0) {
    const Tensor masters = parameters_.master().slice(0, range_.begin, range_.end);
    kernels::exchange(context_, {.a = kernels::vector_view(masters), .b = kernels::vector_view(average_)});
    write_compute_copies(context_, parameters_, range_);
  }
  if (parallel_ != nullptr) parallel_->gather_values();
}

void write_compute_copies(Context& context, const ParameterSet& parameters) {
  write_compute_copies(context, parameters, {0, parameters.master().numel()});
}

void write_compute_copies(Context& context, const ParameterSet& parameters, const FlatRange& range) {
  if (parameters.value().dtype() == parameters.master().dtype()) return;
  const auto part = [&](const Tensor& flat) { return kernels::rows_view(flat.slice(0, range.begin, range.end)); };
  kernels::accumulate(context,
                      {.from = part(parameters.master()), .to = {part(parameters.value()), GradientMode::overwrite}});
}

}  // namespace heddle
