// heddle info
#include <fmt/format.h>

#include <string>
#include <thread>

#include "cli/command.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"

namespace heddle::cli {
namespace {

std::string instruction_sets() {
  std::string sets = "baseline";
#if defined(__AVX2__)
  sets += ", AVX2";
#endif
#if defined(__AVX512F__)
  sets += ", AVX-512";
#endif
  return sets;
}

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

int run() {
  fmt::print("heddle {}\n", HEDDLE_VERSION);
  fmt::print("build\n");
  fmt::print("  compiler {}\n", __VERSION__);
#if defined(HEDDLE_STD_THREADS)
  fmt::print("  threads  std::thread\n");
#else
  fmt::print("  threads  OpenMP\n");
#endif
  fmt::print("  cpu      {}\n", instruction_sets());
#if defined(HEDDLE_CUDA)
  fmt::print("  cuda     yes\n");
#else
  fmt::print("  cuda     no\n");
#endif
  fmt::print("devices\n");
  fmt::print("  cpu      {} threads\n", std::thread::hardware_concurrency());
  print_gpus();
  fmt::print("libraries\n  {}\n", HEDDLE_LIBRARY_VERSIONS);
  return kDone;
}

}  // namespace

Run add_info(CLI::App&, const Registry&) { return run; }

}  // namespace heddle::cli
