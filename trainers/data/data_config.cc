#include "trainers/data/data_config.h"

#include "core/config/config_fields.h"

namespace heddle {

namespace {

// Either a share of the training files or files of their own.
void describe_validation(ConfigFields& fields, DataConfig& data) {
  fields.optional("validation_path", data.validation_path);
  if (!data.validation_path) return fields.field("validation_fraction", data.validation_fraction, Range::inside(0, 1));
  if (!fields.reads()) return;
  if (data.validation_path->empty()) fields.fail("validation_path", "found an empty path, expected a file");
  if (!fields.node().has("validation_fraction")) return;
  fields.fail("validation_fraction",
              "found a share of data.path beside data.validation_path, expected one of them; null takes it away");
}

}  // namespace

void describe(ConfigFields& fields, DataConfig& data) {
  fields.required_choice(
      "type", data.type,
      {{"text", DataType::text}, {"tokens", DataType::tokens}, {"mqar", DataType::mqar}, {"copy", DataType::copy}});
  const bool is_file = data.type == DataType::text || data.type == DataType::tokens;
  if (is_file) {
    fields.required("path", data.path);
    if (fields.reads() && data.path.empty()) fields.fail("path", "found an empty path, expected a file");
    describe_validation(fields, data);
  } else {
    for (const char* key : {"path", "validation_path", "validation_fraction"}) {
      fields.refuse(key, "it belongs to types text and tokens");
    }
  }
  if (data.type == DataType::tokens) {
    fields.choice("token_width", data.token_width, {{"uint16", TokenWidth::uint16}, {"uint32", TokenWidth::uint32}});
  } else {
    fields.refuse("token_width", "it belongs to type tokens");
  }
  if (data.type == DataType::mqar) {
    fields.field("num_pairs", data.num_pairs, Range::count());
    if (fields.reads()) data.num_queries = data.num_pairs;
    fields.field("num_queries", data.num_queries, Range::between(1, static_cast<double>(data.num_pairs)));
  } else {
    for (const char* key : {"num_pairs", "num_queries"}) fields.refuse(key, "it belongs to type mqar");
  }
  if (data.type == DataType::copy) {
    fields.field("length", data.length, Range::count());
  } else {
    fields.refuse("length", "it belongs to type copy");
  }
}

}  // namespace heddle
