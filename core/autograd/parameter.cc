#include "core/autograd/parameter.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/runtime/checked.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

constexpr int64_t kMostNumbers = int64_t{1} << 60;  // of one set: their bytes can be counted

Tensor part(const Tensor& flat, int64_t offset, const Shape& shape) {
  return flat.slice(0, offset, offset + numel(shape)).reshape(shape);
}

void initialize(Context& context, const Parameter& parameter, uint64_t seed, uint32_t index) {
  const Initializer& initializer = parameter.initializer;
  switch (initializer.kind) {
    case Initializer::Kind::normal: {
      Random random(seed, RandomStream::parameters, index);
      fill_normal(context, parameter.master, random, 0.0, initializer.scale);
      break;
    }
    case Initializer::Kind::constant:
      write_values(context, parameter.master,
                   std::vector<double>(static_cast<size_t>(numel(parameter.shape)), initializer.scale));
      break;
    case Initializer::Kind::values:
      write_values(context, parameter.master, initializer.values);
      break;
  }
}

}  // namespace

// Throws Error when nothing of this name can be added.
void ParameterSet::check_new(const std::string& name, const Shape& shape) const {
  check(!master_.defined(), "{} was added after the parameters got their memory", name);
  check(std::all_of(shape.begin(), shape.end(), [](int64_t extent) { return extent >= 0; }),
        "{} has shape {}: an extent is negative", name, shape);
  if (!names_.contains(name)) return;
  for (const Parameter& other : parameters_) {
    check(other.name != name, "two parameters are called {}: of shapes {} and {}", name, other.shape, shape);
  }
  for (const Buffer& other : buffers_) {
    check(other.name != name, "{} is the name of a buffer of shape {} already, and now of another value of shape {}",
          name, other.shape, shape);
  }
}

Parameter& ParameterSet::add(std::string name, const Shape& shape, Initializer initializer, bool weight_decay) {
  check_new(name, shape);
  const std::optional<int64_t> numbers = checked_product(std::span(shape.begin(), shape.end()));
  check(numbers.has_value() && *numbers <= kMostNumbers - count_,
        "parameter {} has shape {}, too large: all parameters together may have 2^60 numbers", name, shape);
  const size_t given = initializer.values.size();
  check(initializer.kind != Initializer::Kind::values || static_cast<int64_t>(given) == *numbers,
        "parameter {} of shape {} is given {} values, expected {}", name, shape, given, *numbers);
  count_ += *numbers;
  names_.insert(name);
  Parameter& parameter = parameters_.emplace_back();
  parameter.name = std::move(name);
  parameter.shape = shape;
  parameter.initializer = std::move(initializer);
  parameter.weight_decay = weight_decay;
  return parameter;
}

Buffer& ParameterSet::add_buffer(std::string name, const Shape& shape, std::vector<double> values) {
  check_new(name, shape);
  check(static_cast<int64_t>(values.size()) == numel(shape), "buffer {} of shape {} has {} values, expected {}", name,
        shape, values.size(), numel(shape));
  names_.insert(name);
  return buffers_.emplace_back(Buffer{std::move(name), shape, std::move(values), {}});
}

void ParameterSet::materialize(Context& context, DType compute_dtype, uint64_t seed, int parts) {
  check(!master_.defined(), "the parameters have their memory already");
  check(is_floating(compute_dtype), "parameters cannot be {}: they are real numbers", name(compute_dtype));
  check(parts >= 1, "the parameters are to have {} parts, expected at least 1", parts);
  const auto round_up = [](int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; };
  int64_t total = 0;
  offsets_.resize(parameters_.size());
  for (const bool decays : {true, false}) {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (parameters_[i].weight_decay != decays) continue;
      offsets_[i] = total;
      total += round_up(numel(parameters_[i].shape), kAlignment);
    }
  }
  total = round_up(total, parts * kAlignment);
  const DType master_dtype = accumulate_type(compute_dtype);
  {
    const MemoryScope scope(context, MemoryCategory::parameter);
    master_ = Tensor::zeros(context, {total}, master_dtype);
    value_ = compute_dtype == master_dtype ? master_ : Tensor::zeros(context, {total}, compute_dtype);
  }
  {
    const MemoryScope scope(context, MemoryCategory::gradient);
    gradient_ = Tensor::zeros(context, {total}, master_dtype);
  }
  uint32_t index = 0;
  for (Parameter& parameter : parameters_) {
    const int64_t offset = offsets_[index];
    parameter.master = part(master_, offset, parameter.shape);
    parameter.value = part(value_, offset, parameter.shape);
    parameter.gradient.tensor = part(gradient_, offset, parameter.shape);
    if (!context.is_meta()) {
      initialize(context, parameter, seed, index);
      if (compute_dtype != master_dtype) {
        write_values(context, parameter.value, read_values(context, parameter.master));
      }
    }
    ++index;
  }
  const MemoryScope scope(context, MemoryCategory::parameter);
  for (Buffer& buffer : buffers_) {
    buffer.value = Tensor::empty(context, buffer.shape, master_dtype);
    if (!context.is_meta()) write_values(context, buffer.value, buffer.values);
  }
}

Variable ParameterSet::on(Tape& tape, Parameter& parameter) {
  return tape.leaf(parameter.value, parameter.gradient, parameter.name);
}

void ParameterSet::zero_grad() {
  for (Parameter& parameter : parameters_) parameter.gradient.clear();
}

void ParameterSet::zero_unwritten_gradients(Context& context) {
  for (Parameter& parameter : parameters_) parameter.gradient.zero_unless_written(context);
}

}  // namespace heddle
