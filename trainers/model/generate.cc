#include "trainers/model/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

constexpr int64_t kBytes = 256;

std::string escape(std::string_view bytes) {
  std::string text;
  for (char byte : bytes) text += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return text;
}

// Bytes of the character that this byte begins; 0 when it begins none.
size_t utf8_length(uint8_t byte) {
  if (byte < 0x80) return 1;
  if (byte >= 0xC2 && byte < 0xE0) return 2;
  if (byte >= 0xE0 && byte < 0xF0) return 3;
  if (byte >= 0xF0 && byte < 0xF5) return 4;
  return 0;
}

// Whether `byte` may follow `before` in a character: no overlong forms, no surrogates, nothing above U+10FFFF.
bool continues(std::string_view before, uint8_t byte) {
  if (before.size() > 1) return byte >= 0x80 && byte < 0xC0;
  switch (static_cast<uint8_t>(before[0])) {
    case 0xE0:
      return byte >= 0xA0 && byte < 0xC0;
    case 0xED:
      return byte >= 0x80 && byte < 0xA0;
    case 0xF0:
      return byte >= 0x90 && byte < 0xC0;
    case 0xF4:
      return byte >= 0x80 && byte < 0x90;
    default:
      return byte >= 0x80 && byte < 0xC0;
  }
}

// Logits of the last position after the model has read `tokens`, which continue the text of `state`.
std::vector<double> read_tokens(Context& context, const LanguageModel& model, const std::vector<int32_t>& tokens,
                                ModelState& state) {
  Tensor on_device;
  {
    const MemoryScope scope(context, MemoryCategory::data);
    on_device = Tensor::empty(context, {1, static_cast<int64_t>(tokens.size())}, DType::int32);
  }
  copy_from_host(context, on_device, tokens.data());
  context.synchronize();
  Tape tape(context, Tape::Mode::inference);
  const Variable logits = model.forward(tape, on_device, &state);
  std::vector<double> last = read_values(context, logits.value.select(1, on_device.size(1) - 1));
  last.resize(static_cast<size_t>(std::min(kBytes, model.vocab_size())));
  return last;
}

}  // namespace

void generate(Context& context, const LanguageModel& model, std::string_view prompt, const GenerateOptions& options,
              const std::function<void(uint8_t)>& emit) {
  check(!prompt.empty(), "generate: the prompt is empty, expected at least one character");
  std::vector<int32_t> tokens;
  for (char byte : prompt) tokens.push_back(static_cast<uint8_t>(byte));
  ModelState state = model.initial_state();
  Random random(options.seed, RandomStream::sampling);
  for (int64_t i = 0; i < options.tokens; ++i) {
    const std::vector<double> logits = read_tokens(context, model, tokens, state);
    const int64_t token = sample_token(logits, options, random.next_uniform());
    emit(static_cast<uint8_t>(token));
    tokens = {static_cast<int32_t>(token)};
  }
}

int64_t sample_token(std::span<const double> logits, const GenerateOptions& options, double uniform) {
  const auto size = static_cast<int64_t>(logits.size());
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (options.temperature == 0.0) return order[0];
  int64_t kept = options.top_k > 0 ? std::min(options.top_k, size) : size;
  std::vector<double> weights(static_cast<size_t>(kept));
  double total = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((logits[order[i]] - logits[order[0]]) / options.temperature);
    total += weights[i];
  }
  // The smallest number of tokens whose share reaches top_p.
  double sum = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    sum += weights[i];
    if (sum >= options.top_p * total) kept = i + 1;
  }
  double rest = uniform * std::accumulate(weights.begin(), weights.begin() + kept, 0.0);
  for (int64_t i = 0; i < kept; ++i) {
    rest -= weights[i];
    if (rest < 0.0) return order[i];
  }
  return order[kept - 1];
}

std::string Utf8Printer::add(uint8_t byte) {
  if (!pending_.empty() && !continues(pending_, byte)) {
    const std::string broken = finish();
    return broken + add(byte);
  }
  if (pending_.empty()) length_ = utf8_length(byte);
  pending_ += static_cast<char>(byte);
  const bool control = byte < 0x80 && (byte < 0x20 || byte == 0x7F) && byte != '\n' && byte != '\t';
  if (length_ == 0 || control) return finish();
  if (pending_.size() < length_) return "";
  return std::exchange(pending_, "");
}

std::string Utf8Printer::finish() { return escape(std::exchange(pending_, "")); }

}  // namespace heddle
