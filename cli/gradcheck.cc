// heddle gradcheck [LAYER | CONFIG]
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/dtype.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/progress.h"
#include "core/config/config_scalar.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "tools/check_gradients.h"
#include "tools/list_cases.h"
#include "tools/own_case.h"

namespace heddle::cli {
namespace {

struct GradcheckArguments {
  std::string subject;  // "": all operators
  std::optional<DType> dtype;
  std::vector<std::string> overrides;  // of the config
  std::string own_options;             // YAML
  std::vector<std::pair<std::string, Shape>> shapes;
  DeviceOptions device;
  bool list = false;
};

// What was found so far, over all blocks of the table.
struct Tally {
  int checked = 0, wrong = 0, undecided = 0;
  Progress progress = {};

  void add(Verdict verdict) {
    ++checked;
    wrong += verdict == Verdict::wrong ? 1 : 0;
    undecided += verdict == Verdict::undecided ? 1 : 0;
  }
  int exit_code() const { return wrong > 0 ? kFailed : undecided > 0 ? kUndecided : kDone; }
};

// Tells of the derivatives of one block of the table.
GradcheckProgress progress_of(const std::string& title, Progress& progress) {
  return [&progress, title](int64_t checked, int64_t all) {
    progress.tell([&](double) { return fmt::format("{}: {} of {} derivatives", title, checked, all); });
  };
}

// Prints a block of the table.
void show(const std::string& title, const GradcheckReport& report, DType dtype, Tally& tally) {
  tally.progress.clear();
  fmt::print("{}\n", title);
  std::istringstream faults(report.faults());
  for (std::string fault; std::getline(faults, fault);) fmt::print("  WRONG     {}\n", fault);
  const char* reference = dtype == DType::float64 ? "numeric" : "float64";
  for (const GradcheckInputReport& input : report.inputs) {
    if (input.checked == 0) {
      fmt::print("  {:<9} {:<28} no elements\n", to_string(input.verdict()), input.name);
      continue;
    }
    fmt::print("  {:<9} {:<28} worst {:>6} of {:<6} analytic {:>14.7g}  {} {:>14.7g} +- {:.1e}\n",
               to_string(input.verdict()), input.name, input.worst_element, input.checked, unsigned_nan(input.analytic),
               reference, unsigned_nan(input.numeric), unsigned_nan(input.error));
  }
  tally.add(report.verdict());
}

// "rms_norm {eps: 1.0e-3}  x (3, 6), weight (6)  cuda"
std::string title_of(const OperatorCase& operator_case, Context& context) {
  std::string shapes;
  for (const CaseInput& input : operator_case.inputs) {
    shapes += fmt::format("{}{} {}", shapes.empty() ? "" : ", ", input.name, to_string(input.shape));
  }
  return fmt::format("{} {}  {}  {}", operator_case.op, operator_case.options, shapes, to_string(context.device()));
}

void check_operators(Context& context, const Registry& registry, const GradcheckArguments& options, DType dtype,
                     Tally& tally) {
  for (const Operator& op : registry.operators()) {
    if (!options.subject.empty() && op.name != options.subject) continue;
    std::vector<OperatorCase> cases;
    if (options.shapes.empty()) {
      cases = op.cases_on(context.device().type);
      std::erase_if(cases, [](const OperatorCase& operator_case) { return operator_case.large; });
      check(!cases.empty(), "operator {} has no small case to be checked by: see Operator::cases", op.name);
    } else {
      cases.push_back(own_case(op, options.own_options, options.shapes));
    }
    for (const OperatorCase& operator_case : cases) {
      const GradcheckReport report =
          check_operator_gradients(context, op, operator_case, dtype, progress_of(op.name, tally.progress));
      show(title_of(operator_case, context), report, dtype, tally);
    }
  }
}

void check_model(Context& context, const TrainConfig& config, const std::string& path, DType dtype, Tally& tally) {
  const GradcheckReport report = check_model_gradients(context, config, dtype, progress_of(path, tally.progress));
  show(fmt::format("{}  {}", path, to_string(context.device())), report, dtype, tally);
}

// Without --device all devices there are: a CPU, and the first GPU.
std::vector<std::unique_ptr<Context>> open_devices(DeviceOptions options) {
  std::vector<std::unique_ptr<Context>> contexts;
  contexts.push_back(open_device(options));
  if (options.device == "auto" && contexts.front()->device().type != DeviceType::cpu) {
    options.device = "cpu";
    contexts.insert(contexts.begin(), open_device(options));
  }
  return contexts;
}

int run(const GradcheckArguments& options, const Registry& registry) {
  const DType dtype = options.dtype.value_or(DType::float64);
  const std::vector<std::string> names = registry.operator_names();
  const bool is_operator = std::find(names.begin(), names.end(), options.subject) != names.end();
  const bool is_all = options.subject.empty();
  if (!is_all && !is_operator && !std::filesystem::exists(options.subject)) {
    std::string hint = did_you_mean(options.subject, names);
    if (hint.empty()) {
      hint = fmt::format("; mixers and channel layers are checked by the config of a model; operators: {}",
                         join_names(names));
    }
    throw UsageError(fmt::format("'{}' is neither an operator nor a config{}", options.subject, hint));
  }
  if (options.list) {
    if (!is_all && !is_operator) throw UsageError(fmt::format("--list: '{}' is no operator", options.subject));
    fmt::print("{}\n", cases_as_json(registry, options.subject));
    return kDone;
  }
  if (!is_operator && !options.shapes.empty()) throw UsageError("--shape: found no operator that the shapes are for");
  if (options.shapes.empty() && !options.own_options.empty()) {
    throw UsageError("--options: found no --shape; a case of one's own needs the shape of each input");
  }
  if (!options.overrides.empty() && (is_all || is_operator)) throw UsageError("--set: found no config that it is for");
  std::optional<TrainConfig> config;
  if (!is_all && !is_operator) config = load_train_config(options.subject, options.overrides, registry);
  Tally tally;
  for (const auto& context : open_devices(options.device)) {
    if (config) {
      check_model(*context, *config, options.subject, dtype, tally);
    } else {
      check_operators(*context, registry, options, dtype, tally);
    }
  }
  fmt::print("{} case{}, {} wrong, {} undecided\n", tally.checked, tally.checked == 1 ? "" : "s", tally.wrong,
             tally.undecided);
  return tally.exit_code();
}

// "x=2x3x8"; "x=" is a scalar.
std::pair<std::string, Shape> shape_of(const std::string& text) {
  constexpr int64_t kTooLarge = 1'000'000'000'000;
  const size_t equals = text.find('=');
  const std::string what = fmt::format("--shape: found '{}', expected NAME=AxBxC", text);
  if (equals == std::string::npos || equals == 0) throw CLI::ValidationError(what);
  Shape shape;
  std::istringstream extents(text.substr(equals + 1));
  for (std::string extent; std::getline(extents, extent, 'x');) {
    const std::optional<int64_t> number = number_of<int64_t>(extent);
    if (!number || *number < 0 || *number >= kTooLarge || shape.rank() == kMaxRank) throw CLI::ValidationError(what);
    shape.append(*number);
  }
  if (text.ends_with('x')) throw CLI::ValidationError(what);
  return {text.substr(0, equals), shape};
}

}  // namespace

Run add_gradcheck(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<GradcheckArguments>();
  find_configs_and_runs(
      command.add_option("subject", options->subject, "An operator, a config or a run folder; none: all operators"),
      registry.operator_names())
      ->option_text("OPERATOR|CONFIG");
  command
      .add_option("--options", options->own_options,
                  "Options of the operator for a case of one's own, as {eps: 1.0e-3}")
      ->option_text("YAML");
  command
      .add_option_function<std::vector<std::string>>(
          "--shape",
          [options](const std::vector<std::string>& texts) {
            options->shapes.clear();
            for (const std::string& text : texts) options->shapes.push_back(shape_of(text));
          },
          "Shape of an input of that case, as x=2x3x8; repeatable")
      ->allow_extra_args(false)
      ->option_text("NAME=AxB...");
  add_overrides(command, options->overrides, "seed=2");
  add_dtype_option(command, options->dtype,
                   "float64: against differences; another: against float64 at the same rounded inputs");
  options->device.threads = 1;  // the cases are small: threads would wait for each other
  add_device_options(command, options->device);
  CLI::Option* const list = command.add_flag("--list", options->list,
                                             "Print the cases of the operator, or of all, as JSON, and check nothing");
  for (const char* other : {"--options", "--shape", "--set", "--dtype", "--device", "--threads"}) list->excludes(other);
  set_manual(command,
             {.description = "Compares the gradients of operators, or of all parameters of a config's model, with "
                             "derivatives taken from their values. Cases of operators are checked on the CPU and, "
                             "where there is one, on a GPU, unless --device names one of them.",
              .examples = {{"heddle gradcheck", "all cases of all operators"},
                           {"heddle gradcheck rms_norm --options '{eps: 0.1}' --shape x=3x5", "a case of one's own"},
                           {"heddle gradcheck configs/toy_copy.yaml --set model.dim=16", "the parameters of a model"}},
              .exit_codes = {{kFailed, "a gradient is wrong, or failure at run time"},
                             {kUndecided, "none is wrong, and one is undecided"}},
              .page = "docs/gradcheck.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
