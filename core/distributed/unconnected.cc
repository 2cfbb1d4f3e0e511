// Communicators without other processes: of a process that is alone, and of one that is counted on device meta as if
// there were others.
#include "core/distributed/unconnected.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"

namespace heddle {
namespace {

class Unconnected final : public Communicator {
 public:
  Unconnected(std::string_view name, int rank, int size) : name_(name), rank_(rank), size_(size) {}

  std::string_view name() const override { return name_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(const Tensor&, StreamHandle) override {}
  void reduce_scatter(const Tensor&, std::span<const int64_t>, StreamHandle) override {}
  void all_gather(const Tensor&, std::span<const int64_t>, StreamHandle) override {}
  void broadcast(const Tensor&, int, StreamHandle) override {}
  bool can_be_captured() const override { return true; }

  std::vector<std::string> all_gather_bytes(std::string_view bytes) override {
    return std::vector<std::string>(static_cast<size_t>(size_), std::string(bytes));
  }
  void barrier() override {}
  void abort(std::string_view) noexcept override {}

 private:
  std::string_view name_;
  int rank_, size_;
};

}  // namespace

std::unique_ptr<Communicator> make_alone_communicator() { return std::make_unique<Unconnected>("alone", 0, 1); }

std::unique_ptr<Communicator> make_pretended_communicator(int rank, int size) {
  check(size > 0 && rank >= 0 && rank < size, "process {} of {}, expected a number from 0 below that of the processes",
        rank, size);
  return std::make_unique<Unconnected>("pretended", rank, size);
}

}  // namespace heddle
