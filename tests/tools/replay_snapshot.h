// Reads a memory snapshot with Python, if there is one on this machine.
#pragma once

#include <array>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

namespace heddle::testing {

inline bool has_python() { return std::system("python3 -c '' > /dev/null 2>&1") == 0; }

// What replay_snapshot.py prints; null when the snapshot is not as it should be, and Python has said why.
inline nlohmann::json replay_snapshot(const std::string& path) {
  const std::string command = "python3 '" HEDDLE_SOURCE_DIR "/tests/tools/replay_snapshot.py' '" + path + "'";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  std::array<char, 4096> part{};
  for (size_t read; (read = std::fread(part.data(), 1, part.size(), pipe)) > 0;) text.append(part.data(), read);
  return ::pclose(pipe) == 0 ? nlohmann::json::parse(text) : nlohmann::json();
}

}  // namespace heddle::testing
