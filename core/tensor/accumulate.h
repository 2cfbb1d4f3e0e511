// Whether a kernel writes its result over what is there or adds to it.
#pragma once

namespace heddle {

enum class Accumulate { overwrite, add };

}  // namespace heddle
