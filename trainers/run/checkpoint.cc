#include "trainers/run/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"
#include "core/io/atomic_folder.h"
#include "core/io/disk_space.h"
#include "core/runtime/error.h"
#include "trainers/parallel/collect.h"
#include "trainers/run/copy_scaled.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kAverageFile = "average.safetensors";
constexpr const char* kStateFile = "state.json";
constexpr const char* kPrefix = "step_";
constexpr const char* kBest = "best";

// Throws Error where there is no file, or where its folder cannot be searched.
void check_is_file(const fs::path& path) {
  std::error_code reason;
  const fs::file_type type = fs::status(path, reason).type();
  check(type != fs::file_type::none, "{}: {}", path.string(), reason.message());
  check(type != fs::file_type::not_found, "{}: the file is missing", path.string());
  check(type == fs::file_type::regular, "{}: it is no file", path.string());
}

void check_size(const fs::path& path, const FileDigest& expected) {
  check_is_file(path);
  const uint64_t found = fs::file_size(path);
  check(found == expected.bytes, "{}: {} bytes, expected {}: the file is {}", path.string(), found, expected.bytes,
        found < expected.bytes ? "truncated" : "too long");
}

void check_content(const fs::path& path, const FileDigest& expected) {
  const FileDigest digest = digest_file(path);
  check(digest.crc32 == expected.crc32, "{}: crc32 {:08x}, expected {:08x}: the file is corrupt", path.string(),
        digest.crc32, expected.crc32);
}

// The state of a checkpoint all of whose files are there, each of its size. Throws Error where they are not.
StateFile read_complete(const fs::path& path) {
  const fs::path state_file = path / kStateFile;
  check_is_file(state_file);
  StateFile read = read_state(state_file);
  for (const char* name : {kModelFile, kOptimizerFile}) {
    check(read.files.contains(name), "{}: it has no size and checksum of {}", state_file.string(), name);
  }
  for (const auto& [name, digest] : read.files) check_size(path / name, digest);
  return read;
}

// What can be said without reading the tensors.
bool has_all_files(const fs::path& path) {
  try {
    read_complete(path);
    return true;
  } catch (const std::exception&) {  // of the file system, too
    return false;
  }
}

bool has_tensor(const std::vector<ShardedTensor>& tensors, const std::string& name) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const ShardedTensor& tensor) { return tensor.name == name; });
}

// The file is whole, so that what does not fit is the model of a config that the user has changed.
void check_fits(const fs::path& path, const SafetensorsReader& reader, const std::vector<ShardedTensor>& tensors) {
  const auto refuse = [&](const std::string& problem) {
    throw UsageError(fmt::format("{}: {}: the config is of another model", path.string(), problem));
  };
  for (const ShardedTensor& tensor : tensors) {
    const SafetensorsEntry* const entry = reader.find(tensor.name);
    if (entry == nullptr) {
      refuse(fmt::format("there is no tensor '{}' {}", tensor.name, to_string(tensor.shape)));
    } else if (!is_floating(entry->dtype) || entry->shape != tensor.shape) {
      refuse(fmt::format("tensor '{}' is {} {}, expected {} {}", tensor.name, name(entry->dtype),
                         to_string(entry->shape), name(tensor.dtype), to_string(tensor.shape)));
    }
  }
  for (const SafetensorsEntry& entry : reader.entries()) {
    if (!has_tensor(tensors, entry.name)) refuse(fmt::format("tensor '{}' is no parameter of the model", entry.name));
  }
}

// Reads the part that this process has of a tensor, in its own dtype.
void read_part(Context& context, SafetensorsReader& reader, const ShardedTensor& tensor) {
  const SafetensorsEntry& entry = reader.at(tensor.name);
  if (!tensor.part.defined()) return;
  if (entry.dtype == tensor.dtype) return reader.read_part(context, entry, tensor.begin, tensor.part);
  const Tensor read = Tensor::empty(context, tensor.part.shape(), entry.dtype);
  reader.read_part(context, entry, tensor.begin, read);
  copy_scaled(context, read, tensor.part);
}

void load(Context& context, const fs::path& path, const std::vector<ShardedTensor>& tensors) {
  SafetensorsReader reader(path);
  check_fits(path, reader, tensors);
  for (const ShardedTensor& tensor : tensors) read_part(context, reader, tensor);
}

// A file of a checkpoint and what is in it.
struct TensorFile {
  const char* name;
  std::vector<ShardedTensor> tensors;
};

// What a checkpoint takes on the disk, a little more than less: the tensors, their entries in the headers, the state.
uint64_t bytes_needed(const std::vector<TensorFile>& files, const CheckpointState& state) {
  constexpr uint64_t kBytesOfEntry = 256, kBytesOfState = 16384;
  uint64_t bytes = kBytesOfState + 2 * state.config.size();
  for (const TensorFile& file : files) {
    for (const ShardedTensor& tensor : file.tensors) {
      bytes += static_cast<uint64_t>(numel(tensor.shape)) * size_of(tensor.dtype) + kBytesOfEntry + tensor.name.size();
    }
  }
  return bytes;
}

// The collectors, one for each file, give the data.
void write_files(const fs::path& folder, const std::vector<TensorFile>& files, std::deque<TensorCollector>& collectors,
                 const CheckpointState& state) {
  FileDigests digests;
  for (size_t i = 0; i < files.size(); ++i) {
    std::vector<HostTensor> described;
    for (const ShardedTensor& tensor : files[i].tensors) described.push_back({tensor.name, tensor.dtype, tensor.shape});
    const auto data_of = [&](size_t) { return collectors[i].next(); };
    digests[files[i].name] = write_safetensors(folder / files[i].name, described, data_of);
  }
  write_state(folder / kStateFile, state, digests);
}

// The step of the checkpoint that folder/best leads to; -1 where there is none.
int64_t linked_best(const fs::path& folder) {
  std::error_code ignored;
  const std::string name = fs::read_symlink(folder / kBest, ignored).string();
  for (const CheckpointFolder& checkpoint : list_checkpoints(folder)) {
    if (checkpoint.path.filename() == name) return checkpoint.step;
  }
  return -1;
}

// Whether `copy` holds a checkpoint and no more, and its step_N in `folder` the same one, undamaged.
bool is_copy_of_checkpoint(const fs::path& copy, const fs::path& folder) {
  try {
    const StateFile found = read_complete(copy);
    for (const fs::directory_entry& entry : fs::directory_iterator(copy)) {
      const std::string name = entry.path().filename().string();
      if (name != kStateFile && !found.files.contains(name)) return false;
    }
    const fs::path original = open_checkpoint(folder / checkpoint_name(found.state.step)).path;
    return read_file(copy / kStateFile) == read_file(original / kStateFile);  // the checksums of all files among it
  } catch (const std::exception&) {                                           // of the file system, too
    return false;
  }
}

// Where a copy of the run was made of what links lead to, folder/best is a folder, whose contents are in step_N, too.
void remove_copy_of_best(const fs::path& folder) {
  const fs::path copy = folder / kBest;
  if (!fs::is_directory(fs::symlink_status(copy))) return;
  check(is_copy_of_checkpoint(copy, folder),
        "{} is a folder that is no copy of a checkpoint beside it, expected a symbolic link to one; give it another "
        "name",
        copy.string());
  remove_folder(copy);
}

// Sets folder/best to the checkpoint of this step, in one go.
void link_best(const fs::path& folder, int64_t step) {
  const fs::path link = folder / kBest, aside = partial_path(link);
  std::error_code ignored;
  if (fs::read_symlink(link, ignored) == checkpoint_name(step)) return;
  remove_copy_of_best(folder);
  fs::remove(aside);
  fs::create_symlink(checkpoint_name(step), aside, ignored);
  if (!ignored) rename_file(aside, link);  // a file system without links has none
}

// The masters with the parts that this process updates.
std::vector<ShardedTensor> parts_of_masters(const ParameterSet& parameters, const DataParallel* parallel) {
  std::vector<ShardedTensor> tensors;
  const FlatRange range = updated_range(parallel, parameters);
  for (size_t index = 0; index < parameters.all().size(); ++index) {
    const int64_t begin = std::max(parameters.offset(index), range.begin);
    const std::string& name = parameters.all()[index].name;
    tensors.push_back(part_of_parameter(parallel, parameters, index, name, parameters.master(), begin));
  }
  return tensors;
}

// The part of the process that writes.
fs::path write(const fs::path& folder, const std::vector<TensorFile>& files, std::deque<TensorCollector>& collectors,
               const CheckpointState& state, const KeptCheckpoints& kept) {
  try {
    const fs::path path = folder / checkpoint_name(state.step);
    if (fs::create_directories(folder)) sync_directory(folder.parent_path());
    check_room(folder, bytes_needed(files, state), fmt::format("the checkpoint of step {}", state.step));
    write_folder(path, [&](const fs::path& partial) { write_files(partial, files, collectors, state); });
    remove_older_checkpoints(folder, state, kept);
    return path;
  } catch (const fs::filesystem_error& error) {
    if (is_no_space(error.code())) throw NoSpace(error.what());
    throw;
  }
}

void remove_unless_noted(const fs::path& checkpoint, const Note& note) {
  try {
    remove_folder(checkpoint);
  } catch (const std::exception& error) {
    if (!note) throw;
    note(fmt::format("cannot remove the old checkpoint {}: {}", checkpoint.string(), error.what()));
  }
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("{}{}", kPrefix, step); }

std::optional<int64_t> step_of_checkpoint(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = -1;
  std::from_chars(name.data() + std::string_view(kPrefix).size(), name.data() + name.size(), step);
  if (step < 0 || checkpoint_name(step) != name) return std::nullopt;  // as step_-5, step_007 and step_5.old
  return step;
}

void remove_older_checkpoints(const fs::path& folder, const CheckpointState& state, const KeptCheckpoints& kept) {
  int64_t best = kept.best && state.evaluations.best ? state.evaluations.best->step : -1;
  if (best >= 0 && fs::exists(folder / checkpoint_name(best))) {
    link_best(folder, best);
  } else if (kept.best) {  // missing, since the disk was full when it was found
    best = linked_best(folder);
  }
  const std::vector<CheckpointFolder> all = list_checkpoints(folder);
  int64_t counted = 0;
  for (auto checkpoint = all.rbegin(); checkpoint != all.rend(); ++checkpoint) {
    if (checkpoint->step > state.step) continue;
    if (counted < kept.newest) {
      counted += has_all_files(checkpoint->path) ? 1 : 0;
    } else if (checkpoint->step != best) {
      remove_unless_noted(checkpoint->path, kept.note);
    }
  }
}

fs::path write_checkpoint(Context& context, const fs::path& folder, const ParameterSet& parameters,
                          const Optimizer& optimizer, const CheckpointState& state, const KeptCheckpoints& kept,
                          const WeightAverage* average, DataParallel* parallel) {
  std::vector<TensorFile> files = {{kModelFile, parts_of_masters(parameters, parallel)},
                                   {kOptimizerFile, optimizer.parts_of_state()}};
  if (average != nullptr) files.push_back({kAverageFile, average->parts()});
  Processes alone;
  Processes& processes = parallel != nullptr ? parallel->processes() : alone;
  std::deque<TensorCollector> collectors;
  for (const TensorFile& file : files) collectors.emplace_back(context, processes, file.tensors);
  return processes.together([&] {
    std::exception_ptr error;
    try {
      if (processes.is_first()) write(folder, files, collectors, state, kept);
    } catch (...) {
      error = std::current_exception();
    }
    for (TensorCollector& collector : collectors) collector.finish();  // the others wait for what was not written
    if (error) std::rethrow_exception(error);
    return folder / checkpoint_name(state.step);
  });
}

std::vector<NamedTensor> masters(const ParameterSet& parameters) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& parameter : parameters.all()) tensors.push_back({parameter.name, parameter.master});
  return tensors;
}

Checkpoint open_checkpoint(const fs::path& path) {
  auto [state, files] = read_complete(path);
  for (const auto& [name, digest] : files) check_content(path / name, digest);
  return {path, std::move(state)};
}

void check_leads_to_a_folder(const fs::path& path) {
  if (!fs::is_symlink(fs::symlink_status(path)) || fs::is_directory(path)) return;
  fail("{} is a link to {}, where no folder is; its disk may not be mounted", path.string(),
       fs::read_symlink(path).string());
}

std::vector<CheckpointFolder> list_checkpoints(const fs::path& folder) {
  std::vector<CheckpointFolder> all;
  if (!fs::is_directory(folder)) {
    check_leads_to_a_folder(folder);
    check(!fs::exists(folder), "{} is a file, expected a folder of checkpoints", folder.string());
    return all;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (const auto step = step_of_checkpoint(entry.path().filename().string())) all.push_back({*step, entry.path()});
  }
  std::sort(all.begin(), all.end(),
            [](const CheckpointFolder& a, const CheckpointFolder& b) { return a.step < b.step; });
  return all;
}

std::optional<Checkpoint> newest_checkpoint(const fs::path& folder, const Note& note) {
  std::vector<CheckpointFolder> all = list_checkpoints(folder);
  std::reverse(all.begin(), all.end());
  for (const CheckpointFolder& candidate : all) {
    try {
      return open_checkpoint(candidate.path);
    } catch (const Error& error) {
      note(fmt::format("passing over {}: {}", candidate.path.string(), error.what()));
    }
  }
  return std::nullopt;
}

Checkpoint find_checkpoint(const fs::path& run_or_checkpoint, const Note& note) {
  if (!fs::exists(run_or_checkpoint)) {
    throw UsageError(
        fmt::format("'{}' does not exist, expected a run folder or a checkpoint", run_or_checkpoint.string()));
  }
  if (!fs::is_directory(run_or_checkpoint)) {
    throw UsageError(fmt::format("{} is a file, expected a run folder or a checkpoint", run_or_checkpoint.string()));
  }
  if (fs::exists(run_or_checkpoint / kStateFile)) return open_checkpoint(run_or_checkpoint);
  for (const fs::path& folder : {run_or_checkpoint / "checkpoints", run_or_checkpoint}) {
    if (list_checkpoints(folder).empty()) continue;
    if (auto checkpoint = newest_checkpoint(folder, note)) return *checkpoint;
    fail("no checkpoint of {} is whole", folder.string());
  }
  // A checkpoint that lost its state.json: its own reason says more.
  if (fs::exists(run_or_checkpoint / kModelFile)) return open_checkpoint(run_or_checkpoint);
  throw UsageError(
      fmt::format("{} holds no checkpoint: no {} and no checkpoints/step_N", run_or_checkpoint.string(), kStateFile));
}

bool is_in_folder(const Checkpoint& checkpoint, const fs::path& folder) {
  std::error_code ignored;
  fs::path named = fs::absolute(checkpoint.path, ignored);
  if (!named.has_filename()) named = named.parent_path();  // it was given as "step_N/"
  return fs::equivalent(named.parent_path(), folder, ignored) ||
         fs::equivalent(fs::canonical(named, ignored).parent_path(), folder, ignored);
}

void load_parameters(Context& context, const Checkpoint& checkpoint, ParameterSet& parameters) {
  load(context, checkpoint.path / kModelFile, parts_of_masters(parameters, nullptr));
  write_compute_copies(context, parameters);
}

// Whether sgd has a momentum now and had none then, which begins at 0, or the other way round, where it is forgotten.
bool changes_use_of_momentum(const SafetensorsReader& reader, const Optimizer& optimizer,
                             const std::vector<ShardedTensor>& state) {
  const std::vector<SafetensorsEntry>& entries = reader.entries();
  return optimizer.config().type == OptimizerType::sgd && entries.empty() != state.empty() &&
         std::all_of(entries.begin(), entries.end(),
                     [](const SafetensorsEntry& entry) { return entry.name.ends_with(".m"); });
}

// Which tensors there are depends on the type of the optimizer, on whether sgd has a momentum, and on the model.
void load_optimizer(Context& context, const Checkpoint& checkpoint, const Optimizer& optimizer) {
  const fs::path path = checkpoint.path / kOptimizerFile;
  const std::vector<ShardedTensor> state = optimizer.parts_of_state();
  const SafetensorsReader reader(path);
  if (changes_use_of_momentum(reader, optimizer, state)) return;
  for (const ShardedTensor& tensor : state) {
    check(reader.find(tensor.name) != nullptr, "{}: holds no '{}', which {} needs: it was written by another optimizer",
          path.string(), tensor.name, name(optimizer.config().type));
  }
  for (const SafetensorsEntry& entry : reader.entries()) {
    check(has_tensor(state, entry.name), "{}: holds '{}', which {} does not keep: it was written by another optimizer",
          path.string(), entry.name, name(optimizer.config().type));
  }
  load(context, path, state);
}

bool has_average(const Checkpoint& checkpoint) { return fs::exists(checkpoint.path / kAverageFile); }

void load_average(Context& context, const Checkpoint& checkpoint, const WeightAverage& average) {
  load(context, checkpoint.path / kAverageFile, average.parts());
}

void load_evaluated_parameters(Context& context, const Checkpoint& checkpoint, ParameterSet& parameters) {
  load(context, checkpoint.path / (has_average(checkpoint) ? kAverageFile : kModelFile),
       parts_of_masters(parameters, nullptr));
  write_compute_copies(context, parameters);
}

std::string data_difference(const DataIdentity& now, const Checkpoint& checkpoint) {
  if (!checkpoint.state.data || *checkpoint.state.data == now) return "";
  return fmt::format("the data are not those that {} was trained on: now {}, then {}", checkpoint.path.string(),
                     to_string(now), to_string(*checkpoint.state.data));
}

void remove_leftovers(const fs::path& folder) {
  if (!fs::is_directory(folder)) return;
  std::vector<fs::path> leftovers;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool is_ours = name.starts_with(fmt::format(".{}", kPrefix)) || name.starts_with(fmt::format(".{}.", kBest));
    if (is_ours && (name.ends_with(kRemovedSuffix) || name.ends_with(kPartialSuffix))) {
      leftovers.push_back(entry.path());
    }
  }
  std::error_code ignored;  // what cannot be removed is tried again by the next run
  for (const fs::path& path : leftovers) fs::remove_all(path, ignored);
}

}  // namespace heddle
