// heddle gradcheck [LAYER | CONFIG]
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/dtype.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "tools/check_gradients.h"
#include "tools/list_cases.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string subject;  // "": all operators
  std::optional<DType> dtype;
  DeviceOptions device;
  bool list = false;
};

// Prints a block of the table and says whether all of it is right.
bool show(const std::string& title, const GradcheckReport& report, DType dtype) {
  fmt::print("{}\n", title);
  if (!report.deterministic) fmt::print("  WRONG a second backward pass gave different bits\n");
  if (!report.accumulates) fmt::print("  WRONG a backward pass onto existing gradients did not add to them\n");
  if (!report.composes) fmt::print("  WRONG other gradients when the inputs are no leaves\n");
  const char* reference = dtype == DType::float64 ? "numeric" : "float64";
  for (const GradcheckInputReport& input : report.inputs) {
    fmt::print("  {} {:<28} worst {:>6} of {:<6} analytic {:>14.7g}  {} {:>14.7g}  error {:.1e}\n",
               input.failures == 0 ? "ok   " : "WRONG", input.name, input.worst_element, input.checked,
               unsigned_nan(input.analytic), reference, unsigned_nan(input.numeric),
               unsigned_nan(input.relative_error));
  }
  return report.passed;
}

// "rms_norm {eps: 1.0e-3}  x (3, 6), weight (6)"
std::string title_of(const OperatorCase& operator_case) {
  std::string shapes;
  for (const CaseInput& input : operator_case.inputs) {
    shapes += fmt::format("{}{} {}", shapes.empty() ? "" : ", ", input.name, to_string(input.shape));
  }
  return fmt::format("{} {}  {}", operator_case.op, operator_case.options, shapes);
}

int check_operators(Context& context, const Registry& registry, const std::string& subject, DType dtype) {
  int checked = 0, wrong = 0;
  for (const Operator& op : registry.operators()) {
    if (!subject.empty() && op.name != subject) continue;
    int cases = 0;
    for (const OperatorCase& operator_case : op.cases()) {
      if (operator_case.large) continue;  // finite differences of every element would take long
      const GradcheckReport report = check_operator_gradients(context, op, operator_case, dtype);
      wrong += show(title_of(operator_case), report, dtype) ? 0 : 1;
      ++cases;
    }
    check(cases > 0, "operator {} has no small case to be checked by: see Operator::cases", op.name);
    checked += cases;
  }
  fmt::print("{} cases, {} wrong\n", checked, wrong);
  return wrong == 0 ? kDone : kFailed;
}

int check_model(Context& context, const Registry& registry, const std::string& path, DType dtype) {
  const TrainConfig config = load_train_config(path, {}, registry);
  return show(path, check_model_gradients(context, config, dtype), dtype) ? kDone : kFailed;
}

int run(const Options& options, const Registry& registry) {
  if (options.list) {
    fmt::print("{}\n", cases_as_json(registry));
    return kDone;
  }
  const DType dtype = options.dtype.value_or(DType::float64);
  const std::vector<std::string> names = registry.operator_names();
  const bool is_operator =
      options.subject.empty() || std::find(names.begin(), names.end(), options.subject) != names.end();
  if (!is_operator && !std::filesystem::exists(options.subject)) {
    const std::string hint = did_you_mean(options.subject, names);
    throw UsageError(fmt::format("'{}' is neither an operator nor a config{}", options.subject,
                                 hint.empty() ? "; operators: " + join_names(names) : hint));
  }
  DeviceOptions device = options.device;
  if (device.threads == 0) device.threads = 1;  // the cases are small: threads would wait for each other
  const auto context = open_device(device);
  return is_operator ? check_operators(*context, registry, options.subject, dtype)
                     : check_model(*context, registry, options.subject, dtype);
}

}  // namespace

Run add_gradcheck(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  command.add_option("subject", options->subject, "An operator, or the config of a model; none: all operators")
      ->option_text("LAYER|CONFIG");
  add_dtype_option(command, options->dtype,
                   "float64: against finite differences; another: against float64 at the same rounded inputs");
  add_device_options(command, options->device);
  command.add_flag("--list", options->list, "Print the cases of all operators as JSON, and check nothing");
  command.footer("Exit code 1 when a gradient is wrong. docs/run_layer.md says what is compared, and how closely.");
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
