// Products of bfloat16 on one thread by the instructions that a CPU may have for them: AMX, or AVX512_BF16.
#pragma once

#include <memory>

#include "core/runtime/context.h"
#include "core/tensor/element_types.h"
#include "kernels/common/views.h"
#include "kernels/dense/cpu/gemm_blocks.h"
#include "kernels/dense/cpu/gemm_tile.h"

namespace heddle::kernels::cpu {

// Keeps the code that oneDNN generates for each shape; a resource of the context. Several threads may use it at once.
class Bfloat16Products {
 public:
  explicit Bfloat16Products(Context& context);
  ~Bfloat16Products();
  Bfloat16Products(const Bfloat16Products&) = delete;
  Bfloat16Products& operator=(const Bfloat16Products&) = delete;

  // Whether heddle was built with oneDNN and the CPU has the instructions.
  bool available() const { return generated_ != nullptr; }

  // c (=|+=) op(a) op(b), all extents > 0, for rows of c that lie side by side; C is bfloat16 or float. Returns whether
  // it could: oneDNN refuses when it cannot allocate, and then c is as it was. Sums are kept in float and rounded once,
  // and their order depends on the extents alone. Numbers below the smallest normal one (1.2e-38) count as 0, as these
  // instructions have it.
  template <class C>
  bool multiply(const Block& size, const GemmOperand<bfloat16>& a, const GemmOperand<bfloat16>& b, C* c,
                GradientMode mode);

 private:
  class Generated;
  std::unique_ptr<Generated> generated_;
};

}  // namespace heddle::kernels::cpu
