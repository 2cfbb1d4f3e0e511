#include "trainers/data/tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/dataset.h"
#include "trainers/data/sentencepiece.h"
#include "trainers/data/token_files.h"
#include "trainers/data/tokenize.h"
#include "trainers/evaluate.h"
#include "trainers/train_step.h"

namespace heddle::tokenizer_test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string text_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += tokenizer.bytes_of(id);
  return text;
}

TEST(ByteTokenizerTest, ATokenIsAByte) {
  const ByteTokenizer bytes;
  EXPECT_THAT(bytes.encode(std::string("a\0\xff\n", 4)), ElementsAre(97, 0, 255, 10));
  EXPECT_EQ(text_of(bytes, {97, 0, 255, 256, -1, 1 << 30, 10}), std::string("a\0\xff\n", 4));
  EXPECT_EQ(bytes.size(), 256);
  EXPECT_EQ(bytes.separator(), 256);
  EXPECT_EQ(make_tokenizer("bytes")->size(), 256);
}

TEST(PieceLengthTest, PiecesEndWhereTextMayBeCut) {
  const std::string lines(kPieceBytes - 10, 'a');
  EXPECT_EQ(piece_length(""), 0u);
  EXPECT_EQ(piece_length("a\nb"), 3u) << "the rest is a piece";
  EXPECT_EQ(piece_length(std::string(kPieceBytes, 'a')), kPieceBytes);
  EXPECT_EQ(piece_length(lines + "\nbb\nccccccccccc"), lines.size() + 4);
  EXPECT_EQ(piece_length(lines + " bb ccccccccccc"), lines.size() + 3);
  EXPECT_EQ(piece_length(lines + "bbbbbbbbbbbbbbb"), kPieceBytes);
  const std::string euro = "\xe2\x82\xac";
  for (size_t before = 0; before < 3; ++before) {
    std::string text(before, 'a');
    while (text.size() <= kPieceBytes + 3) text += euro;
    EXPECT_EQ((piece_length(text) - before) % 3, 0u);
    EXPECT_GT(piece_length(text), kPieceBytes - 3);
  }
  EXPECT_EQ(piece_length(std::string(kPieceBytes + 5, '\x80')), kPieceBytes) << "that is no UTF-8";
  EXPECT_EQ(piece_length(" " + std::string(kPieceBytes + 5, 'a')), kPieceBytes) << "a piece is not empty";
}

class TokenizeTest : public ::testing::Test {
 protected:
  // The ids of texts in a token file, as data.type: tokens reads them.
  std::vector<int32_t> ids_of(const std::vector<std::string>& texts, Documents documents, int32_t separator = 256,
                              int64_t vocabulary = 257) {
    std::vector<std::string> paths;
    for (size_t i = 0; i < texts.size(); ++i) {
      paths.push_back((folder_ / fmt::format("text_{}", i)).string());
      write_file(paths.back(), texts[i]);
    }
    const std::string out = (folder_ / "ids.bin").string();
    TokenWriter writer(out, vocabulary);
    TokenizeOptions options;
    options.documents = documents;
    options.separator = separator;
    result_ = tokenize(open_texts(paths), ByteTokenizer(), options, writer);
    writer.commit();
    DataConfig data;
    data.type = DataType::tokens;
    const TokenFiles files(out, data, vocabulary);
    std::vector<int32_t> ids(static_cast<size_t>(files.size()));
    files.read(0, files.size(), ids.data());
    EXPECT_EQ(result_.tokens, files.size());
    return ids;
  }
  // The same as text, with | for the separator.
  std::string shown(const std::vector<std::string>& texts, Documents documents) {
    std::string text;
    for (const int32_t id : ids_of(texts, documents)) text += id == 256 ? '|' : static_cast<char>(id);
    return text;
  }

  testing::TempFolder folder_;
  TokenizeResult result_;
};

TEST_F(TokenizeTest, ADocumentIsWhatIsAskedFor) {
  const std::vector<std::string> texts = {"a\nb\n\n\nc\n", "\n\nd\r\ne\r\n\r\nf"};
  EXPECT_EQ(shown(texts, Documents::none), texts[0] + texts[1]);
  EXPECT_EQ(result_.documents, 0);
  EXPECT_EQ(shown(texts, Documents::file), "|" + texts[0] + "|" + texts[1]);
  EXPECT_EQ(result_.documents, 2);
  EXPECT_EQ(shown(texts, Documents::line), "|a|b|c|d|e|f");
  EXPECT_EQ(shown(texts, Documents::paragraph), "|a\nb|c|d\r\ne|f");
  EXPECT_EQ(result_.documents, 4);
  EXPECT_EQ(result_.bytes, 9u);
  EXPECT_EQ(result_.decoded_bytes, 9u);
  EXPECT_EQ(shown({"\n\n", "x"}, Documents::paragraph), "|x");
  EXPECT_THROW(shown({"\n\r\n"}, Documents::line), Error);
}

TEST_F(TokenizeTest, ManyIdsAreWide) {
  EXPECT_THAT(ids_of({"a", "b"}, Documents::file, 65535, 65536), ElementsAre(65535, 97, 65535, 98));
  EXPECT_EQ(fs::file_size(folder_ / "ids.bin"), 1024u + 4 * 2);
  EXPECT_THAT(ids_of({"a", "b"}, Documents::file, 65536, 65537), ElementsAre(65536, 97, 65536, 98));
  EXPECT_EQ(fs::file_size(folder_ / "ids.bin"), 1024u + 4 * 4);
}

// Longer than a piece and than the buffer of the writer, in one line and in many.
TEST_F(TokenizeTest, LongTextsAreWhole) {
  std::string lines;
  for (int i = 0; lines.size() < 10 * kPieceBytes; ++i) lines += fmt::format("line {}\n", i);
  EXPECT_EQ(shown({lines}, Documents::none), lines);
  const std::string line(5 * kPieceBytes + 123, 'x');
  EXPECT_EQ(shown({line, lines}, Documents::file), "|" + line + "|" + lines);
}

TEST_F(TokenizeTest, WhatIsStoppedOrNoTextLeavesNothing) {
  write_file(folder_ / "text", std::string(3 << 20, 'x'));
  const std::string out = (folder_ / "stopped.bin").string();
  int asked = 0;
  TokenizeOptions options;
  options.goes_on = [&](uint64_t bytes) {
    EXPECT_LE(bytes, uint64_t{3} << 20);
    return ++asked < 2;
  };
  {
    TokenWriter writer(out, 256);
    EXPECT_THROW(tokenize(open_texts({(folder_ / "text").string()}), ByteTokenizer(), options, writer), Stopped);
  }
  EXPECT_EQ(asked, 2);
  EXPECT_FALSE(fs::exists(out));
  EXPECT_FALSE(fs::exists(partial_path(out)));
  const auto refusal = [&](const std::string& contents) -> std::string {
    write_file(folder_ / "text", contents);
    try {
      open_texts({(folder_ / "text").string()});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refusal(""), HasSubstr("text is empty"));
  EXPECT_THAT(refusal("\x1f\x8b\x08gzip"), HasSubstr("is a gzip file"));
  EXPECT_EQ(refusal("text"), "accepted");
  EXPECT_THROW(TokenWriter("/dev/null", 256), Error);
}

class SentencePieceTest : public TokenizeTest {
 protected:
  void SetUp() override {
    if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
    text_ = read_file(fs::path(HEDDLE_SOURCE_DIR) / "tests/golden/text.txt");
    write_file(folder_ / "text", text_);
    model_ = (folder_ / "text.model").string();
    write_file(model_, train(400));
  }
  std::string train(int64_t vocabulary) {
    return train_vocabulary(open_texts({(folder_ / "text").string()}), vocabulary);
  }
  TrainConfig config(const std::string& data, const std::string& vocabulary = "400") {
    return testing::tiny_train_config({"data={" + data + "}", "model.vocab_size=" + vocabulary});
  }
  std::string refusal(const std::string& data, const std::string& vocabulary = "400") {
    try {
      make_dataset(dataset_options(config(data, vocabulary)));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  }

  std::string text_, model_;
};

TEST_F(SentencePieceTest, ATrainedVocabularyGivesEveryTextBack) {
  const auto tokenizer = make_tokenizer(model_);
  EXPECT_EQ(tokenizer->size(), 400);
  EXPECT_EQ(tokenizer->separator(), 1);
  EXPECT_EQ(tokenizer->bytes_of(0), "");
  EXPECT_EQ(tokenizer->bytes_of(1), "");
  EXPECT_EQ(tokenizer->bytes_of(3), std::string(1, '\0'));
  EXPECT_EQ(tokenizer->bytes_of(400), "");
  for (const std::string& text : {text_, std::string("  two  spaces \t\r\n\n \xc3\xa4\xe2\x82\xac \xf0\x9f\x98\x80"),
                                  std::string("\x01\x7f ~"), std::string(" "), std::string("\n")}) {
    const std::vector<int32_t> ids = encode_text(*tokenizer, text);
    EXPECT_EQ(text_of(*tokenizer, ids), text);
    EXPECT_LE(ids.size(), text.size());
  }
  EXPECT_LT(encode_text(*tokenizer, text_).size(), text_.size() / 3 * 2);
  EXPECT_TRUE(tokenizer->encode("").empty());
}

TEST_F(SentencePieceTest, TheSameTextGivesTheSameModel) {
  EXPECT_EQ(train(400), read_file(model_));
  EXPECT_NE(train(401), read_file(model_));
}

TEST_F(SentencePieceTest, SizesThatDoNotFitAreRefused) {
  for (const int64_t vocabulary : {int64_t{260}, int64_t{1} << 20}) {
    EXPECT_THAT(
        [&] { train(vocabulary); },
        ::testing::ThrowsMessage<UsageError>(HasSubstr(fmt::format("found a vocabulary of {} tokens, expected at {} ",
                                                                   vocabulary, vocabulary == 260 ? "least" : "most"))));
  }
}

TEST_F(SentencePieceTest, TextIsReadByPieces) {
  const std::string section = "type: text, path: '" + (folder_ / "text").string() + "', tokenizer: '" + model_ + "'";
  const auto data = make_dataset(dataset_options(config(section)));
  EXPECT_FALSE(data->is_text());
  const Batch batch = data->training_batch(0);
  const std::string shown = text_of(*data->tokenizer(), {batch.tokens.begin(), batch.tokens.begin() + batch.length});
  EXPECT_GT(shown.size(), static_cast<size_t>(batch.length));
  EXPECT_NE(text_.find(shown), std::string::npos);
  // The same ids as in a token file that `heddle tokenize` writes.
  TokenWriter writer(folder_ / "ids.bin", 400);
  tokenize(open_texts({(folder_ / "text").string()}), *make_tokenizer(model_), {}, writer);
  writer.commit();
  const auto file = make_dataset(dataset_options(
      config("type: tokens, path: '" + (folder_ / "ids.bin").string() + "', tokenizer: '" + model_ + "'")));
  EXPECT_EQ(file->training_batch(7).tokens, data->training_batch(7).tokens);
  EXPECT_EQ(file->validation_batch(0).targets, data->validation_batch(0).targets);
}

// The identity covers the model: another one gives other tokens, or the same tokens another text.
TEST_F(SentencePieceTest, AnotherModelIsOtherData) {
  const std::string section = "type: text, path: '" + (folder_ / "text").string() + "', tokenizer: '" + model_ + "'";
  const DataIdentity before = make_dataset(dataset_options(config(section)))->identity();
  EXPECT_EQ(before.files, 2);
  write_file(model_, train(390));
  EXPECT_NE(make_dataset(dataset_options(config(section)))->identity(), before);
}

// The bytes of the targets, and so the bits of a byte, are those of the text.
TEST_F(SentencePieceTest, BitsAreOfBytes) {
  const std::string section = "type: text, path: '" + (folder_ / "text").string() + "', tokenizer: '" + model_ + "'";
  TrainConfig read = config(section);
  read.trainer.eval_batches.reset();
  Context context(Device{}, {.threads = 1});
  TrainStep train_step(context, read);
  const auto data = make_dataset(dataset_options(read));
  const Evaluation evaluation = evaluate(context, train_step.model(), *data);
  // All validation tokens but the first are targets.
  const std::vector<int32_t> ids = encode_text(*data->tokenizer(), text_);
  const auto kept = static_cast<int64_t>(static_cast<double>(ids.size()) * 0.05);
  EXPECT_EQ(evaluation.targets, kept - 1);
  EXPECT_EQ(evaluation.bytes,
            static_cast<int64_t>(text_of(*data->tokenizer(), {ids.end() - kept + 1, ids.end()}).size()));
  EXPECT_DOUBLE_EQ(evaluation.bits_per_byte(), evaluation.loss * static_cast<double>(evaluation.targets) /
                                                   static_cast<double>(evaluation.bytes) / std::log(2.0));
}

TEST_F(SentencePieceTest, ModelsThatDoNotFitAreRefused) {
  const std::string text = "type: text, path: '" + (folder_ / "text").string() + "', tokenizer: ";
  EXPECT_THAT(refusal(text + "'" + model_ + "'", "399"),
              HasSubstr("text.model has 400 tokens, expected at most model.vocab_size (399)"));
  EXPECT_EQ(refusal(text + "'" + model_ + "'", "448"), "accepted");
  EXPECT_THAT(refusal(text + "byte"), HasSubstr("data.tokenizer: found no file 'byte'"));
  EXPECT_THAT(refusal(text + "''"), HasSubstr("found an empty path, expected bytes or a file"));
  EXPECT_THAT(refusal(text + "'" + folder_.path().string() + "'"), HasSubstr("is a folder, expected a file"));
  EXPECT_THAT(refusal(text + "'" + (folder_ / "text").string() + "'"), HasSubstr("is no model of sentencepiece"));
  write_file(folder_ / "empty", "");
  EXPECT_THAT(refusal(text + "'" + (folder_ / "empty").string() + "'"), HasSubstr("is no model of sentencepiece"));
  write_file(folder_ / "cut", read_file(model_).substr(0, 500));
  EXPECT_THAT(refusal(text + "'" + (folder_ / "cut").string() + "'"), HasSubstr("is no model of sentencepiece"));
}

}  // namespace
}  // namespace heddle::tokenizer_test
