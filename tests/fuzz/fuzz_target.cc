// A program of libFuzzer (option HEDDLE_FUZZ) for the reader that it is named after, fuzz_config for `config`: what it
// finds is a crash, a hang or too much memory.
#ifdef HEDDLE_FUZZ_PROGRAM
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <string_view>

#include "tests/fuzz/readers.h"

namespace {

heddle::fuzz::Reader reader;

heddle::fuzz::Reader reader_named(const std::string& name) {
  std::string folder = (std::filesystem::temp_directory_path() / "heddle_fuzz_XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) std::abort();
  for (heddle::fuzz::Reader& reader : heddle::fuzz::readers(folder)) {
    if (reader.name == name) return reader;
  }
  std::abort();
}

}  // namespace

// Fills an empty corpus, the folder that is the last argument, with 200 damaged files.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view prefix = "fuzz_";
  reader = reader_named(std::filesystem::path((*argv)[0]).filename().string().substr(prefix.size()));
  const std::filesystem::path corpus = (*argv)[*argc - 1];
  if (!std::filesystem::is_directory(corpus) || !std::filesystem::is_empty(corpus)) return 0;
  for (unsigned number = 0; number < 200; ++number) {
    const std::string& seed = reader.seeds[number % reader.seeds.size()];
    std::ofstream(corpus / std::to_string(number), std::ios::binary)
        << (number < reader.seeds.size() ? seed : heddle::fuzz::mutated(seed, number));
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try {
    reader.read(std::string_view(reinterpret_cast<const char*>(bytes), size));
  } catch (const std::exception&) {
  }
  return 0;
}
#endif
