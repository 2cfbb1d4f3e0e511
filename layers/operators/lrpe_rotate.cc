#include "layers/ops/lrpe_rotate.h"

#include <cmath>
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

OperatorFunction make_lrpe_rotate(const ConfigNode& node) {
  LrpeRotateOptions options;
  ConfigFields fields(node);
  describe_lrpe_activation(fields, options.act, options.softmax);
  describe_pairing(fields, options.pairing);
  fields.choice("layout", options.layout, layout_choices());
  fields.field("offset", options.offset);
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", lrpe_rotate(tape, inputs.at("x"), inputs.at("theta"), options)}};
  };
}

ReferenceTensors lrpe_rotate_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor x = host_input(inputs, "x"), theta = host_input(inputs, "theta");
  const HeadsPlaces places(x.shape, options);
  const bool interleaved = options.get<std::string>("pairing", "half") == "interleaved";
  const int64_t offset = options.get<int64_t>("offset", 0);
  const int64_t dim = x.shape[-1], half = dim / 2, angles = theta.shape[1];
  ReferenceTensor y = host_zeros(x.shape);
  for (int64_t b = 0; b < places.batch; ++b) {
    for (int64_t n = 0; n < places.length; ++n) {
      for (int64_t h = 0; h < places.heads; ++h) {
        const int64_t row = theta.shape[0] == 1 ? 0 : h;
        for (int64_t k = 0; k < half; ++k) {
          const double phi = k < angles ? static_cast<double>(n + offset) * theta[row * angles + k] : 0.0;
          const int64_t i = interleaved ? 2 * k : k, j = interleaved ? 2 * k + 1 : k + half;
          const double first = lrpe_activation(x, options, places, b, n, h, i);
          const double second = lrpe_activation(x, options, places, b, n, h, j);
          y[places.at(b, n, h, i, dim)] = first * std::cos(phi) - second * std::sin(phi);
          y[places.at(b, n, h, j, dim)] = first * std::sin(phi) + second * std::cos(phi);
        }
      }
    }
  }
  return {{"y", y}};
}

// The cross of options on one small shape, then shapes.
std::vector<OperatorCase> lrpe_rotate_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& shape, const ThetaInput& theta, const std::string& options, bool large = false) {
    cases.push_back(lrpe_case("lrpe_rotate", lrpe_rotate_reference, shape, theta, options, large));
  };
  for (const std::string& act : lrpe_acts()) {
    for (const std::string pairing : {"half", "interleaved"}) {
      for (const std::string layout : {"bnhd", "bhnd"}) {
        const std::string options = fmt::format("{}, pairing: {}, layout: {}, offset: 3", act, pairing, layout);
        const Shape shape = layout == "bnhd" ? Shape{2, 3, 2, 6} : Shape{2, 2, 3, 6};
        for (const bool learned : {true, false}) {
          for (const Shape& theta : {Shape{2, 3}, Shape{1, 3}, Shape{2, 1}}) {
            add(shape, {.shape = theta, .learned = learned}, options);
          }
          add(shape, {.shape = {2, 3}, .kind = CaseInputKind::matrix, .learned = learned}, options);
        }
      }
    }
    for (const int64_t dim : {2, 6, 48, 130, 256}) {
      add({2, 3, dim}, {{1, dim / 2}}, act, dim > 200);
      add({1, 1, 7, dim}, {{7, 1}}, act, dim > 200);
    }
    add({2, 3, 2, 6}, {.shape = {2, 3}, .scale = 0.0}, act + ", offset: 5");
    add({2, 3, 2, 6}, {.shape = {2, 3}, .learned = false, .scale = 1e10}, act);
    add({2, 3, 2, 64}, {.shape = {1, 32}, .scale = 1e11}, act + ", offset: 1000000", true);
    add({2, 33, 3, 96}, {{3, 48}}, act, true);
    add({2, 33, 3, 96}, {{1, 40}, CaseInputKind::matrix}, act, true);
    add({1, 300, 2, 64}, {{1, 32}}, act + ", pairing: interleaved", true);
    add({1, 2, 2050}, {{1, 1025}}, act, true);
    add({1, 2, 5, 64}, {{2, 20}}, act + ", layout: bhnd, offset: 1048571", true);
    add({1, 2, 33, 64}, {{2, 32}, CaseInputKind::matrix}, act + ", layout: bhnd, offset: 1048543", true);
  }
  return cases;
}

}  // namespace

Operator lrpe_rotate_operator() {
  return {.name = "lrpe_rotate",
          .inputs = {{.name = "x"}, {.name = "theta", .kind = InputKind::full_precision}},
          .outputs = {"y"},
          .make = make_lrpe_rotate,
          .cases = lrpe_rotate_cases};
}

}  // namespace heddle
