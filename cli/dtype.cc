#include "cli/dtype.h"

#include <map>

namespace heddle::cli {

void add_dtype_option(CLI::App& command, std::optional<DType>& dtype, const std::string& description) {
  std::map<std::string, DType> dtypes;
  for (DType choice : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    dtypes.emplace(name(choice), choice);
  }
  command
      .add_option_function<std::string>(
          "--dtype", [&dtype, dtypes](const std::string& text) { dtype = dtypes.at(text); }, description)
      ->check(CLI::IsMember(dtypes))
      ->option_text("float64|float32|bfloat16|float16");
}

}  // namespace heddle::cli
