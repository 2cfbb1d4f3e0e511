// Numbers that belong to a module but are no parameters: fixed angles, fixed decays.
#pragma once

#include <memory>
#include <vector>

#include "core/autograd/tape.h"
#include "core/tensor/transfer.h"

namespace heddle {

// Kept in the memory of the context that asked last, made at the first use.
class FixedValues {
 public:
  // Row-major.
  FixedValues(const Shape& shape, std::vector<double> values) : shape_(shape), values_(std::move(values)) {}

  const Shape& shape() const { return shape_; }
  const std::vector<double>& values() const { return values_; }

  Variable on(Tape& tape, DType dtype) const {
    Context& context = tape.context();
    if (owner_ != context.shared_allocator() || tensor_.dtype() != dtype) {
      const MemoryScope scope(context, MemoryCategory::parameter);
      tensor_ = Tensor::empty(context, shape_, dtype);
      write_values(context, tensor_, values_);
      owner_ = context.shared_allocator();
    }
    return tape.constant(tensor_);
  }

 private:
  Shape shape_;
  std::vector<double> values_;
  mutable Tensor tensor_;
  mutable std::shared_ptr<CachingAllocator> owner_;
};

}  // namespace heddle
