#include "core/io/json_text.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace heddle {
namespace {

TEST(JsonTextTest, BytesThatAreNoUtf8AreReplaced) {
  const nlohmann::ordered_json json{{"name", "caf\xe9"}, {"x", 1}};
  EXPECT_EQ(json_text(json), "{\"name\":\"caf\xef\xbf\xbd\",\"x\":1}");
  EXPECT_EQ(json_text(json, 1), "{\n \"name\": \"caf\xef\xbf\xbd\",\n \"x\": 1\n}");
}

}  // namespace
}  // namespace heddle
