#include "trainers/parallel/same_run.h"

#include <fmt/format.h>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/config/config_difference.h"
#include "core/config/config_tree.h"
#include "core/io/atomic_file.h"
#include "core/io/json_text.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

using Json = nlohmann::json;

void add(std::string& text, const std::string& what) { text += (text.empty() ? "" : "; ") + what; }

void add_difference(std::string& text, const std::string& name, const std::string& here, const std::string& first) {
  const auto shown = [](const std::string& value) { return value.empty() ? "missing" : value; };
  if (here != first) add(text, fmt::format("{} is {}, that of process 0 {}", name, shown(here), shown(first)));
}

std::string difference_of(const Json& here, const Json& first) {
  std::string text;
  for (const char* name : {"version", "device", "data"}) {
    add_difference(text, name, here.at(name).get<std::string>(), first.at(name).get<std::string>());
  }
  const auto tree = [](const Json& json) { return parse_yaml(json.at("config").get<std::string>(), "config"); };
  for (const ConfigDifference& difference : config_differences(*tree(here), *tree(first))) {
    add_difference(text, difference.path, difference.first, difference.second);
  }
  return text;
}

}  // namespace

void check_same_run(Processes& processes, const RunIdentity& mine) {
  if (processes.count() == 1) return;
  const Json json = {{"version", mine.program}, {"config", mine.config}, {"data", mine.data}, {"device", mine.device}};
  const std::vector<std::string> all = processes.gather(json_text(json));
  processes.together([&] {
    for (size_t rank = 1; rank < all.size(); ++rank) {
      const std::string difference = difference_of(Json::parse(all[rank]), Json::parse(all[0]));
      if (difference.empty()) continue;
      throw UsageError(fmt::format("process {} would train something else than process 0: {}", rank, difference));
    }
  });
}

void check_same_start(Processes& processes, Context& context, int64_t step, const ParameterSet& parameters) {
  if (processes.count() == 1 || context.is_meta()) return;
  FileDigest digest;
  std::vector<char> bytes;
  for (const Parameter& parameter : parameters.all()) {
    bytes.resize(static_cast<size_t>(parameter.master.numel()) * size_of(parameter.master.dtype()));
    copy_to_host(context, parameter.master, bytes.data());
    extend(digest, bytes.data(), bytes.size());
  }
  const std::vector<std::string> all = processes.gather(fmt::format("step {}, crc32 {:08x}", step, digest.crc32));
  processes.together([&] {
    for (size_t rank = 1; rank < all.size(); ++rank) {
      if (all[rank] == all[0]) continue;
      throw UsageError(
          fmt::format("process {} would start from other weights than process 0: {}, there {}; what --resume and "
                      "--init-from name must be the same files for all processes",
                      rank, all[rank], all[0]));
    }
  });
}

}  // namespace heddle
