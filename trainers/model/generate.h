// Text from a model, byte by byte. The model keeps a state of what it has read, so with a recurrent mixer every token
// costs the same, however long the text is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "core/tensor/random.h"
#include "trainers/model/language_model.h"

namespace heddle {

struct GenerateOptions {
  int64_t tokens = 200;
  double temperature = 1.0;  // 0: always the likeliest token
  int64_t top_k = 0;         // only the k likeliest; 0: all
  double top_p = 1.0;        // only the likeliest whose probabilities reach p together
  uint64_t seed = 1;
};

// Reads `prompt` (at least one byte) and calls emit(byte) for each new token. Only the first 256 tokens of the
// vocabulary are bytes; no other is drawn.
void generate(Context& context, const LanguageModel& model, std::string_view prompt, const GenerateOptions& options,
              const std::function<void(uint8_t)>& emit);

// Draws an index of `logits` with one uniform number. Among equals the lowest index is the likeliest.
int64_t sample_token(std::span<const double> logits, const GenerateOptions& options, double uniform);

// Bytes as text that a terminal can show: valid UTF-8 as it is, other bytes and control characters (but not newline and
// tab) as \xNN. A character is returned when its last byte was added.
class Utf8Printer {
 public:
  std::string add(uint8_t byte);
  std::string finish();  // what is left of an unfinished character

 private:
  std::string pending_;
  size_t length_ = 0;  // of the pending character
};

}  // namespace heddle
