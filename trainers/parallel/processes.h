// The processes that train one model, and how they come to the same conclusion.                   docs/distributed.md
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/distributed/communicator.h"

namespace heddle {

// Collective calls are made by all processes, in the same order. With one process they return at once.
class Processes {
 public:
  // `communicator` must outlive it; nullptr: this process is alone.
  explicit Processes(Communicator* communicator = nullptr) : communicator_(communicator) {}

  Communicator& communicator() const { return *communicator_; }  // there are several
  int count() const { return communicator_ == nullptr ? 1 : communicator_->size(); }
  int rank() const { return communicator_ == nullptr ? 0 : communicator_->rank(); }
  // Whether this is the process that writes logs, checkpoints and all other files.
  bool is_first() const { return rank() == 0; }

  // Collective: whether `condition` is true on one of them.
  bool any(bool condition) const { return count() > 1 ? any_process(*communicator_, condition) : condition; }
  // Collective: the texts of all by rank.
  std::vector<std::string> gather(std::string_view text) const;
  // Collective: the text of the first process.
  std::string from_first(std::string_view text) const { return gather(text).front(); }

  // Collective: returns what work() returns. When it throws on one process, this throws on all of them: there the same
  // exception, elsewhere one with its message and the number of the process.
  template <class Work>
  auto together(const Work& work) {
    using Result = std::invoke_result_t<const Work&>;
    std::exception_ptr error;
    if constexpr (std::is_void_v<Result>) {
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
      agree(error);
    } else {
      std::optional<Result> result;
      try {
        result.emplace(work());
      } catch (...) {
        error = std::current_exception();
      }
      agree(error);
      return std::move(*result);
    }
  }
  // Whether together() has thrown, so that every process knows of the error.
  bool failed_together() const { return failed_together_; }
  // The caller throws the same on all processes.
  void fail_together() { failed_together_ = true; }
  // All of them have caught what together() threw, and go on.
  void go_on() { failed_together_ = false; }

 private:
  void agree(const std::exception_ptr& error);

  Communicator* communicator_;
  bool failed_together_ = false;
};

}  // namespace heddle
