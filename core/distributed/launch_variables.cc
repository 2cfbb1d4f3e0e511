#include "core/distributed/launch_variables.h"

#include <fmt/format.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "core/distributed/node_list.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr int kMostProcesses = 1 << 20;
constexpr size_t kLongestToken = 256;

template <class... Args>
[[noreturn]] void refuse_variables(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

// Reads variables of one launcher, whose name errors say.
class Reader {
 public:
  Reader(const Variables& variables, std::string_view launcher) : variables_(variables), launcher_(launcher) {}

  bool has(const std::string& name) const { return variables_(name).has_value(); }
  std::string text(const std::string& name) const {
    const auto value = variables_(name);
    if (!value) refuse_variables("{} is not set: {}", name, launcher_);
    return *value;
  }
  uint64_t number(const std::string& name, uint64_t least, uint64_t most) const {
    const std::string value = text(name);
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    const bool is_number = error == std::errc() && end == value.data() + value.size();
    if (is_number && number >= least && number <= most) return number;
    if (most == std::numeric_limits<uint64_t>::max())
      refuse_variables("{}: found '{}', expected an integer", name, value);
    refuse_variables("{}: found '{}', expected an integer from {} to {}", name, value, least, most);
  }
  // A count of processes, and the number of one of them, which must be below the count that `of` holds.
  int size(const std::string& name) const { return static_cast<int>(number(name, 1, kMostProcesses)); }
  int index(const std::string& name, const std::string& of, int size) const {
    const auto found = static_cast<int>(number(name, 0, kMostProcesses));
    if (found >= size) refuse_variables("{}: found {}, expected a number below {}, which is {}", name, found, of, size);
    return found;
  }

 private:
  const Variables& variables_;
  std::string_view launcher_;
};

constexpr std::string_view kByTorchrun =
    "several processes need all of RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them";
constexpr std::string_view kByOpenMpi =
    "OMPI_COMM_WORLD_SIZE is there, and mpirun also sets OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_LOCAL_RANK. GPUs of "
    "several hosts need MASTER_ADDR and MASTER_PORT beside them, the address of process 0";
constexpr std::string_view kBySlurm =
    "SLURM_STEP_ID is there, and srun also sets SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID, SLURM_JOB_ID and "
    "SLURM_JOB_NODELIST";

uint16_t read_port(const Reader& reader) { return static_cast<uint16_t>(reader.number("MASTER_PORT", 1, 65535)); }

// A port for all processes of a run that is known by `number`, below the range that systems give to outgoing
// connections.
uint16_t port_of(uint64_t number) { return static_cast<uint16_t>(15000 + number % 15000); }

uint64_t hash(std::string_view text) {  // FNV-1a
  uint64_t value = 14695981039346656037u;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return value;
}

// The number of processes on this host: what `name` says, or at least this process and those with lower numbers.
void read_local_size(const Reader& reader, const std::string& name, const std::string& of, Launch& launch) {
  launch.local_size = reader.has(name) ? reader.size(name) : launch.local_rank + 1;
  if (launch.local_rank >= launch.local_size) {
    refuse_variables("{}: found {}, expected a number below {}, which is {}", of, launch.local_rank, name,
                     launch.local_size);
  }
  if (launch.local_size > launch.world_size) {
    refuse_variables("{}: {} processes on this host, which is more than all, {}", reader.has(name) ? name : of,
                     launch.local_size, launch.world_size);
  }
}

Launch by_torchrun(const Variables& variables, DeviceType device) {
  const Reader reader(variables, kByTorchrun);
  Launch launch;
  launch.world_size = reader.size("WORLD_SIZE");
  launch.rank =
      launch.world_size == 1 && !reader.has("RANK") ? 0 : reader.index("RANK", "WORLD_SIZE", launch.world_size);
  if (launch.world_size == 1) return launch;
  if (device != DeviceType::cuda) {
    refuse_variables(
        "RANK={} and WORLD_SIZE={} start several processes on the {}, which only mpirun can: `mpirun -n {} heddle "
        "train ...`; with GPUs see that --device names one",
        launch.rank, launch.world_size, to_string({device}), launch.world_size);
  }
  launch.kind = Launch::Kind::nccl;
  launch.local_rank = reader.index("LOCAL_RANK", "WORLD_SIZE", launch.world_size);
  read_local_size(reader, "LOCAL_WORLD_SIZE", "LOCAL_RANK", launch);
  launch.master_addr = reader.text("MASTER_ADDR");
  launch.master_port = read_port(reader);
  if (reader.has("TORCHELASTIC_RUN_ID")) {
    const std::string restarts =
        reader.has("TORCHELASTIC_RESTART_COUNT") ? reader.text("TORCHELASTIC_RESTART_COUNT") : "0";
    launch.token = fmt::format("torchrun {} {}", reader.text("TORCHELASTIC_RUN_ID"), restarts);
  }
  return launch;
}

Launch by_open_mpi(const Variables& variables, DeviceType device) {
  const Reader reader(variables, kByOpenMpi);
  Launch launch;
  launch.world_size = reader.size("OMPI_COMM_WORLD_SIZE");
  launch.rank = reader.index("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", launch.world_size);
  if (launch.world_size == 1) return launch;
  launch.local_rank = reader.index("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", launch.world_size);
  read_local_size(reader, "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", launch);
  launch.kind = device == DeviceType::cuda ? Launch::Kind::nccl : Launch::Kind::mpi;
  if (launch.kind == Launch::Kind::mpi) return launch;
  const std::string job = reader.has("PMIX_NAMESPACE") ? reader.text("PMIX_NAMESPACE") : "";
  if (!job.empty()) launch.token = fmt::format("mpirun {}", job);
  const bool is_one_host = launch.local_size == launch.world_size && reader.has("OMPI_COMM_WORLD_LOCAL_SIZE");
  if (is_one_host && !job.empty() && !reader.has("MASTER_ADDR") && !reader.has("MASTER_PORT")) {
    launch.master_addr = "127.0.0.1";
    launch.master_port = port_of(hash(job));
  } else {
    launch.master_addr = reader.text("MASTER_ADDR");
    launch.master_port = read_port(reader);
  }
  return launch;
}

// srun counts the tasks of its step in SLURM_STEP_NUM_TASKS, too; SLURM_NTASKS may be that of the job.
std::string slurm_tasks(const Reader& reader) {
  return reader.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
}

Launch by_slurm(const Variables& variables, DeviceType device) {
  const Reader reader(variables, kBySlurm);
  const std::string tasks = slurm_tasks(reader);
  Launch launch;
  launch.world_size = reader.size(tasks);
  launch.rank = reader.index("SLURM_PROCID", tasks, launch.world_size);
  launch.local_rank = reader.index("SLURM_LOCALID", tasks, launch.world_size);
  launch.local_size = launch.local_rank + 1;
  launch.kind = device == DeviceType::cuda ? Launch::Kind::nccl : Launch::Kind::mpi;
  if (launch.kind == Launch::Kind::mpi) return launch;
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  const uint64_t job = reader.number("SLURM_JOB_ID", 0, most), step = reader.number("SLURM_STEP_ID", 0, most);
  launch.token = fmt::format("slurm {}.{}", job, step);
  const std::string list = reader.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
  const std::vector<std::string> nodes = expand_node_list(reader.text(list));
  if (nodes.size() == 1) launch.local_size = launch.world_size;
  launch.master_addr = reader.has("MASTER_ADDR") ? reader.text("MASTER_ADDR") : nodes.front();
  launch.master_port = reader.has("MASTER_PORT") ? read_port(reader) : port_of(job + 7 * step);
  return launch;
}

bool is_by_slurm(const Variables& variables) {
  const Reader reader(variables, kBySlurm);
  return reader.has("SLURM_STEP_ID") && reader.has("SLURM_PROCID") && reader.size(slurm_tasks(reader)) > 1;
}

// What RANK and WORLD_SIZE say beside mpirun must be what mpirun says.
void check_agreement(const Variables& variables, const Launch& open_mpi) {
  const Reader reader(variables, kByTorchrun);
  const auto check_number = [&](const std::string& name, const std::string& other, int expected) {
    if (!reader.has(name) || reader.number(name, 0, kMostProcesses) == static_cast<uint64_t>(expected)) return;
    refuse_variables("{}={} contradicts {}={}: unset RANK and WORLD_SIZE where mpirun starts the processes", name,
                     reader.text(name), other, expected);
  };
  check_number("RANK", "OMPI_COMM_WORLD_RANK", open_mpi.rank);
  check_number("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", open_mpi.world_size);
}

}  // namespace

Variables environment_variables() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return {};
    return value;
  };
}

Launch read_launch(DeviceType device, const Variables& variables) {
  Launch launch;
  // mpirun may start one torchrun a host: then torchrun has started this process.
  if (variables("OMPI_COMM_WORLD_SIZE") && !variables("TORCHELASTIC_RUN_ID")) {
    launch = by_open_mpi(variables, device);
    check_agreement(variables, launch);
  } else if (variables("RANK") || variables("WORLD_SIZE")) {
    launch = by_torchrun(variables, device);
  } else if (is_by_slurm(variables)) {
    launch = by_slurm(variables, device);
  }
  if (launch.kind != Launch::Kind::nccl) return launch;
  if (const auto token = variables("HEDDLE_TOKEN")) launch.token = *token;
  if (launch.token.empty()) launch.token = fmt::format("{}:{}", launch.master_addr, launch.master_port);
  if (launch.token.size() > kLongestToken) {
    refuse_variables("HEDDLE_TOKEN: found {} bytes, expected at most {}", launch.token.size(), kLongestToken);
  }
  return launch;
}

}  // namespace heddle
