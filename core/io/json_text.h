// JSON as text, whatever bytes its strings hold.
#pragma once

#include <string>

namespace heddle {

// A value of nlohmann-json as text, with lines indented by `indent` spaces where that is not negative. JSON is UTF-8,
// and names of files need not be: bytes that are none become U+FFFD, where dump() alone throws.
template <class Json>
std::string json_text(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace heddle
