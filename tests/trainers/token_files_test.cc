#include "trainers/data/token_files.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <ios>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/data_identity.h"
#include "trainers/data/dataset.h"
#include "trainers/data/file_format.h"
#include "trainers/data/find_files.h"
#include "trainers/data/tokenizer.h"

namespace heddle::token_files_test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFolder;

// Little-endian integers, as NumPy's tofile() writes them.
template <class T>
std::string raw(const std::vector<int64_t>& numbers) {
  std::string bytes;
  for (const int64_t number : numbers) {
    const T value = static_cast<T>(number);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  return bytes;
}

// `count` ids below 50000 of which none is 0, with all bits in use.
std::vector<int64_t> some_ids(int64_t count) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(1 + (i * 7919 + 12345) % 49999);
  return ids;
}

std::string llmc(const std::vector<int64_t>& tokens, int64_t magic = 20240520, int64_t version = 1,
                 int64_t count = -1) {
  std::vector<int64_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count < 0 ? static_cast<int64_t>(tokens.size()) : count;
  return raw<int32_t>(header) + raw<uint16_t>(tokens);
}

// The same with uint32 tokens, as llm.c writes those of Llama 3.
std::string llmc_wide(const std::vector<int64_t>& tokens, int64_t version = 7) {
  const std::string header = llmc({}, 20240801, version, static_cast<int64_t>(tokens.size()));
  return header + raw<uint32_t>(tokens);
}

class TokenFilesTest : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& contents) {
    std::ofstream(folder_ / name, std::ofstream::binary) << contents;  // thousands of them: they need not last
    return (folder_ / name).string();
  }
  static DataConfig tokens(TokenWidth width = TokenWidth::uint16) {
    DataConfig data;
    data.type = DataType::tokens;
    data.token_width = width;
    return data;
  }
  static std::vector<int64_t> read(const TokenFiles& files) {
    std::vector<int32_t> tokens(static_cast<size_t>(files.size()));
    files.read(0, files.size(), tokens.data());
    return {tokens.begin(), tokens.end()};
  }
  // What is said of a file with these contents.
  std::string refusal(const std::string& contents, const DataConfig& data = tokens(), int64_t vocab_size = 50304) {
    try {
      TokenFiles(write("file", contents), data, vocab_size);
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind((folder_ / "file").string(), 0), 0u) << message;
      return message;
    }
    return "accepted";
  }

  TempFolder folder_;
};

TEST_F(TokenFilesTest, RawIntegersAndTheHeaderOfLlmcAreRead) {
  const std::vector<int64_t> ids = some_ids(500);
  EXPECT_EQ(read({write("a", raw<uint16_t>(ids)), tokens(), 50304}), ids);
  EXPECT_EQ(read({write("b", raw<uint32_t>(ids)), tokens(TokenWidth::uint32), 50304}), ids);
  EXPECT_EQ(read({write("c", llmc(ids)), tokens(), 50304}), ids);
  std::vector<int64_t> large = ids;
  for (int64_t& id : large) id *= 3;  // above 16 bits
  EXPECT_EQ(read({write("d", raw<uint32_t>(large)), tokens(TokenWidth::uint32), 150000}), large);
  EXPECT_EQ(read({write("g", llmc_wide(large)), tokens(), 150000}), large) << "a header says how wide its tokens are";
  EXPECT_EQ(read({write("h", llmc(ids)), tokens(TokenWidth::uint32), 50304}), ids);
  // Bytes as uint16, an id that is 0 everywhere, and few ids: none of them looks like another width.
  const std::vector<int64_t> small = {72, 101, 108, 108, 111, 32,  119, 111, 114, 108, 100, 72, 101, 108, 108, 111,
                                      32, 119, 111, 114, 108, 100, 72,  101, 108, 108, 111, 32, 119, 111, 114, 108};
  EXPECT_EQ(read({write("e", raw<uint16_t>(small)), tokens(), 256}), small);
  const std::vector<int64_t> zeros(100);
  EXPECT_EQ(read({write("f", raw<uint16_t>(zeros)), tokens(), 256}), zeros);
}

// Shards of all formats are one row of tokens; a part of it may lie in three of them.
TEST_F(TokenFilesTest, ShardsFollowEachOther) {
  const std::vector<int64_t> ids = some_ids(100);
  const auto part = [&](int64_t begin, int64_t end) { return std::vector(ids.begin() + begin, ids.begin() + end); };
  write("shard_0.bin", raw<uint16_t>(part(0, 40)));
  write("shard_1.bin", llmc(part(40, 45)));
  write("shard_2.bin", raw<uint16_t>(part(45, 47)));
  write("shard_3.bin", llmc_wide(part(47, 48)));
  write("shard_4.bin", raw<uint16_t>(part(48, 100)));
  const TokenFiles files((folder_ / "shard_*.bin").string(), tokens(), 50304);
  ASSERT_EQ(files.size(), 100);
  EXPECT_EQ(files.files().size(), 5u);
  for (int64_t begin = 0; begin < 100; ++begin) {
    for (const int64_t count : {1, 5, 9, 60}) {
      if (begin + count > 100) continue;
      std::vector<int32_t> found(static_cast<size_t>(count));
      files.read(begin, count, found.data());
      EXPECT_EQ(std::vector<int64_t>(found.begin(), found.end()), part(begin, begin + count));
    }
  }
}

TEST_F(TokenFilesTest, AnotherWidthIsRecognized) {
  const std::vector<int64_t> ids = some_ids(4000);
  EXPECT_THAT(refusal(raw<uint32_t>(ids)),
              HasSubstr("every second uint16 is 0, as in a file of uint32; set data.token_width: uint32"));
  std::vector<int64_t> large = ids;
  for (int64_t& id : large) id = id * 2 + 1;
  EXPECT_THAT(refusal(raw<uint32_t>(large), tokens(), 100277), HasSubstr("set data.token_width: uint32"));
  EXPECT_THAT(refusal(raw<uint16_t>(ids), tokens(TokenWidth::uint32)),
              HasSubstr("as uint16 all are, so data.token_width: uint16 may be meant"));
  EXPECT_THAT(refusal(raw<int64_t>(ids)), HasSubstr("as in a file of int64; expected uint16 or uint32"));
  EXPECT_THAT(refusal(raw<int64_t>(ids), tokens(TokenWidth::uint32)), HasSubstr("as in a file of int64"));
  EXPECT_THAT(refusal(raw<uint16_t>(ids) + "x"),
              HasSubstr("has 8001 bytes, no whole number of tokens of 2 bytes (data.token_width: uint16)"));
  EXPECT_THAT(refusal(raw<uint16_t>(some_ids(3)), tokens(TokenWidth::uint32)),
              HasSubstr("has 6 bytes, no whole number of tokens of 4 bytes (data.token_width: uint32)"));
}

TEST_F(TokenFilesTest, FilesOfAnotherKindAreNamed) {
  const std::string ids = raw<uint16_t>(some_ids(200));
  const std::string shape = "{'descr': '<u2', 'fortran_order': False, 'shape': (200,), }                    \n";
  EXPECT_THAT(refusal("\x93NUMPY\x01" + std::string(1, '\0') + "\x76" + std::string(1, '\0') + shape + ids),
              HasSubstr("is a NumPy .npy file, expected raw text or tokens: array.tofile(FILE)"));
  EXPECT_THAT(refusal("\x1f\x8b\x08" + std::string(1, '\0') + ids), HasSubstr("is a gzip file"));
  EXPECT_THAT(refusal("BZh91AY&SY" + ids), HasSubstr("is a bzip2 file"));
  EXPECT_THAT(refusal("PK\x03\x04" + ids), HasSubstr("is a zip"));
  const std::string json = R"({"x":{"dtype":"U16","shape":[200],"data_offsets":[0,400]}})";
  EXPECT_THAT(refusal(raw<int64_t>({static_cast<int64_t>(json.size())}) + json + ids),
              HasSubstr("is a safetensors file"));
  EXPECT_THAT(refusal("Ye shall know them by their fruits: \xC3\xA4\xE2\x82\xAC.\n"),
              HasSubstr("is plain text, expected token ids; data.type: text reads it"));
  DataConfig pieces = tokens();
  pieces.tokenizer = "kjv.model";
  EXPECT_THAT(refusal("Ye shall know them by their fruits.\n", pieces), HasSubstr(" --tokenizer kjv.model --out "));
  EXPECT_THAT(refusal("Das Gerippe der Welt, in f\xFCnf Zeilen\n"), HasSubstr("is plain text")) << "Latin-1";
  EXPECT_THAT(refusal("\xD0\x9D\xD0\xB0\xD1\x87\xD0\xB0\xD0\xBB\xD0\xBE \xD0\xB1\xD1\x8B\xD0\xBB\xD0\xBE."),
              HasSubstr("is plain text"));

  // The same files are no text, either.
  const DataConfig text;
  EXPECT_THAT(refusal("\x93NUMPY\x01" + ids, text), HasSubstr("is a NumPy .npy file"));
  EXPECT_THAT(refusal("\x1f\x8b\x08" + ids, text), HasSubstr("is a gzip file"));
  EXPECT_THAT(refusal("BZh11AY&SY" + ids, text), HasSubstr("is a bzip2 file, expected raw text or tokens: decompress"));
  EXPECT_EQ(refusal("BZh9", text), "accepted");
  EXPECT_THAT(refusal(llmc(some_ids(20)), text), HasSubstr("expected text; data.type: tokens reads it"));
  EXPECT_EQ(refusal(ids + '\xff', text), "accepted") << "text is bytes of any value";
}

// What is printed can be run as it is: a shell reads each path as one word, and documents get the separator that the
// data have.
TEST_F(TokenFilesTest, TheCommandThatIsPrintedIsRight) {
  DataConfig data = tokens();
  data.tokenizer = "my pieces.model";
  data.pack = true;
  data.separator = 4095;
  const std::string path = write("it's $HOME.txt", "Ye shall know them by their fruits.\n");
  const std::string quoted = "'" + folder_.path().string() + "/it'\\''s $HOME.txt";
  EXPECT_THAT([&] { TokenFiles(path, data, 4096); },
              ::testing::ThrowsMessage<Error>(HasSubstr("`heddle tokenize " + quoted +
                                                        "' --tokenizer 'my pieces.model' --documents KIND " +
                                                        "--separator 4095 --out " + quoted + ".bin'` writes them")));
  EXPECT_THAT(tokenize_command("-x", data), HasSubstr("tokenize ./-x --"));
  data.tokenizer = kByteTokenizer;
  data.separator = 10;
  EXPECT_EQ(tokenize_command("a.txt", data), "heddle tokenize a.txt --tokenizer bytes")
      << "the text itself holds the separators";
  data.separator = 256;
  EXPECT_EQ(tokenize_command("a.txt", data),
            "heddle tokenize a.txt --tokenizer bytes --documents KIND --separator 256");
  data.type = DataType::text;
  EXPECT_EQ(tokenize_command("a.txt", data), "heddle tokenize a.txt --tokenizer bytes");
}

TEST_F(TokenFilesTest, HeadersOfLlmcMustFit) {
  const std::vector<int64_t> ids = some_ids(100);
  EXPECT_THAT(refusal(llmc(ids, 20240520, 2)), HasSubstr("a header of llm.c of version 2, expected version 1"));
  EXPECT_THAT(refusal(llmc(ids, 20240328, 1)),
              HasSubstr("magic 20240328: a tokenizer; expected magic 20240520 (uint16 tokens) or 20240801 (uint32)"));
  EXPECT_THAT(refusal(llmc(ids, 20240801, 7)), HasSubstr("has 1224 bytes, expected 1424: its header of llm.c says 100 "
                                                         "tokens (uint32)"));
  EXPECT_THAT(refusal(llmc_wide(ids, 1)), HasSubstr("of version 1, expected version 7 (uint32 tokens)"));
  EXPECT_THAT(refusal(llmc_wide({50304})), HasSubstr("token 0 is 50304, expected less than model.vocab_size"));
  EXPECT_THAT(refusal(llmc(ids, 20240520, 1, 101)),
              HasSubstr("has 1224 bytes, expected 1226: its header of llm.c says 101 tokens"));
  EXPECT_THAT(refusal(llmc(ids, 20240520, 1, 99)), HasSubstr("has 1224 bytes, expected 1222"));
  EXPECT_THAT(refusal(llmc(ids, 20240520, 1, 0xFFFFFFFF)), HasSubstr("says 4294967295 tokens"));
  EXPECT_THAT(refusal(llmc({})), HasSubstr("says 0 tokens"));
  EXPECT_THAT(refusal(llmc(ids).substr(0, 512)), HasSubstr("has 512 bytes, expected 1224"));
}

TEST_F(TokenFilesTest, TokensOutsideTheVocabularyAreNamed) {
  std::vector<int64_t> ids = some_ids(40000);
  ids[33333] = 50304;
  EXPECT_THAT(refusal(raw<uint16_t>(ids)),
              HasSubstr("token 33333 is 50304, expected less than model.vocab_size (50304)"));
  EXPECT_THAT(refusal(llmc(ids)), HasSubstr("token 33333 is 50304"));
  ids[33333] = 0xFFFFFFFF;
  EXPECT_THAT(refusal(raw<uint32_t>(ids), tokens(TokenWidth::uint32)),
              ::testing::EndsWith("token 33333 is 4294967295, expected less than model.vocab_size (50304)"));
  ids[33333] = 50303;
  EXPECT_EQ(refusal(raw<uint16_t>(ids)), "accepted");
  // In the second of two shards the place is that in its file.
  const TempFolder folder;
  write_file(folder / "0", raw<uint16_t>({1, 2, 3}));
  write_file(folder / "1", raw<uint16_t>({4, 9}));
  try {
    TokenFiles((folder / "*").string(), tokens(), 9);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr((folder / "1").string() + ": token 1 is 9"));
  }
}

TEST_F(TokenFilesTest, PathsInTheHomeFolderAndPatternsAreFound) {
  write("b.txt", "b");
  write("a.txt", "a");
  write("[a].txt", "c");
  const std::string home = getenv("HOME") == nullptr ? "" : getenv("HOME");
  setenv("HOME", folder_.path().c_str(), 1);
  const auto files = [&](const std::string& name) { return (folder_ / name).string(); };
  EXPECT_THAT(find_files("~/b.txt"), ElementsAre(files("b.txt")));
  EXPECT_THAT(find_files("~/?.txt"), ElementsAre(files("a.txt"), files("b.txt")));
  EXPECT_THAT(find_files(files("[a].txt")), ElementsAre(files("[a].txt"))) << "a name before a pattern";
  setenv("HOME", home.c_str(), 1);

  const auto missing = [](const std::string& path) -> std::string {
    try {
      find_files(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "found";
  };
  EXPECT_EQ(missing(files("*.md")), "found no file that matches '" + files("*.md") + "'");
  EXPECT_EQ(missing("books/none.txt"),
            "found no file 'books/none.txt' (looked in " + fs::current_path().string() + ")");
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  EXPECT_THAT(missing("data/kjv.txt"), HasSubstr("`./dev setup` in the repository of heddle writes this text, and "
                                                 "--set data.path=FILE takes any other"));
  const fs::path gone = folder_ / "gone";
  fs::create_directory(gone);
  fs::current_path(gone);
  fs::remove(gone);
  EXPECT_EQ(missing("text.txt"), "found no file 'text.txt' (looked in the current folder, which is gone)");
  fs::current_path(before);
}

TEST_F(TokenFilesTest, LongFilesAreDigestedByBlocks) {
  const uint64_t limit = 1 << 20;
  std::string contents(3 << 20, '\0');
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i * 31 + i / 1000);
  const auto digest = [&](const std::vector<std::string>& parts, uint64_t full) {
    std::vector<MappedFile> files;
    for (size_t i = 0; i < parts.size(); ++i) files.emplace_back(write(fmt::format("part_{}", i), parts[i]));
    return identify(files, {}, full);
  };
  const DataIdentity whole = digest({contents}, limit);
  EXPECT_EQ(whole.bytes, contents.size());
  EXPECT_EQ(whole, digest({contents}, UINT64_MAX)) << "48 of 4096 blocks are all there are";

  // Four files of 768 KiB and 3000 of a byte: two blocks of each file, its first and its last 64 KiB.
  std::vector<std::string> parts(3004, "x");
  for (size_t i = 0; i < 4; ++i) parts[i] = contents.substr(i * (768 << 10), 768 << 10);
  const DataIdentity some = digest(parts, limit);
  EXPECT_EQ(some.files, 3004);
  EXPECT_NE(some, digest(parts, UINT64_MAX));
  const auto changed = [&](size_t place) {
    std::vector<std::string> other = parts;
    other[2][place] ^= 1;
    return digest(other, limit) != some;
  };
  EXPECT_TRUE(changed(0));
  EXPECT_TRUE(changed((64 << 10) - 1));
  EXPECT_FALSE(changed(64 << 10));
  EXPECT_TRUE(changed((768 - 64) << 10));
  EXPECT_TRUE(changed((768 << 10) - 1));
}

TEST_F(TokenFilesTest, ValidationFilesAreTheirOwnPartOfTheIdentity) {
  const std::vector<MappedFile> files = {MappedFile(write("a", "first")), MappedFile(write("b", "second"))};
  const std::span<const MappedFile> all = files;
  const DataIdentity together = identify(all), apart = identify(all.first(1), all.last(1));
  EXPECT_EQ(together.files, apart.files);
  EXPECT_EQ(together.bytes, apart.bytes);
  EXPECT_NE(together.crc32, apart.crc32);
  EXPECT_EQ(to_string(identify(all.first(1))).substr(0, 24), "1 file of 5 bytes, crc32");
}

// A file is mapped: of its size, nothing is allocated.
TEST_F(TokenFilesTest, ALargeFileTakesNoMemory) {
  constexpr int64_t kSize = int64_t{256} << 20, kRoom = kSize / 4;
  write("large", "x");
  fs::resize_file(folder_ / "large", kSize);
  // Page of the process that count as data: those which are written to and belong to no file.
  int64_t data_pages = 0;
  std::ifstream statm("/proc/self/statm");
  for (int field = 0; field < 6; ++field) statm >> data_pages;
  ASSERT_GT(data_pages, 0);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_DATA, &before), 0);
  rlimit limited = before;
  limited.rlim_cur = static_cast<rlim_t>(data_pages * sysconf(_SC_PAGESIZE) + kRoom);
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &limited), 0);
  DataIdentity identity;
  try {
    const auto data = make_dataset(dataset_options(testing::tiny_train_config(
        {"data={type: text, path: '" + (folder_ / "large").string() + "'}", "model.vocab_size=256"})));
    data->training_batch(1000000);
    identity = data->identity();
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
  }
  setrlimit(RLIMIT_DATA, &before);
  EXPECT_EQ(identity.bytes, static_cast<uint64_t>(kSize));
}

}  // namespace
}  // namespace heddle::token_files_test
