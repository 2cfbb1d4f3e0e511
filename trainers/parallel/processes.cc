#include "trainers/parallel/processes.h"

#include <fmt/format.h>

#include <cstddef>

#include "core/io/disk_space.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

// What kind of error it is, as others have to treat it, and its message. No error is the empty text.
std::string encode(const std::exception_ptr& error) {
  if (!error) return "";
  try {
    std::rethrow_exception(error);
  } catch (const NoSpace& failure) {
    return std::string("N") + failure.what();
  } catch (const UsageError& failure) {
    return std::string("U") + failure.what();
  } catch (const std::exception& failure) {
    return std::string("E") + failure.what();
  } catch (...) {
    return "Eunknown error";
  }
}

}  // namespace

std::vector<std::string> Processes::gather(std::string_view text) const {
  if (count() == 1) return {std::string(text)};
  return communicator_->all_gather_bytes(text);
}

void Processes::agree(const std::exception_ptr& error) {
  if (count() == 1) {
    if (error) std::rethrow_exception(error);
    return;
  }
  const std::vector<std::string> errors = gather(encode(error));
  for (size_t rank = 0; rank < errors.size(); ++rank) {
    if (errors[rank].empty()) continue;
    failed_together_ = true;
    if (error) std::rethrow_exception(error);
    const std::string message = fmt::format("process {}: {}", rank, errors[rank].substr(1));
    if (errors[rank].front() == 'N') throw NoSpace(message);
    if (errors[rank].front() == 'U') throw UsageError(message);
    throw Error(message);
  }
}

}  // namespace heddle
