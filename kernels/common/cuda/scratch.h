// Device memory of a fixed size that belongs to a context. Operators use it between their own launches: for the partial
// sums of a bounded number of blocks, and as the workspace of cuBLASLt. Its contents are undefined before and after an
// operator. Workspace that grows with a tensor is allocated by the layer instead, so that it is counted on every
// device.
#pragma once

#include <cstddef>

#include "core/runtime/context.h"

namespace heddle::kernels::cuda {

class Scratch {
 public:
  static constexpr size_t kBytes = size_t{32} << 20;

  explicit Scratch(Context& context);  // through context.resource<Scratch>()
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }

 private:
  Context& context_;
  void* data_;
};

inline void* scratch(Context& context) { return context.resource<Scratch>().data(); }

}  // namespace heddle::kernels::cuda
