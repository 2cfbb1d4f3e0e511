#include "tools/export_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <system_error>

#include "core/io/atomic_file.h"
#include "core/io/atomic_folder.h"
#include "core/io/json_text.h"
#include "core/runtime/allocator.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "tools/share_folders.h"
#include "trainers/model/language_model.h"
#include "trainers/model/retnet_names.h"
#include "trainers/run/loaded_model.h"
#include "trainers/run/run_tokenizer.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

// Keys of config.json by which an export is known again.
constexpr const char* kProgramKey = "trained_by";
constexpr const char* kStepKey = "step";

// Whether the folder is an earlier export: its config.json has what config_json() writes.
bool is_export(const fs::path& folder) {
  const fs::path path = folder / kModelConfigFile;
  if (!fs::is_regular_file(path)) return false;
  const OrderedJson config = OrderedJson::parse(read_file(path), nullptr, false);
  return config.is_object() && config.contains(kProgramKey) && config.contains(kStepKey);
}

// Whether write_weights() writes files of this name: "model.safetensors", its index,
// "model-00001-of-00003.safetensors".
bool is_weights_file(const std::string& name) {
  static const std::regex pattern(R"(model\.safetensors(\.index\.json)?|model-\d{5,}-of-\d{5,}\.safetensors)");
  return std::regex_match(name, pattern);
}

// Whether an export writes files of this name; others may be anybody's.
bool is_exported_name(const std::string& name) {
  return name == kModelConfigFile || name == kModelingFile || name == kLogitsFile || name == kTokenizerFile ||
         is_weights_file(name);
}

// The folder without symbolic links and a slash at its end, so that it is replaced itself.
fs::path place_of(const fs::path& folder) {
  std::error_code unreadable;
  const fs::path place = fs::weakly_canonical(folder, unreadable);
  if (unreadable) return folder;
  return place.has_filename() ? place : place.parent_path();
}

// The values of a config are numbers, true and false, or names.
OrderedJson to_json(const ConfigValue& value) {
  OrderedJson json;
  switch (value.kind) {
    case ConfigValue::Kind::null:
      return nullptr;
    case ConfigValue::Kind::scalar:
      if (!value.quoted) json = OrderedJson::parse(value.scalar, nullptr, false);
      return value.quoted || json.is_discarded() ? OrderedJson(value.scalar) : json;
    case ConfigValue::Kind::sequence:
      json = OrderedJson::array();
      for (const ConfigTree& item : value.items) json.push_back(to_json(*item));
      return json;
    case ConfigValue::Kind::map:
      json = OrderedJson::object();
      for (const ConfigEntry& entry : value.entries) json[entry.name] = to_json(*entry.value);
      return json;
  }
  return json;
}

// What the tokens are, as modeling_heddle.py calls it.
const char* tokens_of(const DataConfig& data) {
  if (!data.tokenizer) return "ids";
  return *data.tokenizer == kByteTokenizer ? "bytes" : "pieces";
}

// The contents of the model's tokenizer; nothing for other tokenizers than files, and where the file is gone.
std::optional<std::string> tokenizer_model(const Checkpoint& checkpoint, const TrainConfig& config,
                                           const Registry& registry) {
  const auto tokenizer = tokenizer_of_run(config, checkpoint, registry);
  if (!tokenizer || *tokenizer == kByteTokenizer || !fs::exists(*tokenizer)) return std::nullopt;
  return read_file(*tokenizer);
}

OrderedJson config_json(const Checkpoint& checkpoint, const TrainConfig& config, const ExportOptions& options,
                        DType dtype, const Registry& registry) {
  OrderedJson json;
  const DataConfig& data = config.data;
  if (options.names == WeightNames::retnet) {
    json = retnet_config(config.model);
    json["max_position_embeddings"] = config.trainer.sequence_length;
    if (data.pack) json["bos_token_id"] = json["eos_token_id"] = data.separator;
  } else {
    json = {{"architectures", {"HeddleForCausalLM"}}, {"model_type", "heddle"}};
    json["tokens"] = tokens_of(data);
    if (data.pack) json["separator"] = data.separator;
    json["model"] = to_json(*to_tree(config, registry).find("model")->value);
  }
  json["torch_dtype"] = name(dtype);
  json[kProgramKey] = checkpoint.state.program;
  json[kStepKey] = checkpoint.state.step;
  return json;
}

// Throws UsageError where the logits of so many tokens take more memory than the machine has: counted, not computed.
void check_logits_fit(const TrainConfig& config, DType dtype, int64_t length) {
  const size_t there = Context().properties().memory_bytes;
  Context meta(Device{DeviceType::meta}, {.threads = 1, .allocator = {.limit_bytes = there}});
  try {
    LanguageModel model(config.model);
    model.parameters().materialize(meta, dtype, config.seed);
    Tape tape(meta, Tape::Mode::inference);
    model.forward(tape, Tensor::empty(meta, {1, length}, DType::int32));
  } catch (const OutOfMemory&) {
    throw UsageError(fmt::format("--logits: the logits of {} tokens take more memory than this machine has, {}", length,
                                 format_bytes(there)));
  }
}

void write_logits(Context& context, const fs::path& path, const LanguageModel& model, const TrainConfig& config,
                  int64_t length) {
  Random random(config.seed, RandomStream::test);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.next_below(static_cast<uint64_t>(model.vocab_size())));
  const Tensor tokens = Tensor::empty(context, {1, length}, DType::int32);
  copy_from_host(context, tokens, ids.data());
  Tape tape(context, Tape::Mode::inference);
  const Variable logits = model.forward(tape, tokens);
  const std::vector<NamedTensor> tensors = {{"tokens", tokens}, {"logits", logits.value}};
  write_safetensors(context, path, tensors);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

void check_export_folder(const fs::path& folder) {
  const fs::path place = place_of(folder);
  std::error_code unreadable;
  if (!fs::exists(place, unreadable) && !unreadable) return;
  if (!fs::is_directory(place, unreadable)) throw UsageError(fmt::format("--out: {} is no folder", folder.string()));
  if (fs::equivalent(place, ".")) {  // it is replaced, and who is in it would see an empty folder
    throw UsageError(fmt::format("--out: {} is the current folder, expected another one", folder.string()));
  }
  const bool is_earlier_export = is_export(place);
  for (const std::string& name : names_in(place)) {
    if (is_earlier_export && is_exported_name(name) && fs::is_regular_file(fs::symlink_status(place / name))) continue;
    throw UsageError(fmt::format(
        "--out: {} holds {}, which no export has written; expected a new or empty folder, or an earlier export",
        folder.string(), name));
  }
}

std::vector<std::string> export_model(const Checkpoint& checkpoint, const TrainConfig& config,
                                      const ExportOptions& options, const Registry& registry) {
  check_export_folder(options.folder);
  const bool is_retnet = options.names == WeightNames::retnet;
  const std::string obstacle = is_retnet ? retnet_obstacle(config.model) : "";
  if (!obstacle.empty()) throw UsageError("RetNetForCausalLM cannot compute this model: " + obstacle);
  const std::optional<std::string> tokenizer = tokenizer_model(checkpoint, config, registry);
  const DType dtype = accumulate_type(config.trainer.dtype);
  if (options.logits > 0) check_logits_fit(config, dtype, options.logits);
  Context context;
  LanguageModel model(config.model);
  model.parameters().materialize(context, dtype, config.seed);
  load_weights(context, checkpoint, config, model.parameters());
  const fs::path place = place_of(options.folder);
  write_folder(place, [&](const fs::path& folder) {
    write_weights(context, folder, exported_weights(context, config.model, model.parameters(), options.names),
                  options.shard_bytes);
    if (!is_retnet) write_file(folder / kModelingFile, read_file(shared_file(fs::path("export") / kModelingFile)));
    if (tokenizer) write_file(folder / kTokenizerFile, *tokenizer);
    if (options.logits > 0) write_logits(context, folder / kLogitsFile, model, config, options.logits);
    write_file(folder / kModelConfigFile,
               json_text(config_json(checkpoint, config, options, dtype, registry), 2) + "\n");
    check_export_folder(options.folder);  // what has come into it meanwhile would be lost
  });
  return names_in(place);
}

}  // namespace heddle
