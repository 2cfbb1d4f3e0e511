// heddle tokenize INPUT... --out F.bin
#include "trainers/data/tokenize.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "trainers/data/sentencepiece.h"

namespace heddle::cli {
namespace {

constexpr int64_t kFewestPieces = 260;  // <unk>, <s>, </s> and the bytes, and one that is learned
constexpr int64_t kNotGiven = -1;
constexpr int64_t kMostPieces = int64_t{1} << 24;
const double kLargestId = Range::count().high - 1;  // of the largest vocabulary

struct TokenizeArguments {
  std::vector<std::string> inputs;
  std::string out;
  std::string tokenizer = kByteTokenizer;
  int64_t vocabulary = 0;  // 0: it is not trained
  Documents documents = Documents::none;
  int64_t separator = kNotGiven;
};

std::string megabytes(uint64_t done, uint64_t all, double seconds) {
  return fmt::format("{:.1f} of {:.1f} MB, {:.2f} MB/s", static_cast<double>(done) / 1e6,
                     static_cast<double>(all) / 1e6, static_cast<double>(done) / 1e6 / seconds);
}

// The name of the model beside the tokens.
std::string model_path(const TokenizeArguments& options) {
  return std::filesystem::path(options.out).replace_extension(".model").string();
}

// The files that are written replace none that is read, nor one another. The header, which is written last, needs a
// file in which one can go back.
void check_outputs(const TokenizeArguments& options, const std::vector<MappedFile>& texts) {
  NamedFiles inputs;
  for (const MappedFile& text : texts) inputs.push_back({"one of the texts", text.path()});
  if (options.tokenizer != kByteTokenizer) add_found_files(inputs, "the file of --tokenizer", options.tokenizer);
  NamedFiles outputs = {{"--out", options.out}};
  if (options.vocabulary > 0) outputs.push_back({"the vocabulary beside --out", model_path(options)});
  check_output_files(outputs, inputs);
  if (is_written_through(options.out)) {
    throw UsageError(
        fmt::format("--out: {} is written as a stream, expected a regular file: its header comes last", options.out));
  }
}

std::string trained_vocabulary(const TokenizeArguments& options, const std::vector<MappedFile>& texts) {
  try {
    return train_vocabulary(texts, options.vocabulary);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("--train-vocab: {}", error.what()));
  }
}

// The token before each document.
int32_t separator_of(const TokenizeArguments& options, const Tokenizer& tokenizer) {
  if (options.documents == Documents::none) {
    if (options.separator != kNotGiven)
      throw UsageError("--separator: there are no documents; expected it beside --documents");
    return 0;
  }
  if (options.separator == kNotGiven) {
    if (const auto separator = tokenizer.separator()) return *separator;
    throw UsageError("--documents: this tokenizer has no token to begin a document with; give one by --separator ID");
  }
  const auto separator = static_cast<int32_t>(options.separator);
  if (tokenizer.bytes_of(separator).empty()) return separator;
  throw UsageError(
      fmt::format("--separator: token {} is text, which documents may hold; expected another id", separator));
}

void report(const TokenizeArguments& options, const TokenizeResult& result, int64_t width, int64_t vocabulary,
            int32_t separator) {
  fmt::print("tokens        {} in {}, {} behind a header of llm.c\n", result.tokens, options.out,
             width == 2 ? "uint16" : "uint32");
  if (options.vocabulary > 0) fmt::print("tokenizer     {}\n", model_path(options));
  fmt::print("vocabulary    {}: model.vocab_size is at least this\n", vocabulary);
  if (result.documents > 0) {
    fmt::print("documents     {}, each behind token {}: data.separator\n", result.documents, separator);
  }
  fmt::print("bytes         {}, {:.3f} a token\n", result.bytes,
             static_cast<double>(result.bytes) / static_cast<double>(result.tokens));
  if (result.changed_pieces == 0) return;
  print_note(
      fmt::format("the tokens stand for {} bytes and do not give the text back as it was: the tokenizer "
                  "normalizes, or the text has characters that it does not know; bits per byte count its bytes",
                  result.decoded_bytes));
}

// Gives the files their names when all bytes of both are on the disk: an error before that leaves neither.
void commit(TokenWriter& writer, AtomicFile* model, const TokenizeArguments& options) {
  if (model != nullptr) model->sync();
  writer.commit();
  if (model == nullptr) return;
  try {
    model->commit();
  } catch (const Error& error) {
    fail("{} is written, but its tokenizer is not: {}", options.out, error.what());
  }
}

// What `open` returns. Files of the user's that are not what they should be are wrong usage, as they are in a config.
template <class Open>
auto open_given(const Open& open) {
  try {
    return open();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

int run(const TokenizeArguments& options) {
  const bool is_trained = options.vocabulary > 0;
  const std::vector<MappedFile> texts = open_given([&] { return open_texts(options.inputs); });
  check_outputs(options, texts);
  uint64_t bytes = 0;
  for (const MappedFile& text : texts) bytes += text.bytes().size();
  const std::string model = is_trained ? trained_vocabulary(options, texts) : "";
  // Not earlier: the library that trains a vocabulary cannot be stopped, and as nothing is written yet a signal may end
  // the process.
  const Signals& signals = Signals::install("stopping; a second signal stops at once");
  const auto tokenizer = is_trained ? make_sentencepiece(model, model_path(options))
                                    : open_given([&] { return make_tokenizer(options.tokenizer); });
  TokenizeOptions tokenize_options;
  tokenize_options.documents = options.documents;
  tokenize_options.separator = separator_of(options, *tokenizer);
  const int64_t vocabulary = std::max<int64_t>(
      tokenizer->size(), options.documents == Documents::none ? 0 : int64_t{tokenize_options.separator} + 1);
  TokenWriter writer(options.out, vocabulary);
  TokenizeResult result;
  {
    Progress progress;
    tokenize_options.goes_on = [&](uint64_t done) {
      progress.tell([&](double seconds) { return megabytes(done, bytes, seconds); });
      return !signals.stop_requested();
    };
    try {
      result = tokenize(texts, *tokenizer, tokenize_options, writer);
    } catch (const Stopped&) {
      return kInterrupted;
    }
  }
  std::optional<AtomicFile> model_file;
  if (is_trained) model_file.emplace(model_path(options)).write(model.data(), model.size());
  commit(writer, model_file ? &*model_file : nullptr, options);
  report(options, result, writer.width(), vocabulary, tokenize_options.separator);
  return kDone;
}

}  // namespace

Run add_tokenize(CLI::App& command, const Registry&) {
  auto options = std::make_shared<TokenizeArguments>();
  command
      .add_option("input", options->inputs, "Text files, or globs of them; they are read as one text, in this order")
      ->required()
      ->option_text("INPUT...");
  add_path(command, "--out", options->out, "Token file to write")->required()->option_text("FILE.bin");
  CLI::Option* const tokenizer =
      refuse_empty(command.add_option("--tokenizer", options->tokenizer, "bytes, or a model file of sentencepiece"),
                   "bytes or a path")
          ->option_text("bytes|FILE.model [bytes]");
  add_number(command, "--train-vocab", options->vocabulary,
             "Train a vocabulary of this many tokens on the text first, and write it beside the tokens as FILE.model",
             Range::between(kFewestPieces, kMostPieces))
      ->excludes(tokenizer)
      ->option_text("V");
  add_choice(command, "--documents", options->documents,
             "What a document is; a separator is written before each. none: one text without separators",
             Choices<Documents>{{"none", Documents::none},
                                {"file", Documents::file},
                                {"line", Documents::line},
                                {"paragraph", Documents::paragraph}})
      ->option_text("none|file|line|paragraph [none]");
  add_number(command, "--separator", options->separator,
             "Id of the separator; when it is not given 256 beside bytes, <s> or </s> of a model file",
             Range::between(0, kLargestId))
      ->option_text("ID");
  set_manual(
      command,
      {.description =
           "Writes text as a token file that data.type tokens reads: by bytes, by a model of sentencepiece, or by "
           "one that is trained on the text first.",
       .examples = {{"heddle tokenize books/*.txt --out books.bin", "one token a byte"},
                    {"heddle tokenize data/kjv.txt --out data/kjv.bin --train-vocab 4096",
                     "trains a vocabulary, and writes it as data/kjv.model"}},
       .exit_codes = {{kInterrupted, "interrupted"}},
       .page = "docs/config.md#tokenizers"});
  return [options] { return run(*options); };
}

}  // namespace heddle::cli
