#include "layers/ops/lrpe_cosine.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/modules/choices.h"
#include "layers/modules/position.h"
#include "layers/operators/lrpe_reference.h"
#include "layers/operators/operators.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_lrpe_cosine(const ConfigNode& node) {
  LrpeCosineOptions options;
  ConfigFields fields(node);
  describe_lrpe_activation(fields, options.act, options.softmax);
  fields.choice("layout", options.layout, layout_choices());
  describe_grid(fields, options.shape, options.extra_tokens);
  fields.field("offset", options.offset);
  if (options.offset != 0 && options.shape.rank() > 1) {
    fields.fail("offset", fmt::format("found {}, expected 0: shape has {} axes", options.offset, options.shape.rank()));
  }
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", lrpe_cosine(tape, inputs.at("x"), inputs.at("theta"), options)}};
  };
}

// The coordinates of position s on a grid, the last axis fastest.
std::vector<int64_t> grid_coordinates(const std::vector<int64_t>& shape, int64_t s) {
  std::vector<int64_t> coordinates(shape.size());
  for (size_t axis = shape.size(); axis-- > 0; s /= shape[axis]) coordinates[axis] = s % shape[axis];
  return coordinates;
}

ReferenceTensors lrpe_cosine_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor x = host_input(inputs, "x"), theta = host_input(inputs, "theta");
  const HeadsPlaces places(x.shape, options);
  const int64_t extra = options.get<int64_t>("extra_tokens", 0), offset = options.get<int64_t>("offset", 0);
  const auto shape = options.get<std::vector<int64_t>>("shape", {places.length - extra});
  const int64_t dim = x.shape[-1], angles = theta.shape[1];
  Shape y_shape = x.shape;
  y_shape[-1] *= 2;
  ReferenceTensor y = host_zeros(y_shape);
  for (int64_t b = 0; b < places.batch; ++b) {
    for (int64_t n = 0; n < places.length; ++n) {
      for (int64_t h = 0; h < places.heads; ++h) {
        const int64_t row = theta.shape[0] == 1 ? 0 : h;
        for (int64_t j = 0; j < dim; ++j) {
          double phi = 0.0;
          if (n >= extra) {
            const int64_t coordinate = grid_coordinates(shape, n - extra)[static_cast<size_t>(j / angles)];
            phi = static_cast<double>(coordinate + offset) * theta[row * angles + j % angles];
          }
          const double a = lrpe_activation(x, options, places, b, n, h, j);
          y[places.at(b, n, h, j, 2 * dim)] = a * std::cos(phi);
          y[places.at(b, n, h, j + dim, 2 * dim)] = a * std::sin(phi);
        }
      }
    }
  }
  return {{"y", y}};
}

// The cross of options on small grids, then shapes.
std::vector<OperatorCase> lrpe_cosine_cases() {
  struct SmallGrid {
    std::string options;
    int64_t tokens, angles;  // of 7 features
  };
  const std::vector<SmallGrid> grids = {
      {"offset: 3", 3, 7}, {"shape: [2, 2]", 4, 4}, {"shape: [2, 1, 2]", 4, 3}, {"shape: [1, 2, 1, 2]", 4, 2}};
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& shape, const ThetaInput& theta, const std::string& options, bool large = false) {
    cases.push_back(lrpe_case("lrpe_cosine", lrpe_cosine_reference, shape, theta, options, large));
  };
  for (const std::string& act : lrpe_acts()) {
    for (const std::string layout : {"bnhd", "bhnd"}) {
      for (const SmallGrid& grid : grids) {
        for (const int64_t extra : {0, 2}) {
          const std::string options =
              fmt::format("{}, layout: {}, {}, extra_tokens: {}", act, layout, grid.options, extra);
          const int64_t length = grid.tokens + extra;
          const Shape shape = layout == "bnhd" ? Shape{2, length, 2, 7} : Shape{2, 2, length, 7};
          for (const int64_t heads : {1, 2}) {
            // Every pair of options meets both dtypes of theta.
            const CaseInputKind kind = (heads == 1) == (extra == 0) ? CaseInputKind::matrix : CaseInputKind::angle;
            for (const bool learned : {true, false}) add(shape, {{heads, grid.angles}, kind, learned}, options);
          }
        }
      }
    }
    for (const int64_t dim : {1, 2, 6, 48, 130, 256}) {
      add({2, 3, dim}, {{1, dim}}, act, dim > 200);
      add({1, 1, 7, dim}, {{7, dim + 1}, CaseInputKind::matrix}, act + ", offset: 2", dim > 200);
    }
    add({1, 3, 7, 6}, {{7, 1}, CaseInputKind::matrix}, act + ", shape: [1, 3, 1, 1, 1, 1]");
    add({2, 2, 6}, {{1, 6}}, act + ", extra_tokens: 2");  // nothing but extra tokens
    add({2, 3, 2, 6}, {.shape = {2, 6}, .scale = 0.0}, act + ", offset: 5");
    add({2, 4, 2, 6}, {.shape = {2, 3}, .learned = false, .scale = 1e10}, act + ", shape: [2, 2]");
    add({2, 3, 2, 64}, {.shape = {1, 64}, .scale = 1e11}, act + ", offset: 1000000", true);
    add({2, 33, 3, 96}, {{3, 96}}, act, true);
    add({2, 33, 1, 48}, {{1, 48}, CaseInputKind::matrix}, act + ", extra_tokens: 1", true);
    add({1, 300, 2, 64}, {{1, 32}}, act + ", shape: [10, 30]", true);
    add({1, 2, 74, 128}, {{2, 43}, CaseInputKind::matrix}, act + ", layout: bhnd, shape: [4, 4, 4], extra_tokens: 10",
        true);
    add({1, 2, 1100}, {{1, 1100}}, act, true);
    add({1, 6, 2100}, {{1, 700}}, act + ", shape: [3, 2, 1]", true);
    add({1, 2, 5, 64}, {{2, 64}}, act + ", layout: bhnd, offset: 1048571", true);
    add({1, 2, 33, 64}, {{2, 64}, CaseInputKind::matrix}, act + ", layout: bhnd, offset: 1048543", true);
  }
  return cases;
}

}  // namespace

Operator lrpe_cosine_operator() {
  return {.name = "lrpe_cosine",
          .inputs = {{.name = "x"}, {.name = "theta", .kind = InputKind::full_precision}},
          .outputs = {"y"},
          .make = make_lrpe_cosine,
          .cases = lrpe_cosine_cases};
}

}  // namespace heddle
