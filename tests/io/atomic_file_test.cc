#include "core/io/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/io/atomic_folder.h"
#include "core/io/disk_space.h"
#include "core/io/mapped_file.h"
#include "core/io/system_calls.h"
#include "core/runtime/error.h"
#include "tests/error_of.h"
#include "tests/io/recorded_calls.h"
#include "tests/temp_folder.h"
#include "tests/terminal.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::RecordedCalls;

class AtomicFileTest : public ::testing::Test {
 protected:
  size_t files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_.path()), {})); }
  testing::TempFolder folder_;
};

TEST_F(AtomicFileTest, TheOldFileStaysUntilTheNewOneIsWhole) {
  const fs::path path = folder_ / "file";
  write_file(path, "old");
  {
    AtomicFile file(path);
    file.write("new", 3);
    EXPECT_EQ(read_file(path), "old");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(files(), 1u);  // nothing is left beside it
  const FileDigest digest = write_file(path, "new");
  EXPECT_EQ(digest_file(path), digest);
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(files(), 1u);
}

// A process that was killed leaves its part of a file, which may be longer than the next one.
TEST_F(AtomicFileTest, WhatAKilledWriterLeftIsNoPartOfTheFile) {
  write_file(partial_path(folder_ / "file"), "the beginning of a long file");
  write_file(folder_ / "file", "short");
  EXPECT_EQ(read_file(folder_ / "file"), "short");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFileTest, ASecondWriterIsRefused) {
  const fs::path path = folder_ / "file";
  AtomicFile first(path);
  first.write("first", 5);
  EXPECT_THAT(testing::error_of([&] { write_file(path, "second"); }), HasSubstr("file: it is being written already"));
  first.commit();
  EXPECT_EQ(read_file(path), "first");
  write_file(path, "third");
  EXPECT_EQ(read_file(path), "third");
}

// The first writer gives the file its name just when a second one has opened what it wrote.
TEST_F(AtomicFileTest, ASecondWriterLeavesAFileThatHasItsNameAlone) {
  const fs::path path = folder_ / "file";
  auto first = std::make_unique<AtomicFile>(path);
  first->write("first", 5);
  const SystemCalls real = system_calls();
  system_calls().open = [&](const char* name, int flags, mode_t mode) {
    const int descriptor = real.open(name, flags, mode);
    if (const auto writer = std::move(first)) writer->commit();
    return descriptor;
  };
  {
    AtomicFile second(path);
    system_calls() = real;
    EXPECT_EQ(read_file(path), "first");
    second.write("second", 6);
    EXPECT_EQ(read_file(path), "first");
    second.commit();
  }
  EXPECT_EQ(read_file(path), "second");
  EXPECT_EQ(files(), 1u);
}

// The name aside is no longer than a name may be, another one for every name, and cut between two characters.
TEST_F(AtomicFileTest, ANameMayBeAsLongAsAnyName) {
  for (const size_t length : {size_t{238}, size_t{239}, size_t{240}, size_t{255}}) {
    const std::string name(length, 'n');
    EXPECT_LE(partial_path(name).string().size(), 255u);
    {
      AtomicFile first(folder_ / name), second(folder_ / (name.substr(1) + "m"));
      first.write("first", 5);
      second.write("second", 6);
      second.commit();
      first.commit();
    }
    EXPECT_EQ(read_file(folder_ / name), "first");
    EXPECT_EQ(read_file(folder_ / (name.substr(1) + "m")), "second");
  }
  EXPECT_EQ(files(), 8u);
  const std::string folder(255, 'f');
  for (const char* contents : {"earlier", "later"}) {
    write_folder(folder_ / folder, [&](const fs::path& path) { write_file(path / "file", contents); });
    EXPECT_EQ(read_file(folder_ / folder / "file"), contents);
  }
  EXPECT_EQ(files(), 9u);
  for (const size_t before : {0u, 1u}) {
    std::string name(before, 'n');
    while (name.size() < 250) name += "\xc3\xa9";  // U+00E9
    const std::string aside = partial_path(name).string();
    EXPECT_EQ((aside.find('~') - 1 - before) % 2, 0u) << aside;
  }
  EXPECT_ANY_THROW(write_file(folder_ / std::string(256, 'n'), "x"));  // no file can have such a name
}

// The system would cut the path there.
TEST_F(AtomicFileTest, APathWithANulByteIsRefused) {
  write_file(folder_ / "file", "old");
  const fs::path path = folder_ / std::string("file\0.txt", 9);
  const std::vector<std::function<void()>> uses = {
      [&] { write_file(path, "new"); },
      [&] { read_file(path); },
      [&] { digest_file(path); },
      [&] { MappedFile{path}; },
      [&] { AppendFile(path).append("new"); },
      [&] { write_folder(path, [](const fs::path&) {}); },
  };
  for (const auto& use : uses) EXPECT_THAT(testing::error_of(use), HasSubstr("found a NUL byte in a path, behind '"));
  EXPECT_EQ(read_file(folder_ / "file"), "old");
}

TEST_F(AtomicFileTest, AFolderIsReplacedWhole) {
  const auto write = [&](const char* name) {
    write_folder(folder_ / "folder", [name](const fs::path& path) { write_file(path / name, name); });
  };
  write("earlier");
  write("later");
  EXPECT_FALSE(fs::exists(folder_ / "folder/earlier"));
  EXPECT_EQ(read_file(folder_ / "folder/later"), "later");
  EXPECT_EQ(files(), 1u);
}

// Of two writers of a folder the second one is refused, and what it would have written is no part of the first one's.
TEST_F(AtomicFileTest, ASecondWriterOfAFolderIsRefused) {
  const fs::path folder = folder_ / "folder";
  const auto write = [&](const char* name) {
    write_folder(folder, [name](const fs::path& path) { write_file(path / name, name); });
  };
  write_folder(folder, [&](const fs::path& path) {
    write_file(path / "first", "first");
    EXPECT_THAT(testing::error_of([&] { write("second"); }), HasSubstr("folder: it is being written already"));
  });
  EXPECT_EQ(read_file(folder / "first"), "first");
  EXPECT_FALSE(fs::exists(folder / "second"));
  fs::create_directories(partial_path(folder) / "inner");  // of a process that was killed
  write_file(partial_path(folder) / "left", "left");
  write("third");
  write_file(partial_path(folder), "of a file of this name");
  write("third");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
  EXPECT_EQ(read_file(folder / "third"), "third");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFileTest, TheDigestIsTheCommonCrc32) {
  const FileDigest digest = write_file(folder_ / "file", "123456789");
  EXPECT_EQ(digest.bytes, 9u);
  EXPECT_EQ(digest.crc32, 0xCBF43926u);  // the check value of CRC-32/ISO-HDLC
}

TEST_F(AtomicFileTest, BytesThatWereWrittenAreReplaced) {
  const fs::path path = folder_ / "file";
  AtomicFile file(path);
  file.write("0123456789", 10);
  file.overwrite(2, "ab", 2);
  file.write("end", 3);
  EXPECT_THROW(file.overwrite(12, "xy", 2), Error) << "one byte behind the end";
  file.overwrite(0, "", 0);
  const FileDigest digest = file.commit();
  EXPECT_EQ(digest, digest_file(path));
  EXPECT_EQ(read_file(path), "01ab456789end");
  AtomicFile device("/dev/null");
  EXPECT_THROW(device.overwrite(0, "", 0), Error);
}

TEST_F(AtomicFileTest, ErrorsNameTheFile) {
  EXPECT_THAT(testing::error_of([&] { read_file(folder_ / "none"); }), HasSubstr("none: No such file"));
  EXPECT_THAT(testing::error_of([&] { read_file(folder_.path()); }), HasSubstr("it is a folder"));
  fs::create_symlink("circle", folder_ / "circle");
  EXPECT_THAT(testing::error_of([&] { read_file(folder_ / "circle"); }),
              AllOf(HasSubstr("cannot open "), HasSubstr("circle: Too many levels of symbolic links")));
  EXPECT_THAT(testing::error_of([&] { write_file(folder_ / "circle", "x"); }), HasSubstr("cannot write "));
  EXPECT_THAT(testing::error_of([&] { write_file(folder_ / "no/file", "x"); }), HasSubstr("No such file"));
}

TEST_F(AtomicFileTest, ADeviceThatNeverEndsIsNotRead) {
  fs::create_symlink("/dev/zero", folder_ / "link");
  for (const fs::path& device : {fs::path("/dev/zero"), fs::path("/dev/urandom"), folder_ / "link"}) {
    const std::string refusal = "cannot read " + device.string() + ": it is a device that never ends, expected a file";
    EXPECT_EQ(testing::error_of([&] { read_file(device); }), refusal);
    EXPECT_EQ(testing::error_of([&] { digest_file(device); }), refusal);
    EXPECT_EQ(testing::error_of([&] { MappedFile file(device); }), refusal);
  }
  EXPECT_EQ(read_file("/dev/null"), "");
}

// Memory would end first.
TEST_F(AtomicFileTest, APipeThatMayNeverEndIsNotRead) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  constexpr uint64_t kMost = 3 << 20;
  const auto read = [&](size_t bytes) {
    std::thread writer([&] { std::ofstream(pipe, std::ios::binary) << std::string(bytes, 'x'); });
    std::string read;
    const std::string refusal = testing::error_of([&] { read = read_file(pipe, kMost); });
    writer.join();
    return refusal == "no error" ? std::to_string(read.size()) : refusal;
  };
  const auto before = std::signal(SIGPIPE, SIG_IGN);  // of the writer, whose reader goes away
  EXPECT_EQ(read(kMost), std::to_string(kMost));
  EXPECT_EQ(read(kMost + (1 << 20)),
            "cannot read " + pipe.string() + ": it gives more than 3.0 MiB and may never end, expected a file");
  std::signal(SIGPIPE, before);
  std::istringstream stream(std::string(kMost + 1, 'x'));
  EXPECT_THAT(testing::error_of([&] { read_stream(stream, "stdin", kMost); }),
              HasSubstr("cannot read stdin: it gives"));
  write_file(folder_ / "file", std::string(kMost + 1, 'x'));
  EXPECT_EQ(read_file(folder_ / "file", kMost).size(), kMost + 1) << "a file has an end";
}

TEST_F(AtomicFileTest, APipeIsNoRegularFile) {
  const fs::path pipe = folder_ / "pipe", file = folder_ / "file";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  write_file(file, "text");
  fs::create_symlink("file", folder_ / "link");
  EXPECT_EQ(testing::error_of([&] { read_regular_file(pipe); }), pipe.string() + " is a pipe, expected a file");
  EXPECT_EQ(testing::error_of([] { check_regular_file("/dev/null"); }),
            "/dev/null is a device or a socket, expected a file");
  EXPECT_THAT(testing::error_of([&] { check_regular_file(folder_.path()); }),
              HasSubstr("is a folder, expected a file"));
  EXPECT_EQ(read_regular_file(folder_ / "link"), "text");
  check_regular_file(folder_ / "none");
  EXPECT_THAT(testing::error_of([&] { read_regular_file(folder_ / "none"); }), HasSubstr("No such file"));
}

TEST_F(AtomicFileTest, ATerminalIsReadToTheEndThatIsTyped) {
  const testing::Terminal terminal;
  terminal.type("a line\n\x04");
  EXPECT_EQ(read_file(terminal.path()), "a line\n");
}

TEST_F(AtomicFileTest, ALinkAndPermissionsStay) {
  const fs::path path = folder_ / "file", link = folder_ / "link";
  write_file(path, "old");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_exec);
  fs::create_symlink("file", link);
  write_file(link, "new");
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(fs::read_symlink(link), "file");
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_exec);
}

// Files that belong together are synced first and then only renamed.
TEST_F(AtomicFileTest, ASyncedFileIsNotSyncedAgain) {
  RecordedCalls record(folder_.path());
  AtomicFile file(folder_ / "file");
  file.write("con", 3);
  file.sync();
  EXPECT_FALSE(fs::exists(folder_ / "file"));
  const std::vector<std::string> before = record.calls;
  file.commit();
  EXPECT_EQ(before.back(), "fsync .file.heddle-partial");
  EXPECT_EQ(record.calls[before.size()], "rename .file.heddle-partial to file");
  AtomicFile longer(folder_ / "file");
  longer.sync();
  longer.write("contents", 8);
  longer.commit();
  EXPECT_EQ(std::count(record.calls.begin(), record.calls.end(), "fsync .file.heddle-partial"), 3);
}

// The bytes are on the disk before they have their name, and the name is before commit() returns.
TEST_F(AtomicFileTest, SyncsTheFileThenRenamesItThenSyncsTheFolder) {
  RecordedCalls record(folder_.path());
  write_file(folder_ / "file", "contents");
  EXPECT_THAT(record.calls,
              ElementsAre("open .file.heddle-partial", "write .file.heddle-partial", "fsync .file.heddle-partial",
                          "rename .file.heddle-partial to file", "open .", "fsync ."));
}

TEST_F(AtomicFileTest, EveryAppendIsSynced) {
  RecordedCalls record(folder_.path());
  AppendFile file(folder_ / "file");
  EXPECT_THAT(record.calls, ElementsAre("open file", "open .", "fsync ."));
  for (const char* text : {"one\n", "", "two\n"}) {
    record.calls.clear();
    file.append(text);
    const std::vector<std::string> expected = {"write file", "fsync file"};
    EXPECT_EQ(record.calls, *text == '\0' ? std::vector<std::string>() : expected);
  }
  EXPECT_EQ(read_file(folder_ / "file"), "one\ntwo\n");
}

TEST_F(AtomicFileTest, ShortAndInterruptedWritesGoOn) {
  RecordedCalls record(folder_.path());
  record.most_bytes = 3;
  record.interrupts = true;
  const std::string contents = "0123456789";
  const FileDigest digest = write_file(folder_ / "file", contents);
  EXPECT_EQ(read_file(folder_ / "file"), contents);
  EXPECT_EQ(digest, digest_file(folder_ / "file"));
  AppendFile(folder_ / "file").append("abcdefg");
  EXPECT_EQ(read_file(folder_ / "file"), contents + "abcdefg");
}

// Whichever call fails: the file is the old one or the new one, nothing stays beside it, and the error names it.
TEST_F(AtomicFileTest, AnyCallMayFail) {
  const fs::path path = folder_ / "file";
  const std::vector<std::string> calls = {"open",  "write",  "write", "write", "write",
                                          "fsync", "rename", "open",  "fsync"};
  for (const int error : {ENOSPC, EIO}) {
    for (size_t failing = 0; failing < calls.size(); ++failing) {
      write_file(path, "old");
      const size_t descriptors = testing::open_descriptors();
      {
        RecordedCalls record(folder_.path());
        record.most_bytes = 3;
        record.fails_at = failing;
        record.error = error;
        EXPECT_THAT(testing::error_of([&] { write_file(path, "0123456789"); }),
                    AllOf(HasSubstr(failing <= 6 ? "file" : folder_.path().string()),
                          HasSubstr(std::generic_category().message(error))))
            << failing;
        EXPECT_EQ(record.made, failing + 1) << "nothing follows a call that failed";
        EXPECT_THAT(record.calls.back(), ::testing::StartsWith(calls[failing] + " ")) << failing;
      }
      EXPECT_EQ(read_file(path), failing <= 6 ? "old" : "0123456789") << failing;
      EXPECT_EQ(files(), 1u) << failing;
      EXPECT_EQ(testing::open_descriptors(), descriptors) << failing;
    }
  }
}

TEST_F(AtomicFileTest, AnAppendThatFailsSaysSoAndLeavesNothing) {
  const fs::path path = folder_ / "file";
  write_file(path, "before ");
  for (size_t failing = 0; failing < 6; ++failing) {
    const size_t descriptors = testing::open_descriptors();
    {
      RecordedCalls record(folder_.path());
      record.fails_at = failing;
      record.most_bytes = 3;
      EXPECT_THAT(testing::error_of([&] { AppendFile(path).append("text"); }),
                  AllOf(HasSubstr(failing == 1 || failing == 2 ? folder_.path().string() : path.string()),
                        HasSubstr("No space left on device")))
          << failing;
    }
    EXPECT_EQ(testing::open_descriptors(), descriptors) << failing;
    EXPECT_EQ(read_file(path), "before ") << failing;
  }
}

// A full disk is told from other failures.
TEST_F(AtomicFileTest, AFullDiskIsAnErrorOfItsOwn) {
  for (const int error : {ENOSPC, EDQUOT, EIO, EACCES}) {
    for (const size_t failing : {0, 1, 2, 3}) {
      RecordedCalls record(folder_.path());
      record.fails_at = failing;
      record.error = error;
      bool is_no_space = false;
      try {
        write_file(folder_ / "file", "contents");
        ADD_FAILURE() << "no error";
      } catch (const NoSpace&) {
        is_no_space = true;
      } catch (const Error&) {
      }
      EXPECT_EQ(is_no_space, error == ENOSPC || error == EDQUOT) << error << " " << failing;
    }
  }
}

TEST_F(AtomicFileTest, RoomIsAskedForWithBothNumbers) {
  EXPECT_NO_THROW(check_room(folder_.path(), 1, "a number"));
  EXPECT_THAT(testing::error_of([&] { check_room(folder_.path(), uint64_t{1} << 62, "all the books"); }),
              AllOf(HasSubstr("no room for all the books in " + folder_.path().string() +
                              ": 4611686018427387904 bytes "
                              "are needed, "),
                    HasSubstr(" are available")));
  EXPECT_NO_THROW(check_room(folder_ / "nowhere", uint64_t{1} << 62, "a number"));  // nobody knows
  EXPECT_NO_THROW(check_room("/proc", uint64_t{1} << 62, "a number"));
  RecordedCalls record(folder_.path());
  record.available = 100;
  EXPECT_NO_THROW(check_room(folder_.path(), 100, "a number"));
  EXPECT_THROW(check_room(folder_.path(), 101, "a number"), NoSpace);
}

}  // namespace
}  // namespace heddle
