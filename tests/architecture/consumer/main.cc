#include "core/runtime/context.h"
#include "core/tensor/tensor.h"

int main() {
  heddle::Context context;
  const heddle::Tensor tensor = heddle::Tensor::zeros(context, {2, 3}, heddle::DType::float32);
  return tensor.numel() == 6 && tensor.data<float>()[5] == 0.0f ? 0 : 1;
}
