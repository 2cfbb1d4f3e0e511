// Faults planted into the gradients of right operators, for tests of what finds them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/tensor/transfer.h"

namespace heddle::testing {

// A gradient on its way to an input, (rows, cols), and what is known where it is computed.
struct Arriving {
  std::vector<double>& d;
  const std::vector<double>& x;
  int64_t cols;
  bool accumulates;  // the gradient is added to one that is there

  int64_t rows() const { return static_cast<int64_t>(d.size()) / cols; }
  double& at(int64_t row, int64_t col) const { return d[static_cast<size_t>(row * cols + col)]; }
};
using Fault = std::function<void(const Arriving&)>;

inline void scale_where(const Arriving& g, double factor,
                        const std::function<bool(int64_t row, int64_t col)>& is_there) {
  for (int64_t row = 0; row < g.rows(); ++row) {
    for (int64_t col = 0; col < g.cols; ++col) {
      if (is_there(row, col)) g.at(row, col) *= factor;
    }
  }
}

// What people get wrong in a backward.
inline const std::vector<std::pair<std::string, Fault>>& faults() {
  static const std::vector<std::pair<std::string, Fault>> all = {
      {"another sign", [](const Arriving& g) { scale_where(g, -1.0, [](int64_t, int64_t) { return true; }); }},
      {"twice as large", [](const Arriving& g) { scale_where(g, 2.0, [](int64_t, int64_t) { return true; }); }},
      {"1e-4 too large", [](const Arriving& g) { scale_where(g, 1.0001, [](int64_t, int64_t) { return true; }); }},
      {"a constant is missing",
       [](const Arriving& g) {
         for (double& d : g.d) d -= 1e-3;
       }},
      {"the mean over a row is taken away",
       [](const Arriving& g) {
         for (int64_t row = 0; row < g.rows(); ++row) {
           double mean = 0.0;
           for (int64_t col = 0; col < g.cols; ++col) mean += g.at(row, col) / static_cast<double>(g.cols);
           for (int64_t col = 0; col < g.cols; ++col) g.at(row, col) -= mean;
         }
       }},
      {"a multiple of x is added",
       [](const Arriving& g) {
         for (size_t i = 0; i < g.d.size(); ++i) g.d[i] += 1e-3 * g.x[i];
       }},
      {"rows and columns are exchanged",
       [](const Arriving& g) {
         const std::vector<double> d = g.d;
         for (int64_t row = 0; row < g.rows(); ++row) {
           for (int64_t col = 0; col < g.cols; ++col) {
             g.at(row, col) = d[static_cast<size_t>(col * g.rows() + row)];
           }
         }
       }},
      {"one place further", [](const Arriving& g) { std::rotate(g.d.begin(), g.d.begin() + 1, g.d.end()); }},
      {"the last row is left out",
       [](const Arriving& g) { scale_where(g, 0.0, [&](int64_t row, int64_t) { return row == g.rows() - 1; }); }},
      {"the last column is left out",
       [](const Arriving& g) { scale_where(g, 0.0, [&](int64_t, int64_t col) { return col == g.cols - 1; }); }},
      {"rows beyond a block of 4",
       [](const Arriving& g) { scale_where(g, 1.01, [](int64_t row, int64_t) { return row >= 4; }); }},
      {"one element is not written", [](const Arriving& g) { g.d[g.d.size() / 2] = std::nan(""); }},
      {"one element is off by 1e-4",
       [](const Arriving& g) {
         *std::max_element(g.d.begin(), g.d.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }) *=
             1.0001;
       }},
      {"where x is negative",
       [](const Arriving& g) {
         for (size_t i = 0; i < g.d.size(); ++i) g.d[i] *= g.x[i] < 0.0 ? 1.001 : 1.0;
       }},
      {"only when it is added to another",
       [](const Arriving& g) {
         if (g.accumulates) scale_where(g, 1.001, [](int64_t, int64_t) { return true; });
       }},
  };
  return all;
}

// The identity, whose gradient has a fault.
struct FaultyNode {
  Slot x, y;
  Tensor value;
  const Fault* fault;

  void backward(Tape& tape) {
    Context& context = tape.context();
    std::vector<double> d = read_values(context, tape.take_gradient(y));
    const GradientDestination to = tape.destination(x);
    const std::vector<double> values = read_values(context, value);
    const int64_t cols = value.shape()[value.shape().rank() - 1];
    const bool adds = to.mode == GradientMode::accumulate;
    (*fault)({d, values, cols, adds});
    if (adds) {
      const std::vector<double> before = read_values(context, to.tensor);
      for (size_t i = 0; i < d.size(); ++i) d[i] += before[i];
    }
    write_values(context, to.tensor, d);
  }
};

inline Variable with_fault(Tape& tape, const Variable& x, const Fault& fault) {
  if (!tape.records({&x})) return x;
  const Variable y = tape.output(clone(tape.context(), x.value), true);
  tape.record(FaultyNode{.x = x.slot, .y = y.slot, .value = x.value, .fault = &fault}, {x}, {y});
  return y;
}

}  // namespace heddle::testing
