// Every operator of the registry against its unfused specification and against finite differences, on the CPU and,
// where there is one, on a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"
#include "tests/layers/operator_runner.h"

namespace heddle::test::operators_test {
namespace {

constexpr DType kAllDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

struct Tolerance {
  double relative = 0.0;  // of each element
  double largest = 0.0;   // of the largest element: what sums and cancellation leave
};

// One rounding to the storage dtype at the end, arithmetic in the accumulate type, of this relative error, before.
Tolerance tolerance_of(const OperatorCase& op_case, DType dtype, bool on_gpu, double arithmetic) {
  const double on_the_way = on_gpu && size_of(dtype) == 2 ? op_case.gpu_error : 0.0;
  // The reference rounds what is stored on the way, but may come out on the other side of a tie.
  return {1.01 * roundoff(dtype), op_case.tolerance * arithmetic + op_case.roundings * roundoff(dtype) + on_the_way};
}

Tolerance forward_tolerance(const OperatorCase& op_case, DType dtype, bool on_gpu) {
  return tolerance_of(op_case, dtype, on_gpu, dtype == DType::float64 ? 1e-13 : 64 * 0x1p-24);
}

Tolerance gradient_tolerance(const OperatorCase& op_case, DType dtype, bool on_gpu) {
  return tolerance_of(op_case, dtype, on_gpu, 128 * 0x1p-24);
}

double largest(const ReferenceTensor& tensor) {
  double result = 0.0;
  for (const double value : tensor.values) result = std::max(result, std::abs(value));
  return result;
}

void expect_near(const ReferenceTensor& found, const ReferenceTensor& wanted, Tolerance tolerance,
                 const std::string& what) {
  ASSERT_EQ(to_string(found.shape), to_string(wanted.shape)) << what;
  const double allowance = tolerance.largest * largest(wanted) + 1e-7 * (tolerance.relative > 1e-4);
  for (size_t i = 0; i < wanted.values.size(); ++i) {
    const double error = std::abs(found.values[i] - wanted.values[i]);
    ASSERT_TRUE(error <= allowance + tolerance.relative * std::abs(wanted.values[i]))
        << what << "[" << i << "]: found " << found.values[i] << ", wanted " << wanted.values[i] << ", error " << error
        << ", allowed " << allowance + tolerance.relative * std::abs(wanted.values[i]);
  }
}

void expect_near(const ReferenceTensors& found, const ReferenceTensors& wanted, Tolerance tolerance,
                 const std::string& what) {
  ASSERT_EQ(found.size(), wanted.size()) << what;
  for (const auto& [name, tensor] : wanted) {
    ASSERT_TRUE(found.contains(name)) << what << name;
    expect_near(found.at(name), tensor, tolerance, what + name);
  }
}

// Bit for bit, the sign of zero included.
void expect_same(const ReferenceTensors& found, const ReferenceTensors& wanted, const std::string& what) {
  for (const auto& [name, tensor] : wanted) {
    const auto& other = found.at(name).values;
    ASSERT_EQ(other.size(), tensor.values.size());
    for (size_t i = 0; i < other.size(); ++i) {
      ASSERT_TRUE(std::bit_cast<uint64_t>(other[i]) == std::bit_cast<uint64_t>(tensor.values[i]))
          << what << name << "[" << i << "]: " << other[i] << " and " << tensor.values[i];
    }
  }
}

void expect_same(const RunResult& found, const RunResult& wanted, const std::string& what) {
  expect_same(found.outputs, wanted.outputs, what + " output ");
  expect_same(found.gradients, wanted.gradients, what + " gradient of ");
}

bool is_real(const CaseInput& input) { return input.differentiate && is_real(input.kind); }

bool is_gpu(const Context& context) { return context.device().type == DeviceType::cuda; }

std::string text(DType dtype) { return std::string(name(dtype)) + " "; }

// --- What is checked of one case ---

void forward_matches_specification(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : kAllDTypes) {
    if (op_case.large && (dtype == DType::float64 || dtype == DType::float16)) continue;
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    const ReferenceTensors wanted = op_case.reference(parse_config(op_case.options), inputs, dtype);
    const RunResult found = run_case(context, op_case, inputs, {.dtype = dtype, .gradients = false});
    expect_near(found.outputs, wanted, forward_tolerance(op_case, dtype, is_gpu(context)), text(dtype));
    // Recording must not change what is computed.
    const RunResult recorded = run_case(context, op_case, inputs, {.dtype = dtype});
    expect_same(recorded.outputs, found.outputs, text(dtype) + "recorded ");
  }
}

void gradients_match_finite_differences(Context& context, const OperatorCase& op_case) {
  if (op_case.large) return;
  const ReferenceTensors values = case_inputs(op_case, DType::float64);
  std::vector<GradcheckInput> inputs;
  for (const CaseInput& input : op_case.inputs) {
    const DType dtype = case_dtype(input, DType::float64);
    Tensor tensor = Tensor::empty(context, input.shape, dtype);
    write_values(context, tensor, values.at(input.name).values);
    inputs.push_back({input.name, tensor, input.differentiate && is_floating(dtype)});
  }
  const OperatorFunction function = function_of(op_case);
  const GradcheckFunction checked = [&](Tape& tape, const std::vector<Variable>& variables) {
    return apply_case(op_case, function, tape, variables);
  };
  EXPECT_GRADIENTS_MATCH(context, checked, inputs);
}

// In float64, where those of the CPU are held to finite differences: thousands of small launches that a GPU is slow at.
void gradients_match_the_cpu(Context& context, const OperatorCase& op_case) {
  Context cpu(Device{}, {.threads = 1});
  const ReferenceTensors inputs = case_inputs(op_case, DType::float64);
  const RunResult wanted = run_case(cpu, op_case, inputs, {.dtype = DType::float64});
  expect_near(run_case(context, op_case, inputs, {.dtype = DType::float64}).gradients, wanted.gradients,
              {1e-13, 1e-13 * op_case.tolerance}, "gradient of ");
}

void gradients_match_float64(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    if (op_case.large && dtype == DType::float16) continue;
    const ReferenceTensors inputs = case_inputs(op_case, dtype, Grid::coarse);
    const RunResult wanted = run_case(context, op_case, inputs, {.dtype = DType::float64, .upstream = dtype});
    for (const bool wide : {false, true}) {
      const RunResult found =
          run_case(context, op_case, inputs, {.dtype = dtype, .upstream = dtype, .wide_parameters = wide});
      expect_near(found.gradients, wanted.gradients, gradient_tolerance(op_case, dtype, is_gpu(context)),
                  text(dtype) + (wide ? "wide gradient of " : "gradient of "));
    }
  }
}

// A GPU takes another path where rows of gradients do not allow whole vectors. There a kernel that reads what it adds
// to cuts a sum over rows in other places, so that more than the addition is rounded.
void gradients_are_added(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    for (const auto& [wide, parts] : {std::pair{false, false}, {false, true}, {true, false}, {true, true}}) {
      RunOptions options{.dtype = dtype, .parts = parts, .wide_parameters = wide};
      const RunResult fresh = run_case(context, op_case, inputs, options);
      options.add = true;
      const RunResult added = run_case(context, op_case, inputs, options);
      for (const CaseInput& input : op_case.inputs) {
        if (!fresh.gradients.contains(input.name)) continue;
        const bool is_parameter = input.kind == CaseInputKind::parameter || input.kind == CaseInputKind::matrix;
        const DType own = case_dtype(input, dtype);
        ReferenceTensor wanted = old_gradient(op_case, input, wide && is_parameter ? accumulate_type(own) : own);
        for (size_t i = 0; i < wanted.values.size(); ++i) wanted.values[i] += fresh.gradients.at(input.name).values[i];
        const double rounding = (parts && is_gpu(context) ? 16 : 2) * roundoff(dtype);
        expect_near(added.gradients.at(input.name), wanted, {rounding, rounding},
                    text(dtype) + "added gradient of " + input.name + (parts ? ", a part" : ""));
      }
    }
  }
}

// The same bits on the CPU. A GPU takes another path where addresses do not allow whole vectors, with another order of
// summation: there the same but for rounding.
void views_give_the_same(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    const auto compare = [&](const RunResult& found, const RunResult& wanted, const std::string& what) {
      if (!is_gpu(context)) return expect_same(found, wanted, what);
      // Both sides are rounded.
      const Tolerance forward = forward_tolerance(op_case, dtype, true),
                      backward = gradient_tolerance(op_case, dtype, true);
      expect_near(found.outputs, wanted.outputs, {2 * forward.relative, 2 * forward.largest}, what + " output ");
      expect_near(found.gradients, wanted.gradients, {2 * backward.relative, 2 * backward.largest},
                  what + " gradient of ");
    };
    const RunResult dense = run_case(context, op_case, inputs, {.dtype = dtype});
    const RunResult strided = run_case(context, op_case, inputs, {.dtype = dtype, .strided = true});
    compare(strided, dense, text(dtype) + "views");
    const RunResult parts = run_case(context, op_case, inputs, {.dtype = dtype, .parts = true});
    compare(parts, dense, text(dtype) + "parts");
    const RunResult added = run_case(context, op_case, inputs, {.dtype = dtype, .add = true});
    const RunResult both = run_case(context, op_case, inputs, {.dtype = dtype, .strided = true, .add = true});
    compare(both, added, text(dtype) + "views, added,");
  }
}

// Inside a model inputs are no leaves: their gradients may be shared, and written over those of the outputs.
void inner_values_give_the_same(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    const RunResult leaves = run_case(context, op_case, inputs, {.dtype = dtype});
    expect_same(run_case(context, op_case, inputs, {.dtype = dtype, .inner = true}), leaves, text(dtype) + "inner");
  }
}

void repeats_give_the_same_bits(Context& context, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    const RunResult first = run_case(context, op_case, inputs, {.dtype = dtype});
    expect_same(run_case(context, op_case, inputs, {.dtype = dtype}), first, text(dtype) + "repeat");
  }
}

void threads_give_the_same_bits(const OperatorCase& op_case) {
  const ReferenceTensors inputs = case_inputs(op_case, DType::float32);
  Context one(Device{}, {.threads = 1});
  const RunResult wanted = run_case(one, op_case, inputs, {.dtype = DType::float32});
  for (const int threads : {2, 3}) {
    Context several(Device{}, {.threads = threads});
    expect_same(run_case(several, op_case, inputs, {.dtype = DType::float32}), wanted, "threads");
  }
}

// No rows: nothing to compute, and gradients of parameters that are 0 and not what was there.
void empty_batches_work(Context& context, const OperatorCase& op_case) {
  const OperatorCase empty = without_batch(op_case);
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const RunResult result = run_case(context, empty, case_inputs(empty, dtype), {.dtype = dtype});
    for (const auto& [name, gradient] : result.gradients) {
      for (const double value : gradient.values) ASSERT_EQ(value, 0.0) << "gradient of " << name;
    }
  }
}

void meta_counts_the_same_bytes(Device device, const OperatorCase& op_case) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    Context real(device, {.threads = 1}), meta({DeviceType::meta}, {.threads = 1});
    const ReferenceTensors inputs = case_inputs(op_case, dtype);
    for (Context* context : {&real, &meta}) {
      run_case(*context, op_case, inputs, {.dtype = dtype, .poison = false});
      EXPECT_EQ(context->allocator().stats().allocated.current, 0u);
    }
    EXPECT_EQ(meta.allocator().stats().allocated.peak, real.allocator().stats().allocated.peak);
    EXPECT_EQ(meta.allocator().stats().allocations, real.allocator().stats().allocations);
  }
}

// The gradients of the leaves of a case, of which `second` is the same leaf as `first` when `shared`, and has its
// values in any case.
ReferenceTensors leaf_gradients(Context& context, const OperatorCase& op_case, DType dtype, const CaseInput& first,
                                const CaseInput& second, bool shared) {
  const ReferenceTensors numbers = case_inputs(op_case, dtype);
  std::map<std::string, Gradient> leaves;
  Tape tape(context);
  tape.allow_unused_leaves();
  NamedVariables inputs;
  for (const CaseInput& input : op_case.inputs) {
    const bool is_second = input.name == second.name;
    if (shared && is_second) {
      inputs[input.name] = inputs.at(first.name);
      continue;
    }
    const Tensor value = Tensor::empty(context, input.shape, case_dtype(input, dtype));
    write_values(context, value, numbers.at(is_second ? first.name : input.name).values);
    inputs[input.name] = is_real(input) ? tape.leaf(value, leaves[input.name], input.name) : tape.constant(value);
  }
  std::vector<Tape::Root> roots;
  for (const auto& [name, output] : function_of(op_case)(tape, inputs)) {
    if (!output.requires_grad()) continue;
    const Tensor upstream = Tensor::empty(context, output.shape(), output.dtype());
    const CaseInput as_input{.name = name, .shape = output.shape()};
    write_values(context, upstream, draw_numbers(op_case, "d_" + name, as_input, output.dtype()).values);
    roots.push_back({output, upstream});
  }
  tape.backward(std::move(roots));
  ReferenceTensors result;
  for (const auto& [name, leaf] : leaves) {
    if (leaf.written) result[name] = {leaf.tensor.shape(), read_values(context, leaf.tensor)};
  }
  return result;
}

// One value given as two inputs gets the sum of both gradients: a node writes its gradients in the order in which it
// asked for their destinations, and the second is added to the first.
void one_value_as_two_inputs_gets_the_sum(Context& context, const OperatorCase& op_case) {
  if (op_case.large) return;
  for (const CaseInput& first : op_case.inputs) {
    for (const CaseInput& second : op_case.inputs) {
      if (&first >= &second || !is_real(first) || !is_real(second) || first.shape != second.shape) continue;
      for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
        if (case_dtype(first, dtype) != case_dtype(second, dtype)) continue;
        const ReferenceTensors apart = leaf_gradients(context, op_case, dtype, first, second, false);
        if (!apart.contains(first.name) || !apart.contains(second.name)) continue;
        ReferenceTensor wanted = apart.at(first.name);
        for (size_t i = 0; i < wanted.values.size(); ++i) wanted.values[i] += apart.at(second.name).values[i];
        const double rounding = std::max(1e-12, 4 * roundoff(dtype));
        expect_near(leaf_gradients(context, op_case, dtype, first, second, true).at(first.name), wanted,
                    {rounding, rounding},
                    text(dtype) + "one value as " + first.name + " and " + second.name + ": its gradient");
      }
    }
  }
}

// Inference keeps nothing: when the outputs are gone, so is all memory but that of the inputs.
void inference_keeps_nothing(Device device, const OperatorCase& op_case) {
  Context context(device, {.threads = 1});
  CachingAllocator& allocator = context.allocator();
  Tape tape(context, Tape::Mode::inference);
  NamedVariables inputs;
  const ReferenceTensors numbers = case_inputs(op_case, DType::float32);
  for (const CaseInput& input : op_case.inputs) {
    const Tensor value = Tensor::empty(context, input.shape, case_dtype(input, DType::float32));
    write_values(context, value, numbers.at(input.name).values);
    inputs[input.name] = tape.constant(value);
  }
  const size_t before = allocator.stats().allocated.current;
  NamedVariables outputs = function_of(op_case)(tape, inputs);
  size_t held = 0;  // by outputs that are not inputs themselves
  for (const auto& named : outputs) {
    const Variable& output = named.second;
    const bool is_input = std::any_of(inputs.begin(), inputs.end(), [&](const auto& input) {
      return input.second.value.shares_storage_with(output.value);
    });
    const size_t bytes = static_cast<size_t>(output.value.numel()) * size_of(output.dtype());
    if (!is_input) held += std::max<size_t>((bytes + 511) / 512 * 512, 512);
  }
  const std::string advice = " when nothing is recorded: layers/ops/" + op_case.op + ".cc must return before it saves";
  EXPECT_EQ(allocator.stats().allocated.current, before + held)
      << op_case.op << " keeps more than its outputs" << advice;
  outputs.clear();
  EXPECT_EQ(allocator.stats().allocated.current, before) << op_case.op << " keeps its outputs" << advice;
}

// --- Suites: one test for each operator and check ---

// All cases of an operator, or of the many small ones every tenth; the first is always among them.
enum class Cases { all, every_tenth_small };

template <class Check>
void for_each_case(Device device, const std::string& op, const Check& check, Cases wanted = Cases::all) {
  int checked = 0, small = 0;
  for (const OperatorCase& op_case : built_in_registry().find(op).cases_on(device.type)) {
    if (wanted == Cases::every_tenth_small && !op_case.large && small++ % 10 != 0) continue;
    SCOPED_TRACE(op_case.name);
    check(op_case);
    ++checked;
    if (::testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(checked + (device.type == DeviceType::cuda), 0) << op << " has no cases: add some in layers/operators";
}

class OperatorSuite : public ::testing::TestWithParam<std::string> {
 protected:
  using Check = void (*)(Context&, const OperatorCase&);

  void run(Device device, Check check) {
    Context context(device, {.threads = 1});
    for_each_case(device, GetParam(), [&](const OperatorCase& op_case) { check(context, op_case); });
  }
};

class Operators : public OperatorSuite {};
class OperatorsThreaded : public OperatorSuite {};
class OperatorsGpu : public OperatorSuite {
 protected:
  static constexpr Device kDevice{DeviceType::cuda};

  void SetUp() override {
    try {
      Context context(kDevice);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

TEST_P(Operators, ForwardMatchesSpecification) { run({}, forward_matches_specification); }
TEST_P(Operators, GradientsMatchFiniteDifferences) { run({}, gradients_match_finite_differences); }
TEST_P(Operators, GradientsMatchFloat64) { run({}, gradients_match_float64); }
TEST_P(Operators, GradientsAreAdded) { run({}, gradients_are_added); }
TEST_P(Operators, ViewsGiveTheSame) { run({}, views_give_the_same); }
TEST_P(Operators, InnerValuesGiveTheSame) { run({}, inner_values_give_the_same); }
TEST_P(Operators, RepeatsGiveTheSameBits) { run({}, repeats_give_the_same_bits); }
TEST_P(Operators, EmptyBatchesWork) { run({}, empty_batches_work); }
TEST_P(Operators, MetaCountsTheSameBytes) {
  for_each_case({}, GetParam(), [](const OperatorCase& op_case) { meta_counts_the_same_bytes({}, op_case); });
}

TEST_P(Operators, OneValueAsTwoInputsGetsTheSum) { run({}, one_value_as_two_inputs_gets_the_sum); }
TEST_P(Operators, InferenceKeepsNothing) {
  for_each_case({}, GetParam(), [](const OperatorCase& op_case) { inference_keeps_nothing({}, op_case); });
}

TEST_P(OperatorsThreaded, ThreadsGiveTheSameBits) {
  for_each_case({}, GetParam(), threads_give_the_same_bits, Cases::every_tenth_small);
}

TEST_P(OperatorsGpu, CasesWithoutAKernelAreRefused) {
  Context context(kDevice);
  for (const OperatorCase& op_case : built_in_registry().find(GetParam()).cases()) {
    if (!op_case.cpu_only) continue;
    SCOPED_TRACE(op_case.name);
    try {
      run_case(context, op_case, case_inputs(op_case, DType::float32), {.dtype = DType::float32});
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::EndsWith("has no CUDA kernel; run it with --device cpu"));
    }
  }
}
TEST_P(OperatorsGpu, ForwardMatchesSpecification) { run(kDevice, forward_matches_specification); }
TEST_P(OperatorsGpu, GradientsMatchTheCpu) { run(kDevice, gradients_match_the_cpu); }
TEST_P(OperatorsGpu, GradientsMatchFloat64) { run(kDevice, gradients_match_float64); }
TEST_P(OperatorsGpu, GradientsAreAdded) { run(kDevice, gradients_are_added); }
TEST_P(OperatorsGpu, ViewsGiveTheSame) { run(kDevice, views_give_the_same); }
TEST_P(OperatorsGpu, InnerValuesGiveTheSame) { run(kDevice, inner_values_give_the_same); }
TEST_P(OperatorsGpu, RepeatsGiveTheSameBits) { run(kDevice, repeats_give_the_same_bits); }
TEST_P(OperatorsGpu, EmptyBatchesWork) { run(kDevice, empty_batches_work); }
TEST_P(OperatorsGpu, MetaCountsTheSameBytes) {
  for_each_case(kDevice, GetParam(), [](const OperatorCase& op_case) { meta_counts_the_same_bytes(kDevice, op_case); });
}

TEST_P(OperatorsGpu, OneValueAsTwoInputsGetsTheSum) { run(kDevice, one_value_as_two_inputs_gets_the_sum); }
TEST_P(OperatorsGpu, InferenceKeepsNothing) {
  for_each_case(kDevice, GetParam(), [](const OperatorCase& op_case) { inference_keeps_nothing(kDevice, op_case); });
}

HEDDLE_FOR_OPERATORS(Operators);
HEDDLE_FOR_OPERATORS(OperatorsThreaded);
HEDDLE_FOR_OPERATORS(OperatorsGpu);

TEST(OperatorTable, CasesHaveNamesOfTheirOwnAReferenceAndKnownInputs) {
  std::set<std::string> names;
  for (const Operator& op : built_in_registry().operators()) {
    std::set<std::string> reached;
    for (const OperatorCase& op_case : op.cases()) {
      EXPECT_EQ(op_case.op, op.name);
      EXPECT_TRUE(names.insert(op_case.name).second) << op_case.name;
      EXPECT_TRUE(op_case.reference) << op_case.name << ": the case has no reference";
      for (const CaseInput& input : op_case.inputs) reached.insert(input.name);
    }
    for (const InputSpec& input : op.inputs) {
      EXPECT_TRUE(reached.contains(input.name)) << op.name << ": no case gives the input " << input.name;
    }
  }
}

TEST(OperatorTable, NamesTheNearest) {
  try {
    built_in_registry().find("rms_nrom");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "no operator is called 'rms_nrom'; did you mean 'rms_norm'?");
  }
}

}  // namespace
}  // namespace heddle::test::operators_test
