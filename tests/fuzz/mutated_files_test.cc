// Files that are damaged in 200 ways each: what reads them says what is wrong, or finds nothing wrong. It neither ends
// the process nor asks for more memory than such a file can need. The sanitizers run these tests, too; ./dev fuzz goes
// further.
#include <gtest/gtest.h>

#include <cstddef>
#include <exception>
#include <string>

#include "tests/fuzz/largest_request.h"
#include "tests/fuzz/readers.h"
#include "tests/temp_folder.h"

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
