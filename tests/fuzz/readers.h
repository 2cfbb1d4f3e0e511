// What reads files that may come from anywhere, as functions of bytes: safetensors, configs, token files, the state of
// a checkpoint, and tokenizers where heddle has those of sentencepiece. Shared by mutated_files_test.cc and
// fuzz_target.cc.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace heddle::fuzz {

struct Reader {
  std::string name;
  std::vector<std::string> seeds;  // whole files, which are read without an error
  // Reads what `bytes` are the content of. Throws std::exception with a message where they are not right.
  std::function<void(std::string_view bytes)> read;
};

// `folder` is for files that are read by name.
std::vector<Reader> readers(const std::string& folder);

// One of the files that differ a little from `seed`: bits turned, numbers made extreme, parts cut, repeated or
// exchanged. The same for the same number.
std::string mutated(const std::string& seed, unsigned number);

}  // namespace heddle::fuzz
