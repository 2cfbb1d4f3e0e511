// Automatic differentiation, start to finish: f(x, w) = sum of (x w^T)^2, its value and both gradients.
#include <fmt/ranges.h>

#include <vector>

#include "heddle/core/autograd/tape.h"
#include "heddle/core/tensor/transfer.h"
#include "heddle/layers/ops/glu.h"
#include "heddle/layers/ops/linear.h"

using namespace heddle;

int main() {
  Context context;  // the CPU; Context(parse_device("cuda")) for a GPU
  const Tensor x = Tensor::empty(context, {2, 3}, DType::float32);
  const Tensor w = Tensor::empty(context, {1, 3}, DType::float32);
  write_values(context, x, {1, 2, 3, 4, 5, 6});
  write_values(context, w, {1, 0, -1});

  Gradient d_x, d_w;  // outlive the tape; a second backward would add to them
  Tape tape(context);
  const Variable weight = tape.leaf(w, d_w, "w");
  const Variable product = linear(tape, tape.leaf(x, d_x, "x"), weight);   // (2, 1): x w^T
  const Variable squares = glu(tape, product, product, Activation::none);  // a * b with a = b

  const Tensor ones = Tensor::empty(context, squares.shape(), squares.dtype());
  write_values(context, ones, {1, 1});
  tape.backward(squares, ones);  // the gradient of the sum of the squares

  fmt::print("x w^T = {}\n", read_values(context, product.value));
  fmt::print("d_x   = {}\n", read_values(context, d_x.tensor));
  fmt::print("d_w   = {}\n", read_values(context, d_w.tensor));

  // By hand: d_w = 2 (x w^T)^T x = 2 (-2 (1, 2, 3) - 2 (4, 5, 6)) and d_x = 2 (x w^T) w, a row each.
  const bool right = read_values(context, d_w.tensor) == std::vector<double>{-20, -28, -36} &&
                     read_values(context, d_x.tensor) == std::vector<double>{-4, 0, 4, -4, 0, 4};
  return right ? 0 : 1;
}
