#include "core/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path test_file(const std::string& name) {
  static const testing::TempFolder folder;
  return folder / name;
}

// A file of this header and `data_bytes` bytes of data.
fs::path raw_file(const std::string& name, const std::string& header, size_t data_bytes) {
  const fs::path path = test_file(name);
  const uint64_t length = header.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  write_file(path, text + header + std::string(data_bytes, 'x'));
  return path;
}

// A pipe cannot be read twice, and its size is not known.
TEST(SafetensorsTest, APipeIsReadAsAFileIs) {
  Context context;
  const fs::path file = test_file("to_pipe.safetensors"), pipe = test_file("pipe");
  std::vector<NamedTensor> tensors;
  for (const char* name : {"a", "b"}) {
    tensors.push_back({name, Tensor::empty(context, {30000}, DType::float64)});
    write_values(context, tensors.back().tensor, std::vector<double>(30000, *name));
  }
  write_safetensors(context, file, tensors);
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const auto write_into_pipe = [&](const std::string& bytes) {
    return std::thread([=] { std::ofstream(pipe, std::ios::binary) << bytes; });
  };
  std::thread writer = write_into_pipe(read_file(file));
  SafetensorsReader reader(pipe);
  writer.join();
  for (const char* name : {"b", "a"}) {
    EXPECT_EQ(read_values(context, reader.read(context, reader.at(name))), std::vector<double>(30000, *name));
  }
  writer = write_into_pipe(read_file(file) + "more");
  EXPECT_THAT(testing::error_of([&] { SafetensorsReader more(pipe); }),
              HasSubstr("4 trailing bytes after the last tensor"));
  writer.join();
}

std::string refusal_of_tensors(const fs::path& path) {
  try {
    SafetensorsReader reader(path);
    return "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(path.string()));
    return error.what();
  }
}

TEST(SafetensorsTest, EveryDtypeReadsBackBitForBit) {
  Context context;
  const fs::path path = test_file("round_trip.safetensors");
  std::vector<NamedTensor> tensors;
  for (DType dtype : {DType::float16, DType::int32, DType::float64, DType::bfloat16, DType::float32, DType::int64}) {
    Tensor tensor = Tensor::empty(context, {2, 3}, dtype);
    write_values(context, tensor, {1, -2, 3, 4, 5, 6});
    tensors.push_back({"tensor." + std::string(name(dtype)), tensor});
  }
  tensors.push_back({"empty", Tensor::empty(context, {0, 7}, DType::float32)});
  tensors.push_back({"scalar \"quoted\"", Tensor::zeros(context, {}, DType::float32)});
  const FileDigest digest = write_safetensors(context, path, tensors, {{"format", "pt"}});
  EXPECT_EQ(digest, digest_file(path));

  SafetensorsReader reader(path);
  EXPECT_EQ(reader.metadata().at("format"), "pt");
  EXPECT_EQ(reader.entries().size(), tensors.size());
  for (const NamedTensor& named : tensors) {
    const SafetensorsEntry& entry = reader.at(named.name);
    EXPECT_EQ(entry.begin % size_of(entry.dtype), 0u);
    const Tensor tensor = reader.read(context, entry);
    EXPECT_EQ(tensor.dtype(), named.tensor.dtype());
    EXPECT_EQ(tensor.shape(), named.tensor.shape());
    EXPECT_EQ(read_values(context, tensor), read_values(context, named.tensor));
  }
  EXPECT_EQ(reader.find("nothing"), nullptr);
  EXPECT_THROW(reader.at("nothing"), Error);
  const Tensor other = Tensor::empty(context, {3, 2}, DType::float32);
  EXPECT_THROW(reader.read(context, reader.at("tensor.float32"), other), Error);
}

TEST(SafetensorsTest, HeaderIsThatOfTheFormat) {
  const float data[2] = {1.0f, 2.0f};
  const fs::path path = test_file("bytes.safetensors");
  const std::vector<HostTensor> tensors = {{"a", DType::float32, {2}, data}};
  write_safetensors(path, tensors);
  const std::string text = read_file(path);
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const size_t padded = (header.size() + 7) / 8 * 8;
  ASSERT_EQ(text.size(), 8 + padded + 8);
  EXPECT_EQ(static_cast<size_t>(text[0]), padded);
  EXPECT_EQ(text.substr(8, header.size()), header);
  EXPECT_EQ(std::memcmp(text.data() + 8 + padded, data, 8), 0);
}

TEST(SafetensorsTest, NamesMustDiffer) {
  const std::vector<HostTensor> twice = {{"a", DType::float32, {0}, nullptr}, {"a", DType::float32, {0}, nullptr}};
  EXPECT_THROW(write_safetensors(test_file("twice.safetensors"), twice), Error);
  const float number = 0;
  const std::vector<HostTensor> named = {{"caf\xe9", DType::float32, {1}, &number}};
  EXPECT_THROW(write_safetensors(test_file("bytes.safetensors"), named), Error);
  EXPECT_FALSE(fs::exists(test_file("twice.safetensors")));
}

TEST(SafetensorsTest, DamagedFilesAreRefusedWithAReason) {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(refusal_of_tensors(raw_file("good", good, 8)), "accepted");
  EXPECT_THAT(refusal_of_tensors(raw_file("short_data", good, 7)), HasSubstr("truncated: tensor 'a' ends at byte 8"));
  EXPECT_THAT(refusal_of_tensors(raw_file("long_data", good, 9)), HasSubstr("1 trailing bytes"));
  EXPECT_THAT(refusal_of_tensors(raw_file("not_json", "{\"a\": nonsense}", 0)), HasSubstr("not JSON"));
  EXPECT_THAT(refusal_of_tensors(raw_file("no_object", "[1]", 0)), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal_of_tensors(raw_file("twice",
                                          R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                                          R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                                          0)),
              HasSubstr("names 'a' twice"));
  EXPECT_THAT(refusal_of_tensors(raw_file("twice_by_long_names",
                                          R"({"blocks.0.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                                          R"("blocks.0.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                                          0)),
              HasSubstr("names 'blocks.0.weight' twice"));
  EXPECT_THAT(refusal_of_tensors(raw_file("dtype", R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", 8)),
              HasSubstr(R"(unknown dtype "U8", expected one of F64)"));
  EXPECT_THAT(refusal_of_tensors(raw_file("overlap",
                                          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                          R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                          12)),
              HasSubstr("'b' begins at byte 4 of the data and overlaps"));
  EXPECT_THAT(refusal_of_tensors(raw_file("hole", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12)),
              HasSubstr("bytes 0 to 4 of the data belong to no tensor"));
  EXPECT_THAT(refusal_of_tensors(raw_file("size", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8)),
              HasSubstr("do not hold F32 (3) of 12 bytes"));
  EXPECT_THAT(refusal_of_tensors(raw_file("too_many", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8)),
              HasSubstr("do not hold F32 (1) of 4 bytes"));
  EXPECT_THAT(refusal_of_tensors(raw_file("backwards", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8)),
              HasSubstr("do not hold"));
  EXPECT_THAT(refusal_of_tensors(
                  raw_file("huge", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8)),
              HasSubstr("too large"));
  EXPECT_THAT(refusal_of_tensors(raw_file("negative", R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8)),
              HasSubstr("non-negative"));
  EXPECT_THAT(refusal_of_tensors(
                  raw_file("rank", R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", 8)),
              HasSubstr("9 dimensions"));
  EXPECT_THAT(refusal_of_tensors(raw_file("missing", R"({"a":{"dtype":"F32","shape":[2]}})", 8)),
              HasSubstr("'data_offsets' is missing"));
  EXPECT_THAT(refusal_of_tensors(raw_file("metadata", R"({"__metadata__":{"a":1}})", 0)), HasSubstr("expected a text"));

  write_file(test_file("tiny"), "abc");
  EXPECT_THAT(refusal_of_tensors(test_file("tiny")), HasSubstr("truncated: 3 bytes"));
  write_file(test_file("huge_header"), std::string(8, '\x7f'));
  EXPECT_THAT(refusal_of_tensors(test_file("huge_header")), HasSubstr("not a safetensors file"));
  write_file(test_file("cut_header"), read_file(test_file("good")).substr(0, 30));
  EXPECT_THAT(refusal_of_tensors(test_file("cut_header")), HasSubstr("truncated: the header has"));
  EXPECT_THAT(refusal_of_tensors(test_file("not_there")), HasSubstr("No such file"));
}

// A dry run looks at shapes: the header holds them.
TEST(SafetensorsTest, NoNumbersAreReadForMeta) {
  const fs::path path = test_file("header_alone.safetensors");
  const std::vector<float> numbers(1000, 1.5f);
  write_safetensors(path, std::vector<HostTensor>{{"x", DType::float32, {10, 100}, numbers.data()}});
  SafetensorsReader reader(path);
  fs::resize_file(path, fs::file_size(path) - numbers.size() * sizeof(float));  // the numbers are gone
  Context cpu, meta(Device{DeviceType::meta});
  EXPECT_THROW(reader.read(cpu, reader.at("x")), Error);
  EXPECT_EQ(reader.read(meta, reader.at("x")).shape(), (Shape{10, 100}));
  reader.read_part(meta, reader.at("x"), 200, Tensor::empty(meta, {300}, DType::float32));
  EXPECT_THROW(reader.read_part(meta, reader.at("x"), 800, Tensor::empty(meta, {300}, DType::float32)), Error);
  EXPECT_THROW(reader.read(meta, reader.at("x"), Tensor::empty(meta, {100, 10}, DType::float32)), Error);
}

}  // namespace
}  // namespace heddle
