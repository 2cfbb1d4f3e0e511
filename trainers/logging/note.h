// A line of text that a user should see as it happens.
#pragma once

#include <functional>
#include <string>

namespace heddle {

using Note = std::function<void(const std::string& line)>;

}  // namespace heddle
