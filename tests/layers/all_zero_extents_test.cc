// Every extent of every input of every operator set to 0: together with others of the same extent, and apart from them.
// An operator computes what there is to compute, or says why it does not; it never reads or divides by what is not
// there.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/layers/on_devices.h"
#include "tests/layers/operator_runner.h"

namespace heddle::test::all_zero_extents_test {
namespace {

// One dimension of one input of a case.
struct Place {
  size_t input;
  int dim;
};

OperatorCase with_extents(OperatorCase op_case, const std::vector<Place>& places, int64_t factor, int64_t more = 0) {
  for (const Place& place : places) {
    int64_t& extent = op_case.inputs[place.input].shape[place.dim];
    extent = factor * extent + more;
  }
  return op_case;
}

struct Outcome {
  std::optional<RunResult> result;
  std::string refusal;
};

Outcome outcome_of(Context& context, const OperatorCase& op_case, bool gradients) {
  try {
    const ReferenceTensors inputs = case_inputs(op_case, DType::float32);
    return {run_case(context, op_case, inputs, {.dtype = DType::float32, .gradients = gradients}), ""};
  } catch (const std::exception& error) {
    return {{}, error.what()};
  }
}

// All has been written, nothing is left of the NaN that memory is full of before.
void expect_finite(const ReferenceTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    for (const double value : tensor.values) ASSERT_TRUE(std::isfinite(value)) << name << " " << value;
  }
}

// Extents of 0 are taken only where extents twice as large are, or smaller by one where an input must not be longer
// than another: else shapes that contradict each other went through.
void check_extents(Context& context, const OperatorCase& op_case, const std::vector<Place>& places) {
  const OperatorCase none = with_extents(op_case, places, 0);
  std::string shapes;
  for (const CaseInput& input : none.inputs) shapes += input.name + " " + to_string(input.shape) + " ";
  SCOPED_TRACE(op_case.name + ": " + shapes);
  const Outcome found = outcome_of(context, none, true);
  if (!found.result) {
    ASSERT_TRUE(found.refusal.starts_with("[")) << found.refusal;
    return;
  }
  const Outcome twice = outcome_of(context, with_extents(op_case, places, 2), false);
  const Outcome smaller = outcome_of(context, with_extents(op_case, places, 1, -1), false);
  ASSERT_TRUE(twice.result || smaller.result) << "taken, but with twice the extents refused: " << twice.refusal;
  expect_finite(found.result->outputs);
  expect_finite(found.result->gradients);
}

void check_case(Context& context, const OperatorCase& op_case) {
  std::map<int64_t, std::vector<Place>> by_extent;
  for (size_t i = 0; i < op_case.inputs.size(); ++i) {
    const Shape& shape = op_case.inputs[i].shape;
    for (int dim = 0; dim < shape.rank(); ++dim) by_extent[shape[dim]].push_back({i, dim});
  }
  for (const auto& [extent, all] : by_extent) {
    if (extent == 0) continue;
    if (all.size() > 12) {  // too many subsets
      for (const Place& place : all) check_extents(context, op_case, {place});
      check_extents(context, op_case, all);
      continue;
    }
    for (size_t chosen = 1; chosen < size_t{1} << all.size(); ++chosen) {
      std::vector<Place> places;
      for (size_t i = 0; i < all.size(); ++i) {
        if ((chosen >> i & 1) != 0) places.push_back(all[i]);
      }
      check_extents(context, op_case, places);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Cases whose inputs have other names or ranks than those of the cases before, and every twentieth.
void check_operator(Context& context, const std::string& name) {
  std::set<std::string> kinds;
  int count = 0;
  for (const OperatorCase& op_case : built_in_registry().find(name).cases_on(context.device().type)) {
    if (op_case.large) continue;
    std::string kind;
    for (const CaseInput& input : op_case.inputs) kind += input.name + std::to_string(input.shape.rank()) + " ";
    if (!kinds.insert(kind).second && count++ % 20 != 0) continue;
    check_case(context, op_case);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

class AllZeroExtents : public ::testing::TestWithParam<std::string> {};
class AllZeroExtentsGpu : public ::testing::TestWithParam<std::string> {};

TEST_P(AllZeroExtents, GiveResultsOrErrors) {
  Context context(Device{}, {.threads = 1});
  check_operator(context, GetParam());
}

TEST_P(AllZeroExtentsGpu, GiveResultsOrErrors) {
  if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  Context context({DeviceType::cuda});
  check_operator(context, GetParam());
}

HEDDLE_FOR_OPERATORS(AllZeroExtents);
HEDDLE_FOR_OPERATORS(AllZeroExtentsGpu);

}  // namespace
}  // namespace heddle::test::all_zero_extents_test
