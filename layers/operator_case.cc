#include "layers/operator_case.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/element_types.h"
#include "core/tensor/random.h"

namespace heddle {
namespace {

Random random_for(const OperatorCase& operator_case, const std::string& name) {
  uint64_t seed = 14695981039346656037ull;  // FNV-1a, which is the same with every standard library
  for (const char letter : operator_case.name + "/" + name) {
    seed = (seed ^ static_cast<unsigned char>(letter)) * 1099511628211ull;
  }
  return Random(seed, RandomStream::test);
}

// The token that an option excludes; none of [0, range) where there is no such option.
int64_t excluded_token(const OperatorCase& operator_case, const CaseInput& input) {
  if (input.excluded_by.empty()) return input.range;
  return parse_config(operator_case.options, operator_case.name).get<int64_t>(input.excluded_by, input.range);
}

double draw(Random& random, const CaseInput& input, int64_t excluded) {
  if (!is_real(input.kind)) {
    const int64_t tokens = excluded < input.range ? input.range - 1 : input.range;
    const auto token = static_cast<int64_t>(random.next_below(static_cast<uint64_t>(tokens)));
    return static_cast<double>(token >= excluded ? token + 1 : token);
  }
  double value = 0.0;
  while (std::abs(value) < 1e-2) value = random.next_normal();
  if (input.kind == CaseInputKind::decay) return -std::abs(value) * input.scale;
  return value * input.scale + input.mean;
}

}  // namespace

void sort_rows(std::vector<double>& values, int64_t width) {
  for (auto row = values.begin(); row != values.end(); row += width) std::sort(row, row + width);
}

DType case_dtype(const CaseInput& input, DType dtype) {
  switch (input.kind) {
    case CaseInputKind::tokens:
    case CaseInputKind::segments:
      return DType::int32;
    case CaseInputKind::full_precision_parameter:
    case CaseInputKind::angle:
    case CaseInputKind::decay:
    case CaseInputKind::state:
      return accumulate_type(dtype);
    default:
      return dtype;
  }
}

ReferenceTensor draw_numbers(const OperatorCase& operator_case, const std::string& name, const CaseInput& input,
                             DType dtype) {
  Random random = random_for(operator_case, name);
  ReferenceTensor result{input.shape, std::vector<double>(static_cast<size_t>(numel(input.shape)))};
  const int64_t excluded = excluded_token(operator_case, input);
  for (double& value : result.values) value = round_to(dtype, draw(random, input, excluded));
  if (input.kind == CaseInputKind::segments) sort_rows(result.values, input.shape[-1]);
  return result;
}

ReferenceTensors draw_inputs(const OperatorCase& operator_case, DType dtype) {
  ReferenceTensors inputs;
  for (const CaseInput& input : operator_case.inputs) {
    inputs[input.name] = draw_numbers(operator_case, input.name, input, case_dtype(input, dtype));
  }
  return inputs;
}

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::float32:
      return static_cast<float>(value);
    case DType::bfloat16:
      return static_cast<float>(static_cast<bfloat16>(static_cast<float>(value)));
    case DType::float16:
      return static_cast<float>(static_cast<float16>(static_cast<float>(value)));
    default:
      return value;
  }
}

}  // namespace heddle
