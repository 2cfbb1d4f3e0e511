// What the environment says of the processes that train together. docs/launching.md#variables
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/distributed/launch.h"
#include "core/runtime/device.h"

namespace heddle {

// The value of an environment variable; nothing when it is not set. An empty value is as good as none.
using Variables = std::function<std::optional<std::string>(const std::string& name)>;
Variables environment_variables();

// How this process was started, for work on a device of the type `device`. The first of these that is there counts:
//
//   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE                      mpirun of Open MPI
//   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT   torchrun, or by hand
//   SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_JOB_NODELIST              srun, for more than one task
//
// On GPUs several processes use NCCL, on the CPU MPI. One process is alone, whoever started it. Throws UsageError that
// names the variable, what it says and what was expected, when they are incomplete or contradict each other.
Launch read_launch(DeviceType device, const Variables& variables = environment_variables());

}  // namespace heddle
