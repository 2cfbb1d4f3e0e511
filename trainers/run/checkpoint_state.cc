#include "trainers/run/checkpoint_state.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/io/json_text.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kFormat = 1;

// The integer of that name; a number that is none, or that T does not hold, is an error as any damage is.
template <class T>
T integer(const Json& json, const char* name) {
  const Json& value = json.at(name);
  const bool fits = value.is_number_unsigned() ? std::in_range<T>(value.get<uint64_t>())
                                               : value.is_number_integer() && std::in_range<T>(value.get<int64_t>());
  if (!fits) {
    throw Json::other_error::create(501, fmt::format("'{}' is {}, expected an integer", name, json_text(value)), &json);
  }
  return value.get<T>();
}

uint32_t checksum(const std::string& text) {
  FileDigest digest;
  extend(digest, text.data(), text.size());
  return digest.crc32;
}

Json to_json(const FileDigest& digest) { return {{"bytes", digest.bytes}, {"crc32", digest.crc32}}; }

FileDigest digest_of(const Json& json) { return {integer<uint64_t>(json, "bytes"), integer<uint32_t>(json, "crc32")}; }

// Writes the state with a checksum over its own text.
std::string seal(const Json& state) {
  return json_text(Json{{"crc32", checksum(json_text(state))}, {"state", state}}, 1) + "\n";
}

Json unseal(const fs::path& path) {
  try {
    const Json json = Json::parse(read_file(path));
    const Json& state = json.at("state");
    check(integer<uint32_t>(json, "crc32") == checksum(json_text(state)),
          "{}: its checksum does not fit: it was changed", path.string());
    return state;
  } catch (const Json::exception& error) {
    fail("{}: truncated or damaged: {}", path.string(), error.what());
  }
}

Json to_json(const CheckpointState& state) {
  Json json = {{"format", kFormat},
               {"program", state.program},
               {"step", state.step},
               {"seed", state.seed},
               {"config", state.config}};
  if (state.trained_on) {
    json["trained_on"] = {{"sequences", state.trained_on->sequences}, {"tokens", state.trained_on->tokens}};
  }
  if (const auto& data = state.data) {
    json["data"] = {{"files", data->files}, {"bytes", data->bytes}, {"crc32", data->crc32}};
  }
  if (const auto& tokenizer = state.tokenizer) {
    json["tokenizer"] = to_json(tokenizer->digest);
    json["tokenizer"]["name"] = tokenizer->name;
  }
  const auto& [best, without_gain] = state.evaluations;
  if (best || without_gain > 0) json["evaluations"]["without_gain"] = without_gain;
  if (best) {
    Json& evaluations = json["evaluations"];
    evaluations.update({{"best_step", best->step}, {"best_loss", best->loss}});
    if (!std::isnan(best->accuracy)) evaluations["best_accuracy"] = best->accuracy;
    if (!std::isnan(best->bits_per_byte)) evaluations["best_bits_per_byte"] = best->bits_per_byte;
  }
  if (const auto& scale = state.loss_scale) {
    json["loss_scale"] = {{"value", scale->value}, {"good_steps", scale->good_steps}, {"left_out", scale->left_out}};
  }
  if (const SkippedSteps& skipped = state.skipped; skipped.total > 0) {
    json["skipped"] = {{"total", skipped.total}, {"in_a_row", skipped.in_a_row}};
  }
  return json;
}

CheckpointState state_of(const Json& json) {
  CheckpointState state{integer<int64_t>(json, "step"), integer<uint64_t>(json, "seed"),
                        json.at("config").get<std::string>(), json.at("program").get<std::string>()};
  if (json.contains("trained_on")) {
    const Json& used = json["trained_on"];
    state.trained_on = {integer<int64_t>(used, "sequences"), integer<int64_t>(used, "tokens")};
  }
  if (json.contains("data")) {
    const Json& data = json["data"];
    state.data = {.files = integer<int64_t>(data, "files"),
                  .bytes = integer<uint64_t>(data, "bytes"),
                  .crc32 = integer<uint32_t>(data, "crc32")};
  }
  if (json.contains("tokenizer")) {
    const Json& tokenizer = json["tokenizer"];
    state.tokenizer = {.name = tokenizer.at("name").get<std::string>(), .digest = digest_of(tokenizer)};
  }
  if (json.contains("evaluations")) {
    const Json& evaluations = json["evaluations"];
    // Former versions took an infinite loss for a best one, and wrote null.
    if (evaluations.contains("best_step") && !evaluations.at("best_loss").is_null()) {
      const double none = std::numeric_limits<double>::quiet_NaN();
      state.evaluations.best = {.step = integer<int64_t>(evaluations, "best_step"),
                                .loss = evaluations.at("best_loss").get<double>(),
                                .accuracy = evaluations.value("best_accuracy", none),
                                .bits_per_byte = evaluations.value("best_bits_per_byte", none)};
    }
    state.evaluations.without_gain = integer<int64_t>(evaluations, "without_gain");
  }
  if (json.contains("loss_scale")) {
    const Json& scale = json["loss_scale"];
    state.loss_scale = {scale.at("value").get<double>(), integer<int64_t>(scale, "good_steps"),
                        integer<int64_t>(scale, "left_out")};
  }
  if (json.contains("skipped")) {
    const Json& skipped = json["skipped"];
    state.skipped = {.total = integer<int64_t>(skipped, "total"), .in_a_row = integer<int64_t>(skipped, "in_a_row")};
  }
  return state;
}

}  // namespace

void write_state(const fs::path& path, const CheckpointState& state, const FileDigests& files) {
  Json json = to_json(state);
  for (const auto& [name, digest] : files) json["files"][name] = to_json(digest);
  write_file(path, seal(json));
}

StateFile read_state(const fs::path& path) {
  const Json json = unseal(path);
  try {
    const int format = integer<int>(json, "format");
    check(format == kFormat, "{}: format {}, expected {}: it was written by {}", path.string(), format, kFormat,
          json.value("program", "another program"));
    StateFile file{.state = state_of(json), .files = {}};
    for (const auto& [name, digest] : json.at("files").items()) file.files[name] = digest_of(digest);
    return file;
  } catch (const Json::exception& error) {
    fail("{}: {}", path.string(), error.what());
  }
}

}  // namespace heddle
