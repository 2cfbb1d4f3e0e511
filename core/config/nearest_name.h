// "did you mean ...?": the known name closest to what a user typed.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace heddle {

// The name closest to `typed`, or "" when none is close enough to be meant. A name is close when it takes few edits for
// its length (insert, delete, replace, swap neighbours), or when one of the two is the beginning of the other up to an
// underscore ("warmup" for "warmup_steps").
std::string nearest_name(std::string_view typed, std::span<const std::string> names);

// "; did you mean 'NAME'?", or "" when nothing is near.
std::string did_you_mean(std::string_view typed, std::span<const std::string> names);

// "a, b, c"
std::string join_names(std::span<const std::string> names);

}  // namespace heddle
