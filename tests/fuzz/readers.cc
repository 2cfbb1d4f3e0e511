#include "tests/fuzz/readers.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"
#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "core/tensor/random.h"
#include "trainers/data/dataset.h"
#include "trainers/data/sentencepiece.h"
#include "trainers/data/tokenize.h"
#include "trainers/run/checkpoint.h"
#include "trainers/train_config.h"

namespace heddle::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"(seed: 7
data: {type: text, path: text.txt, validation_fraction: 0.1}
model:
  vocab_size: 256
  dim: 16
  layers: 2
  norm: {type: srms_norm, eps: 1.0e-6}
  mixer: {type: lightning, heads: 2, act: silu, lrpe: {type: lrpe_rotate, layers: [0]}, gate: {act: sigmoid, rank: 4}}
  channel: {type: glu, hidden: 16, act: silu}
optimizer: {lr: 3.0e-3, betas: [0.9, 0.95]}
schedule: {type: cosine, warmup_steps: 5, min_lr: 3.0e-4}
trainer: {steps: 40, batch_size: 4, sequence_length: 16, eval_every: 10, sample: {prompt: "a\n", tokens: 3}}
)";

void write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

fs::path golden_checkpoint() { return fs::path(HEDDLE_SOURCE_DIR) / "tests/golden/checkpoint"; }

Reader safetensors_reader(const fs::path& folder) {
  const fs::path path = folder / "fuzz.safetensors";
  return {"safetensors", {read_file(golden_checkpoint() / "model.safetensors")}, [path](std::string_view bytes) {
            write(path, bytes);
            Context context;
            SafetensorsReader reader(path);
            for (const SafetensorsEntry& entry : reader.entries()) reader.read(context, entry);
          }};
}

Reader config_reader() {
  return {"config", {kConfig}, [](std::string_view bytes) {
            read_train_config(parse_config(std::string(bytes), "fuzz.yaml"));
          }};
}

// Windows of 4 tokens of whatever the file is taken for.
Reader token_reader(const fs::path& folder) {
  const fs::path path = folder / "fuzz.bin";
  std::vector<int32_t> header(256);
  header[0] = 20240520;
  header[1] = 1;
  header[2] = 64;
  std::vector<uint16_t> tokens(64);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint16_t>(i % 50);
  const auto bytes_of = [](const auto& numbers) {
    return std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(numbers[0]));
  };
  std::vector<int32_t> wide_header = header;
  wide_header[0] = 20240801;
  wide_header[1] = 7;
  const std::vector<int32_t> wide(tokens.begin(), tokens.end());
  return {"tokens",
          {bytes_of(header) + bytes_of(tokens), bytes_of(tokens), bytes_of(wide_header) + bytes_of(wide)},
          [path](std::string_view bytes) {
            write(path, bytes);
            DatasetOptions options;
            options.data.type = DataType::tokens;
            options.data.path = path.string();
            options.data.validation_fraction = 0.25;
            options.batch_size = 2;
            options.sequence_length = 4;
            options.vocab_size = 50304;
            const auto data = make_dataset(options);
            data->training_batch(0);
          }};
}

// A small vocabulary that is trained on the spot.
Reader tokenizer_reader() {
  const MappedFile text(fs::path(HEDDLE_SOURCE_DIR) / "tests/golden/text.txt");
  return {"tokenizer", {train_vocabulary({text}, 320)}, [](std::string_view bytes) {
            const auto tokenizer = make_sentencepiece(bytes, "fuzz.model");
            for (const int32_t id : tokenizer->encode("In the beginning God created the heaven.\n\xc3\xa4  x")) {
              tokenizer->bytes_of(id);
            }
          }};
}

// The sums over the state are made anew: else nothing but these would be tested.
Reader state_reader(const fs::path& folder) {
  const fs::path checkpoint = folder / "step_12";
  fs::create_directories(checkpoint);
  fs::copy(golden_checkpoint(), checkpoint, fs::copy_options::recursive);
  const nlohmann::json sealed = nlohmann::json::parse(read_file(golden_checkpoint() / "state.json"));
  return {"state", {sealed.at("state").dump()}, [checkpoint](std::string_view bytes) {
            nlohmann::json state = nlohmann::json::parse(bytes, nullptr, false);
            std::string file(bytes);
            if (!state.is_discarded()) {
              FileDigest digest;
              const std::string text = state.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
              extend(digest, text.data(), text.size());
              file = nlohmann::json{{"crc32", digest.crc32}, {"state", state}}.dump(
                  1, ' ', false, nlohmann::json::error_handler_t::replace);
            }
            write(checkpoint / "state.json", file);
            open_checkpoint(checkpoint);
          }};
}

}  // namespace

std::vector<Reader> readers(const std::string& folder) {
  std::vector<Reader> all = {safetensors_reader(folder), config_reader(), token_reader(folder), state_reader(folder)};
  if (has_sentencepiece()) all.push_back(tokenizer_reader());
  return all;
}

std::string mutated(const std::string& seed, unsigned number) {
  Random random(number, RandomStream::test);
  std::string bytes = seed;
  const auto place = [&](size_t room = 0) {
    return bytes.size() > room ? static_cast<size_t>(random.next_below(bytes.size() - room)) : size_t{0};
  };
  const auto part = [&] {
    const size_t begin = place();
    return bytes.substr(begin, 1 + random.next_below(std::min<size_t>(40, bytes.size() - begin)));
  };
  const auto changes = 1 + random.next_below(4);
  for (uint64_t change = 0; change < changes && !bytes.empty(); ++change) {
    switch (random.next_below(8)) {
      case 0:
        bytes[place()] ^= static_cast<char>(1 << random.next_below(8));
        break;
      case 1:
        bytes[place()] = static_cast<char>(random.next_below(256));
        break;
      case 2: {  // a number of 1, 2, 4 or 8 bytes
        constexpr uint64_t kExtremes[] = {0,
                                          1,
                                          0x7F,
                                          0x80,
                                          0xFF,
                                          0x7FFFFFFF,
                                          0x80000000,
                                          0xFFFFFFFF,
                                          ~uint64_t{0},
                                          uint64_t{1} << 63,
                                          (uint64_t{1} << 63) - 1,
                                          uint64_t{1} << 40};
        const uint64_t extreme = kExtremes[random.next_below(std::size(kExtremes))];
        const size_t width = size_t{1} << random.next_below(4);
        if (bytes.size() >= width) std::memcpy(&bytes[place(width - 1)], &extreme, width);
        break;
      }
      case 3:
        bytes.resize(place());
        break;
      case 4:
        bytes.erase(place(), 1 + random.next_below(20));
        break;
      case 5:
        bytes.insert(place(), part());
        break;
      case 6: {  // a number in text
        constexpr const char* kTexts[] = {"-1",
                                          "0",
                                          "9223372036854775808",
                                          "18446744073709551616",
                                          "1e999",
                                          "nan",
                                          "null",
                                          "[[[",
                                          "{}",
                                          "\"\\ud800\"",
                                          "&a *a",
                                          "\xff"};
        const size_t digit = bytes.find_first_of("0123456789", place());
        if (digit != std::string::npos) bytes.replace(digit, 1, kTexts[random.next_below(std::size(kTexts))]);
        break;
      }
      default:
        bytes.replace(place(), 1 + random.next_below(8), part());
    }
  }
  return bytes;
}

}  // namespace heddle::fuzz
