// --dtype, for the subcommands that run in any floating dtype.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "core/tensor/dtype.h"

namespace heddle::cli {

// `dtype` must live as long as the command; it stays empty when the option is not given.
void add_dtype_option(CLI::App& command, std::optional<DType>& dtype, const std::string& description);

}  // namespace heddle::cli
