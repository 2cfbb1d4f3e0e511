#include "cli/dtype.h"

#include "cli/option.h"
#include "layers/modules/choices.h"

namespace heddle::cli {

void add_dtype_option(CLI::App& command, std::optional<DType>& dtype, const std::string& description) {
  add_choice(command, "--dtype", dtype, description, dtype_choices())->option_text("float64|float32|bfloat16|float16");
}

}  // namespace heddle::cli
