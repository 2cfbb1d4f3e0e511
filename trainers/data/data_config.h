// The section `data` of a training config, and what a data set needs to know beside it.            docs/config.md#data
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config/config_node.h"

namespace heddle {

class ConfigFields;

enum class DataType { text, tokens, mqar, copy };
enum class TokenWidth { uint16, uint32 };

// Files that share the training with others.
struct DataSource {
  std::string path;     // a file or a glob of files
  double weight = 1.0;  // its share of the sequences is this over the sum of all weights
};

// Where batches come from. Only the fields of `type` have a meaning.
struct DataConfig {
  DataType type = DataType::text;
  std::string path;                             // text, tokens: a file or a glob of files; empty: `sources`
  std::vector<DataSource> sources;              // text, tokens: several of them, instead of `path`
  std::optional<std::string> validation_path;   // text, tokens: files for evaluation; none: the end of those of `path`
  double validation_fraction = 0.05;            // text, tokens: how much of the end, where there is no validation_path
  std::optional<std::string> tokenizer;         // text, tokens: "bytes" or a file of sentencepiece; none: ids alone
  bool pack = false;                            // text, tokens: documents of a sequence do not see one another
  std::int64_t separator = 0;                   // with pack: the token that begins a document
  TokenWidth token_width = TokenWidth::uint16;  // tokens: integers of a file that has no header
  std::int64_t num_pairs = 8;                   // mqar: key-value pairs to remember
  std::int64_t num_queries = 8;                 // mqar: keys that are queried again; when it is read, num_pairs
  std::int64_t length = 32;                     // copy: tokens to repeat
};

// Whether tokens are bytes of text files.
bool is_bytes_of_text(const DataConfig& data);

// Reads or writes the fields of data.type.
void describe(ConfigFields& fields, DataConfig& data);

// Throws ConfigError for data in a pipe or a device, at its place in `section`: commands that train several times
// read the data for each training, and a pipe can be read once.
void check_can_be_read_again(const DataConfig& data, const ConfigNode& section);

struct DatasetOptions {
  DataConfig data;
  std::int64_t batch_size = 16;  // sequences of a batch
  std::int64_t sequence_length = 256;
  std::optional<std::int64_t> eval_sequences = 320;  // validation sequences, at most; none: all
  std::uint64_t seed = 1;
  std::int64_t vocab_size = 256;
  bool evaluation_only = false;  // text, tokens: reads data.validation_path alone, or evaluates all of data.path
  ConfigNode section;            // what `data` was read from: errors are reported at the places of its values
};

}  // namespace heddle
