// Files that a command will write are looked at before it computes, which may take long, and before it replaces one
// that it reads.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "core/io/file_identity.h"

namespace heddle::cli {

// A file that a command reads or writes, and what its user knows it as: "--json", "the config". An empty path is none.
struct NamedFile {
  std::string name;
  std::filesystem::path path;
};
using NamedFiles = std::vector<NamedFile>;

// Throw UsageError when one of the files, or a file in the folder, that `option` ("--plot") names, cannot be written.
// Files are also refused when they are, by whatever path, one of `inputs` or two outputs in one: see
// check_distinct_files().
void check_output_files(const NamedFiles& outputs, const NamedFiles& inputs);
void check_output_folder(const char* option, const std::filesystem::path& folder);

// Throws UsageError for a folder that holds checkpoints itself, or that is in, or as, RUN/checkpoints or a checkpoint
// RUN/checkpoints/step_N, which is removed, with all that is in it, when it is old.
void check_is_apart_from_checkpoints(const char* option, const std::filesystem::path& folder);

// Where a command prints its table for people: stdout, or stderr where one of its files goes to stdout, so that a
// program which reads that finds nothing else there. Empty paths are none.
class TableStream {
 public:
  explicit TableStream(std::initializer_list<std::filesystem::path> outputs);
  // As finish_stdout() says, text that cannot be written to stdout is an Error; a message on stderr is lost then.
  void print(const std::string& text) const;

 private:
  bool is_stdout_ = true;
};

// The files of a command, whatever the paths that lead to them, and stdout. Each is looked at once.
class FileTable {
 public:
  // `inputs` are read.
  explicit FileTable(const NamedFiles& inputs);

  // Throw UsageError when the output would replace a file of the table; take() then adds it. What is written through
  // (/dev/null, a pipe) replaces nothing, but two outputs on stdout would be mixed there.
  void check(const NamedFile& output) const;
  void take(const NamedFile& output);

 private:
  std::map<FileIdentity, std::string> files_;  // and what has them
  std::string on_stdout_;                      // the output that goes there; empty: none does
};

// Throws UsageError when an output would replace one of `inputs` or another output, and when two go to stdout.
void check_distinct_files(const NamedFiles& outputs, const NamedFiles& inputs);
// Throws UsageError when one of the outputs cannot be written.
void check_writable_files(const NamedFiles& outputs);

}  // namespace heddle::cli
