// One of the processes that mpirun starts.
//   mpi_program collectives
//     Checks the communicator.
//   mpi_program train FOLDER [stop_after=N] [kill=RANK:STEP] [fail=RANK:STEP] [SECTION.KEY=VALUE ...]
//     Trains the tiny config in FOLDER; process RANK is asked to stop, is killed, or throws after so many steps.
//   mpi_program compare FOLDER FOLDER
//     Exits with 0 when the losses of both runs are equal to 1e-5.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/distributed/mpi.h"
#include "core/io/atomic_file.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "tests/distributed/check_communicator.h"
#include "tests/trainers/test_config.h"
#include "trainers/trainer.h"

namespace heddle {
namespace {

// "1:7": what happens to process 1 when it has been asked for a checkpoint 7 times, after its 7th step.
struct Fate {
  int rank = -1;
  int64_t step = 0;
};
Fate read_fate(const std::string& text) {
  const size_t colon = text.find(':');
  check(colon != std::string::npos, "found '{}', expected RANK:STEP", text);
  return {std::stoi(text.substr(0, colon)), std::stoll(text.substr(colon + 1))};
}

int collectives() {
  Context context(Device{}, {.threads = 1});
  const auto communicator = make_mpi_communicator(context);
  try {
    testing::check_communicator(context, *communicator);
  } catch (const std::exception& error) {
    communicator->abort(error.what());
    throw;
  }
  if (communicator->rank() == 0) std::printf("ok: %d processes\n", communicator->size());
  return 0;
}

int train_in(const std::string& folder, const std::vector<std::string>& arguments) {
  Fate killed, failed;
  int64_t stop_after = 0;
  // A well-conditioned model: rounding does not grow from step to step.
  std::vector<std::string> settings = {"trainer.batch_size=6", "model.norm={type: rms_norm}",
                                       "model.mixer={type: softmax_attention, heads: 2}"};
  for (const std::string& argument : arguments) {
    const std::string value = argument.substr(argument.find('=') + 1);
    if (argument.starts_with("stop_after=")) {
      stop_after = std::stoll(value);
    } else if (argument.starts_with("kill=")) {
      killed = read_fate(value);
    } else if (argument.starts_with("fail=")) {
      failed = read_fate(value);
    } else {
      settings.push_back(argument);
    }
  }
  Context context(Device{}, {.threads = 1});
  const auto communicator = make_mpi_communicator(context);
  const int rank = communicator->rank();
  TrainOptions options;
  options.folder = folder;
  options.communicator = communicator.get();
  options.log = nullptr;
  options.checkpoint_requested = [&, step = int64_t{0}]() mutable {
    ++step;
    if (rank == killed.rank && step == killed.step) std::raise(SIGKILL);
    if (rank == failed.rank && step == failed.step) fail("no more steps");
    return false;
  };
  options.stop_requested = [&, taken = int64_t{0}]() mutable { return stop_after > 0 && ++taken >= stop_after; };
  train(context, testing::tiny_train_config(settings), options);
  return 0;
}

// The losses and validation losses of a metrics.csv.
std::vector<double> losses(const std::string& csv) {
  constexpr int kLoss = 2, kValidationLoss = 5;
  std::vector<double> values;
  std::istringstream lines(csv.substr(csv.find('\n') + 1));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream cells(line);
    std::string cell;
    for (int column = 0; std::getline(cells, cell, ','); ++column) {
      if (!cell.empty() && (column == kLoss || column == kValidationLoss)) values.push_back(std::stod(cell));
    }
  }
  return values;
}

int compare(const std::string& a, const std::string& b) {
  const std::vector<double> x = losses(read_file(a + "/metrics.csv")), y = losses(read_file(b + "/metrics.csv"));
  check(x.size() == y.size() && x.size() > 40, "{} and {} losses", x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    check(std::abs(x[i] - y[i]) <= 1e-5 * std::abs(y[i]), "loss {} is {} and {}", i, x[i], y[i]);
  }
  return 0;
}

int run(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  if (command == "collectives") return collectives();
  if (command == "train" && arguments.size() > 1)
    return train_in(arguments[1], {arguments.begin() + 2, arguments.end()});
  if (command == "compare" && arguments.size() == 3) return compare(arguments[1], arguments[2]);
  fail("expected collectives, train FOLDER or compare FOLDER FOLDER");
}

}  // namespace
}  // namespace heddle

int main(int argc, char** argv) {
  try {
    return heddle::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
