#include "trainers/run/model_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/io/json_text.h"
#include "core/runtime/error.h"
#include "trainers/model/retnet_names.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/copy_scaled.h"
#include "trainers/weight_average.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kWholeFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kNamedProblems = 8;     // of each kind, in an error
constexpr double kRetNetNormEps = 1e-6;  // of RetNetConfig, where config.json has none

uint64_t byte_count(const NamedTensor& named) {
  return static_cast<uint64_t>(named.tensor.numel()) * size_of(named.tensor.dtype());
}

// The tensors of each file.
std::vector<std::vector<NamedTensor>> cut_into_shards(std::span<const NamedTensor> tensors, uint64_t shard_bytes) {
  std::vector<std::vector<NamedTensor>> shards(1);
  uint64_t bytes = 0;
  for (const NamedTensor& named : tensors) {
    if (!shards.back().empty() && bytes + byte_count(named) > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(named);
    bytes += byte_count(named);
  }
  return shards;
}

Json read_json(const fs::path& path) {
  try {
    return Json::parse(read_regular_file(path));
  } catch (const Json::exception& error) {
    fail("{}: not valid JSON: {}", path.string(), error.what());
  }
}

// How the tensors of a folder are called, and what its v_proj are ours multiplied by.
struct WeightLayout {
  WeightNames names = WeightNames::heddle;
  double value_scale = 1.0;
};

WeightLayout layout_of(const fs::path& folder, const ModelConfig& model) {
  const fs::path path = folder / kModelConfigFile;
  const Json config = read_json(path);
  const auto type = config.is_object() ? config.find("model_type") : config.end();
  check(type != config.end() && type->is_string(), "{}: 'model_type' is missing, expected heddle or retnet",
        path.string());
  if (*type == "heddle") return {};
  check(*type == "retnet", "{}: model_type is {}, expected heddle or retnet", path.string(), type->dump());
  const std::string obstacle = retnet_obstacle(model);
  check(obstacle.empty(), "{} is a RetNetForCausalLM, which the model of the config is not: {}", folder.string(),
        obstacle);
  const auto given = config.find("norm_eps");
  const Json eps = given != config.end() ? *given : Json(kRetNetNormEps);
  check(eps.is_number() && eps.get<double>() > 0.0, "{}: norm_eps is {}, expected a number above 0", path.string(),
        eps.dump());
  return {WeightNames::retnet, retnet_value_scale(model, eps.get<double>())};
}

// The masters under the names of a folder.
std::vector<NamedTensor> named_masters(const ParameterSet& parameters, WeightNames names) {
  return names == WeightNames::retnet ? retnet_weights(parameters) : masters(parameters);
}

// A file of the folder, and a tensor in it.
struct Found {
  SafetensorsReader* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
};

// The files with weights of a folder and their tensors by name.
class WeightFiles {
 public:
  explicit WeightFiles(const fs::path& folder) {
    const fs::path index = folder / kIndexFile;
    if (!fs::exists(index)) {
      open(folder / kWholeFile);
      return;
    }
    check(!fs::exists(folder / kWholeFile), "{} holds {} and {}, expected one of them", folder.string(), kWholeFile,
          kIndexFile);
    const Json json = read_json(index);
    check(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(),
          "{}: 'weight_map' is missing, expected a map of tensors to files", index.string());
    std::set<std::string> files;
    for (const auto& [name, file] : json["weight_map"].items()) {
      check(file.is_string() && fs::path(file.get<std::string>()).filename() == fs::path(file.get<std::string>()),
            "{}: tensor '{}' is in {}, expected the name of a file beside it", index.string(), name, file.dump());
      files.insert(file.get<std::string>());
    }
    for (const std::string& file : files) open(folder / file);
    for (const auto& [name, file] : json["weight_map"].items()) {
      check(found_.contains(name), "{}: tensor '{}' is not in {}", index.string(), name, file.get<std::string>());
    }
  }

  const std::map<std::string, Found>& all() const { return found_; }

 private:
  void open(const fs::path& path) {
    check_regular_file(path);
    SafetensorsReader& file = *files_.emplace_back(std::make_unique<SafetensorsReader>(path));
    for (const SafetensorsEntry& entry : file.entries()) {
      const bool is_new = found_.emplace(entry.name, Found{&file, &entry}).second;
      check(is_new, "{}: tensor '{}' is in another file, too", path.string(), entry.name);
    }
  }

  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, Found> found_;
};

// "3 are missing: a (4), b (5, 2), c (1)"
std::string list(const std::vector<std::string>& problems, std::string_view what) {
  if (problems.empty()) return "";
  const std::span<const std::string> first = std::span(problems).first(std::min(problems.size(), kNamedProblems));
  return fmt::format("; {} {}: {}{}", problems.size(), what, fmt::join(first, ", "),
                     first.size() < problems.size() ? ", .." : "");
}

// Throws a UsageError that names all tensors which do not fit.
void check_fit(const fs::path& folder, const std::vector<NamedTensor>& wanted,
               const std::map<std::string, Found>& found) {
  std::vector<std::string> missing, shapes, unexpected;
  std::set<std::string> known;
  for (const auto& [name, tensor] : wanted) {
    known.insert(name);
    const auto place = found.find(name);
    if (place == found.end()) {
      missing.push_back(fmt::format("{} {}", name, to_string(tensor.shape())));
    } else if (const SafetensorsEntry& entry = *place->second.entry; entry.shape != tensor.shape()) {
      shapes.push_back(fmt::format("{} is {}, expected {}", name, to_string(entry.shape), to_string(tensor.shape())));
    } else if (!is_floating(entry.dtype)) {
      shapes.push_back(fmt::format("{} is {}, expected a floating dtype", name, heddle::name(entry.dtype)));
    }
  }
  for (const auto& [name, place] : found) {
    if (!known.contains(name)) unexpected.push_back(fmt::format("{} {}", name, to_string(place.entry->shape)));
  }
  const std::string problems =
      list(missing, "missing") + list(shapes, "of another kind") + list(unexpected, "unexpected");
  if (problems.empty()) return;
  throw UsageError(fmt::format("the weights of {} do not fit the model of the config{}", folder.string(), problems));
}

// Writes the tensor of a file, multiplied by `factor`, into a master.
void read_tensor(Context& context, const Found& found, const Tensor& master, double factor) {
  if (found.entry->dtype == master.dtype() && factor == 1.0) {
    found.file->read(context, *found.entry, master);
    return;
  }
  copy_scaled(context, found.file->read(context, *found.entry), master, factor);
}

bool is_value_projection(const std::string& name) { return name.ends_with(".attn.v_proj.weight"); }

}  // namespace

std::vector<NamedTensor> exported_weights(Context& context, const ModelConfig& model, const ParameterSet& parameters,
                                          WeightNames names) {
  std::vector<NamedTensor> tensors = named_masters(parameters, names);
  const double factor = names == WeightNames::retnet ? retnet_value_scale(model, model.norm.norm.eps) : 1.0;
  for (NamedTensor& named : tensors) {
    if (factor == 1.0 || !is_value_projection(named.name)) continue;
    const Tensor scaled = Tensor::empty(context, named.tensor.shape(), named.tensor.dtype());
    copy_scaled(context, named.tensor, scaled, factor);
    named.tensor = scaled;
  }
  return tensors;
}

void write_weights(Context& context, const fs::path& folder, std::span<const NamedTensor> tensors,
                   uint64_t shard_bytes) {
  const SafetensorsMetadata metadata{{"format", "pt"}};  // Hugging Face's loaders refuse files without it
  const std::vector<std::vector<NamedTensor>> shards = cut_into_shards(tensors, shard_bytes);
  if (shards.size() == 1) {
    write_safetensors(context, folder / kWholeFile, shards[0], metadata);
    return;
  }
  Json index = {{"metadata", {{"total_size", uint64_t{0}}}}, {"weight_map", Json::object()}};
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(context, folder / file, shards[i], metadata);
    for (const NamedTensor& named : shards[i]) {
      index["weight_map"][named.name] = file;
      total += byte_count(named);
    }
  }
  index["metadata"]["total_size"] = total;
  write_file(folder / kIndexFile, json_text(index, 2) + "\n");
}

bool is_model_folder(const fs::path& folder) {
  return fs::exists(folder / kModelConfigFile) && !fs::exists(folder / "state.json") &&
         !fs::exists(folder / "checkpoints");
}

void read_weights(Context& context, const fs::path& folder, const ModelConfig& model, const ParameterSet& parameters) {
  const WeightLayout layout = layout_of(folder, model);
  const std::vector<NamedTensor> wanted = named_masters(parameters, layout.names);
  const WeightFiles files(folder);
  check_fit(folder, wanted, files.all());
  for (const auto& [name, master] : wanted) {
    read_tensor(context, files.all().at(name), master, is_value_projection(name) ? 1.0 / layout.value_scale : 1.0);
  }
  write_compute_copies(context, parameters);
}

}  // namespace heddle
