// Files that are damaged in 200 ways each: what reads them says what is wrong, or finds nothing wrong. It neither ends
// the process nor asks for more memory than such a file can need. The sanitizers run these tests, too; ./dev fuzz goes
// further.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>

#include "tests/fuzz/readers.h"
#include "tests/temp_folder.h"

namespace {

std::atomic<size_t> largest_request{0};

}  // namespace

// NOLINTBEGIN: all of these are what the standard library's do, and note the size.
void* operator new(size_t bytes) {
  size_t largest = largest_request;
  while (bytes > largest && !largest_request.compare_exchange_weak(largest, bytes)) continue;
  if (void* memory = std::malloc(std::max<size_t>(bytes, 1))) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
// NOLINTEND

namespace heddle::fuzz {
namespace {

TEST(MutatedFiles, AreReadOrRefused) {
  const testing::TempFolder folder;
  for (const Reader& reader : readers((folder / "").string())) {
    for (const std::string& seed : reader.seeds) EXPECT_NO_THROW(reader.read(seed)) << reader.name;
    int refused = 0;
    for (unsigned number = 1; number <= 200; ++number) {
      const std::string bytes = mutated(reader.seeds[number % reader.seeds.size()], number);
      SCOPED_TRACE(::testing::Message() << reader.name << " " << number);
      largest_request = 0;
      try {
        reader.read(bytes);
      } catch (const std::exception& error) {
        ++refused;
        EXPECT_GT(std::string(error.what()).size(), 8u);
        EXPECT_EQ(std::string(error.what()).find("bad_alloc"), std::string::npos);
      }
      EXPECT_LE(largest_request, size_t{1} << 21) << "bytes at once, for a file of " << bytes.size();
    }
    EXPECT_GT(refused, 50) << reader.name;
    EXPECT_LE(refused, 200) << reader.name;
  }
}

}  // namespace
}  // namespace heddle::fuzz
