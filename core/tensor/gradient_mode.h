// Whether a kernel writes its result over what is there or adds to it.
#pragma once

namespace heddle {

enum class GradientMode { overwrite, accumulate };

}  // namespace heddle
