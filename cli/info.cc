// heddle info
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <thread>

#include "cli/build_info.h"
#include "cli/command.h"
#include "cli/manual.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"

namespace heddle::cli {
namespace {

void print_gpus() {
#if defined(HEDDLE_CUDA)
  for (int index = 0;; ++index) {
    try {
      Context context(Device{DeviceType::cuda, index});
      const DeviceProperties& properties = context.backend().properties();
      fmt::print("  cuda:{}   {}, compute capability {}.{}, {} multiprocessors, {}\n", index, properties.name,
                 properties.compute_capability / 10, properties.compute_capability % 10, properties.multiprocessors,
                 format_bytes(properties.memory_bytes));
    } catch (const Error& error) {
      if (index == 0) fmt::print("  cuda     none: {}\n", error.what());
      return;
    }
  }
#else
  fmt::print("  cuda     none: built without CUDA\n");
#endif
}

int run(const Registry& registry) {
  const BuildInfo build = build_info();
  fmt::print("heddle {}\n", HEDDLE_VERSION);
  fmt::print("build\n");
  fmt::print("  compiler {}\n", build.compiler);
  fmt::print("  threads  {}\n", build.threads);
  fmt::print("  cpu      {}\n", build.instruction_sets);
  fmt::print("  cuda     {}\n", build.cuda ? "yes" : "no");
  fmt::print("devices\n");
  const unsigned threads = std::thread::hardware_concurrency();
  fmt::print("  cpu      {} thread{}\n", threads, threads == 1 ? "" : "s");
  print_gpus();
  fmt::print("libraries\n  {}\n", build.libraries);
  fmt::print("operators\n{}", wrapped(fmt::format("{}", fmt::join(registry.operator_names(), ", ")), 2));
  return kDone;
}

}  // namespace

Run add_info(CLI::App& command, const Registry& registry) {
  set_manual(command,
             {.description = "Prints the version, how the program was built, the devices it finds, its libraries, and "
                             "the names of all operators.",
              .examples = {{"heddle info", "to be put into a report of a fault"}, {"heddle --version", "in two lines"}},
              .exit_codes = {},
              .page = "docs/cli.md"});
  return [&registry] { return run(registry); };
}

}  // namespace heddle::cli
