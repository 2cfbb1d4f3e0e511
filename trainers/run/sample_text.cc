#include "trainers/run/sample_text.h"

#include <cstdint>

#include "trainers/model/generate.h"

namespace heddle {

std::string sample_text(Context& context, const LanguageModel& model, const Tokenizer& tokenizer,
                        const TrainConfig& config, const std::function<bool()>& stop_requested) {
  const SampleConfig& sample = *config.trainer.sample;
  GenerateOptions options;
  options.tokens = sample.tokens;
  options.temperature = sample.temperature;
  options.seed = config.seed;
  options.cuda_graph = config.trainer.cuda_graph;
  options.stop_requested = stop_requested;
  if (config.data.pack) options.end = static_cast<int32_t>(config.data.separator);
  Utf8Printer printer;
  std::string written = printer.add(sample.prompt);
  generate(context, model, tokenizer, sample.prompt, options, [&](uint8_t byte) { written += printer.add(byte); });
  return written + printer.finish();
}

}  // namespace heddle
