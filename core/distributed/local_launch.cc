#include "core/distributed/local_launch.h"

#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/runtime/error.h"

namespace heddle {
namespace {

bool says_of_processes(std::string_view variable) {
  constexpr std::array<std::string_view, 8> kNames = {
      "RANK=",        "WORLD_SIZE=",  "LOCAL_RANK=",   "LOCAL_WORLD_SIZE=",
      "MASTER_ADDR=", "MASTER_PORT=", "HEDDLE_TOKEN=", "TORCHELASTIC_"};
  if (variable.starts_with("OMPI_COMM_WORLD_")) return true;
  return std::any_of(kNames.begin(), kNames.end(), [&](std::string_view name) { return variable.starts_with(name); });
}

}  // namespace

std::vector<SupervisedCommand> local_commands(const std::vector<std::string>& arguments,
                                              const std::vector<std::string>& environment, int processes, uint16_t port,
                                              const std::string& token) {
  std::vector<std::string> common;
  std::copy_if(environment.begin(), environment.end(), std::back_inserter(common),
               [](const std::string& variable) { return !says_of_processes(variable); });
  common.push_back(fmt::format("WORLD_SIZE={}", processes));
  common.push_back(fmt::format("LOCAL_WORLD_SIZE={}", processes));
  common.push_back("MASTER_ADDR=127.0.0.1");
  common.push_back(fmt::format("MASTER_PORT={}", port));
  common.push_back(fmt::format("HEDDLE_TOKEN={}", token));
  common.push_back(fmt::format("{}=1", kStartedByHeddle));
  std::vector<SupervisedCommand> commands;
  for (int rank = 0; rank < processes; ++rank) {
    commands.push_back({arguments, common});
    commands.back().environment.push_back(fmt::format("RANK={}", rank));
    commands.back().environment.push_back(fmt::format("LOCAL_RANK={}", rank));
  }
  return commands;
}

std::string random_token() {
  unsigned char bytes[16];
  if (::getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
    fail("no random numbers from the system: {}", std::generic_category().message(errno));
  }
  std::string token;
  for (const unsigned char byte : bytes) token += fmt::format("{:02x}", byte);
  return token;
}

std::vector<std::string> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> arguments;
  for (size_t begin = 0, end; (end = text.find('\0', begin)) != std::string::npos; begin = end + 1) {
    arguments.push_back(text.substr(begin, end - begin));
  }
  check(!arguments.empty(), "cannot read /proc/self/cmdline, from which further processes are started");
  arguments[0] = std::filesystem::read_symlink("/proc/self/exe").string();
  return arguments;
}

std::vector<std::string> own_environment() {
  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) environment.emplace_back(*variable);
  return environment;
}

}  // namespace heddle
