#include <gtest/gtest.h>

#include <vector>

#include "heddle/core/autograd/gradcheck.h"
#include "heddle/core/runtime/error.h"
#include "heddle/core/tensor/random.h"
#include "squared_relu.h"

namespace {

using namespace heddle;

TEST(SquaredRelu, Gradients) {
  Context context(Device{DeviceType::cuda});
  Random random(1, RandomStream::test);
  // Twice in a row, so that one of the two gets its gradient from the other.
  const GradcheckFunction layer = [](Tape& tape, const std::vector<Variable>& in) {
    return std::vector<Variable>{squared_relu(tape, squared_relu(tape, in[0]))};
  };
  for (const Shape& shape : {Shape{}, Shape{5}, Shape{4, 300}, Shape{0, 3}}) {
    const std::vector<GradcheckInput> inputs = {{"x", Tensor::empty(context, shape, DType::float64)}};
    fill_normal(context, inputs[0].value, random, 0.0, 1.0);
    EXPECT_GRADIENTS_MATCH(context, layer, inputs) << to_string(shape);
  }
}

TEST(SquaredRelu, RefusesWhatItCannotCompute) {
  Context gpu(Device{DeviceType::cuda}), cpu;
  Tape tape(gpu), cpu_tape(cpu);
  EXPECT_THROW(squared_relu(tape, tape.constant(Tensor::zeros(gpu, {3}, DType::bfloat16))), Error);
  EXPECT_THROW(squared_relu(cpu_tape, cpu_tape.constant(Tensor::zeros(cpu, {3}, DType::float32))), Error);
}

}  // namespace
