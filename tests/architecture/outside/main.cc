// heddle's command line with an operator and a mixer more, and commands of its own that the test needs:
//   outside write-inputs FILE     x and d_y for `outside run-layer` with layer softcap
//   outside check-outputs FILE    whether y and d_x are those of softcap with cap 2
//   outside check-state           whether recall goes on from a state that was saved
#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "heddle/cli/command_line.h"
#include "heddle/core/config/config_load.h"
#include "heddle/core/io/safetensors.h"
#include "heddle/core/tensor/random.h"
#include "heddle/core/tensor/transfer.h"
#include "layers/module.h"

namespace {

using heddle::Context;
using heddle::DType;
using heddle::Tensor;

const std::vector<double> kX = {-9.0, -1.0, -0.25, 0.0, 0.5, 4.0};
const std::vector<double> kUpstream = {1.0, -2.0, 3.0, 0.5, 1.0, -1.0};
constexpr double kCap = 2.0;

int write_inputs(const std::string& path) {
  Context context;
  std::vector<heddle::NamedTensor> tensors;
  for (const auto& [name, values] : {std::pair{"x", kX}, std::pair{"d_y", kUpstream}}) {
    tensors.push_back({name, Tensor::empty(context, {2, 3}, DType::float32)});
    write_values(context, tensors.back().tensor, values);
  }
  heddle::write_safetensors(context, path, tensors);
  return 0;
}

int check_outputs(const std::string& path) {
  Context context;
  heddle::SafetensorsReader reader(path);
  const std::vector<double> y = read_values(context, reader.read(context, reader.at("y")));
  const std::vector<double> d_x = read_values(context, reader.read(context, reader.at("d_x")));
  for (size_t i = 0; i < kX.size(); ++i) {
    const double tanh = std::tanh(kX[i] / kCap);
    if (std::abs(y[i] - kCap * tanh) < 1e-6 && std::abs(d_x[i] - kUpstream[i] * (1.0 - tanh * tanh)) < 1e-6) continue;
    fmt::print("element {}: y {}, d_x {}\n", i, y[i], d_x[i]);
    return 1;
  }
  return 0;
}

// A text at once, and in two parts with a state that is saved and loaded between them.
int check_state() {
  Context context;
  heddle::ParameterSet parameters;
  const auto options = outside::make_recall_options();
  const heddle::ConfigNode config = heddle::parse_config("{heads: 2}");
  heddle::ConfigFields fields(config);
  options->describe(fields, {.dim = 8, .layers = 1});
  const auto mixer = options->make(heddle::ModuleBuilder(parameters), {.dim = 8});
  parameters.materialize(context, DType::float64, 1);
  const Tensor x = Tensor::empty(context, {1, 6, 8}, DType::float64);
  heddle::Random random(1, heddle::RandomStream::test);
  fill_normal(context, x, random, 0.0, 1.0);

  heddle::Tape tape(context, heddle::Tape::Mode::inference);
  const std::vector<double> whole = read_values(context, mixer->forward(tape, tape.constant(x), nullptr, {}).value);
  std::vector<double> parts;
  std::unique_ptr<heddle::MixerState> state = mixer->make_state();
  for (const auto& [begin, end] : {std::pair{0, 2}, std::pair{2, 6}}) {
    state = mixer->load_state(context, state->save(context));
    const Tensor part = x.slice(1, begin, end);
    const auto y = read_values(context, mixer->forward(tape, tape.constant(part), state.get(), {}).value);
    parts.insert(parts.end(), y.begin(), y.end());
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    if (std::abs(whole[i] - parts[i]) > 1e-12) return 1;
  }
  return whole.size() == parts.size() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "write-inputs") return write_inputs(argv[2]);
  if (command == "check-outputs") return check_outputs(argv[2]);
  if (command == "check-state") return check_state();

  heddle::Registry registry = heddle::built_in_registry();
  registry.add(outside::softcap_operator());
  registry.add_mixer("recall", outside::make_recall_options);
  return heddle::cli::run_command_line(argc, argv, registry);
}
