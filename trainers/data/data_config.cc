#include "trainers/data/data_config.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "core/config/config_fields.h"
#include "trainers/data/mixture.h"
#include "trainers/data/tokenizer.h"

namespace heddle {

namespace {

constexpr const char* kFiles = "it belongs to types text and tokens";

// Each source must get a sequence now and then.
void check_weights(const ConfigFields& fields, const std::vector<DataSource>& sources) {
  const std::vector<uint64_t> odds = source_odds(sources);
  for (size_t i = 0; i < sources.size(); ++i) {
    if (odds[i] > 0 && odds[i] <= kCertain) continue;
    fields.fail("sources", fmt::format("found weight {} of '{}', which is too little beside the others: expected a "
                                       "share of at least one sequence in 2^32",
                                       sources[i].weight, sources[i].path));
  }
}

void describe_source(ConfigFields& fields, DataSource& source) {
  fields.required("path", source.path);
  fields.check_path("path", source.path, "a file");
  fields.required("weight", source.weight, Range::positive());
}

// Either one path or several sources.
void describe_paths(ConfigFields& fields, DataConfig& data) {
  fields.optional_list<DataSource>("sources", data.sources, describe_source);
  if (data.sources.empty()) {
    if (fields.reads() && fields.node().has("sources")) {
      fields.fail("sources", "found an empty list, expected {path, weight} for each source");
    }
    fields.required("path", data.path);
    fields.check_path("path", data.path, "a file");
    return;
  }
  fields.refuse("path", "data.sources names the files; expected one of them, and null takes the other away");
  if (fields.reads()) check_weights(fields, data.sources);
}

void describe_packing(ConfigFields& fields, DataConfig& data) {
  fields.field("pack", data.pack);
  if (data.pack) {
    fields.required("separator", data.separator, Range::between(0, Range::count().high));
  } else {
    fields.refuse("separator", "documents are told apart where data.pack is true; null takes it away");
  }
}

// The tokens of text are bytes unless something else is said; those of a token file have no text.
void describe_tokenizer(ConfigFields& fields, DataConfig& data) {
  fields.optional("tokenizer", data.tokenizer);
  if (!fields.reads()) return;
  if (data.tokenizer) fields.check_path("tokenizer", *data.tokenizer, "bytes or a file of sentencepiece");
  if (!data.tokenizer && data.type == DataType::text) data.tokenizer = kByteTokenizer;
}

// Either a share of the training files or files of their own.
void describe_validation(ConfigFields& fields, DataConfig& data) {
  fields.optional("validation_path", data.validation_path);
  if (!data.validation_path) return fields.field("validation_fraction", data.validation_fraction, Range::inside(0, 1));
  if (!fields.reads()) return;
  fields.check_path("validation_path", *data.validation_path, "a file");
  if (!fields.node().has("validation_fraction")) return;
  fields.fail("validation_fraction",
              "found a share of data.path beside data.validation_path, expected one of them; null takes it away");
}

}  // namespace

bool is_bytes_of_text(const DataConfig& data) {
  return data.type == DataType::text && data.tokenizer.value_or(kByteTokenizer) == kByteTokenizer;
}

void describe(ConfigFields& fields, DataConfig& data) {
  fields.required_choice(
      "type", data.type,
      {{"text", DataType::text}, {"tokens", DataType::tokens}, {"mqar", DataType::mqar}, {"copy", DataType::copy}});
  const bool is_file = data.type == DataType::text || data.type == DataType::tokens;
  if (is_file) {
    describe_paths(fields, data);
    describe_validation(fields, data);
    describe_tokenizer(fields, data);
    describe_packing(fields, data);
  } else {
    for (const char* key :
         {"path", "sources", "validation_path", "validation_fraction", "tokenizer", "pack", "separator"}) {
      fields.refuse(key, kFiles);
    }
  }
  if (data.type == DataType::tokens) {
    fields.choice("token_width", data.token_width, {{"uint16", TokenWidth::uint16}, {"uint32", TokenWidth::uint32}});
  } else {
    fields.refuse("token_width", "it belongs to type tokens");
  }
  if (data.type == DataType::mqar) {
    fields.field("num_pairs", data.num_pairs, Range::count());
    const Range range = Range::between(1, static_cast<double>(data.num_pairs));
    fields.field_or("num_queries", data.num_queries, data.num_pairs, range);
  } else {
    for (const char* key : {"num_pairs", "num_queries"}) fields.refuse(key, "it belongs to type mqar");
  }
  if (data.type == DataType::copy) {
    fields.field("length", data.length, Range::count());
  } else {
    fields.refuse("length", "it belongs to type copy");
  }
}

void check_can_be_read_again(const DataConfig& data, const ConfigNode& section) {
  const auto check_path = [](const ConfigNode& node, const std::string& key, const std::string& path) {
    std::error_code error;  // whoever reads the data says what is wrong with a path that leads nowhere
    const std::filesystem::file_type type = std::filesystem::status(path, error).type();
    if (type != std::filesystem::file_type::fifo && type != std::filesystem::file_type::character) return;
    node.fail(key,
              fmt::format("found '{}', a pipe or a device, expected a file: the data are read several times", path));
  };
  if (!data.path.empty()) check_path(section, "path", data.path);
  if (data.validation_path) check_path(section, "validation_path", *data.validation_path);
  for (size_t i = 0; i < data.sources.size(); ++i) {
    check_path(section.list("sources")[i], "path", data.sources[i].path);
  }
}

}  // namespace heddle
