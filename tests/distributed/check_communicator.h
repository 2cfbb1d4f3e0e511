// The contract of a communicator, checked by all its processes at once. Throws Error where it does not hold.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/distributed/communicator.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle::testing {

// Element `index` of process `rank`: numbers whose sum depends on the order in which they are added.
inline double contribution(int rank, int64_t index) {
  return std::ldexp(std::sin(static_cast<double>(index * 7 + rank + 1)), (rank * 5 + static_cast<int>(index)) % 20);
}

class CommunicatorCheck {
 public:
  CommunicatorCheck(Context& context, Communicator& communicator) : context_(context), communicator_(communicator) {}

  void run() {
    for (const DType dtype : {DType::float32, DType::float64}) {
      for (const int64_t size : {0, 1, 2, 7, 1000}) reduce(size, dtype);
    }
    reduce(300000, DType::float32);  // more than a message of MPI holds
    move();
    not_finite();
    texts();
    communicator_.barrier();
  }

 private:
  int rank() const { return communicator_.rank(); }
  int size() const { return communicator_.size(); }

  Tensor mine(int64_t size, DType dtype) {
    std::vector<double> values;
    for (int64_t i = 0; i < size; ++i) values.push_back(contribution(rank(), i));
    return tensor(values, dtype);
  }
  Tensor tensor(const std::vector<double>& values, DType dtype) {
    const Tensor tensor = Tensor::empty(context_, {static_cast<int64_t>(values.size())}, dtype);
    write_values(context_, tensor, values);
    return tensor;
  }

  // Bounds with an empty part and a long one.
  std::vector<int64_t> uneven_bounds(int64_t extent) const {
    std::vector<int64_t> bounds(static_cast<size_t>(size() + 1), extent);
    bounds[0] = 0;
    if (size() > 1) bounds[1] = 0;
    if (size() > 2) bounds[2] = extent / 5;
    return bounds;
  }

  void expect_sum(double found, int64_t index, DType dtype, const std::string& call) const {
    double sum = 0.0, magnitude = 0.0;
    for (int r = 0; r < size(); ++r) {
      const double term = dtype == DType::float32 ? static_cast<double>(static_cast<float>(contribution(r, index)))
                                                  : contribution(r, index);
      sum += term;
      magnitude += std::abs(term);
    }
    const double eps = dtype == DType::float32 ? 1.2e-7 : 2.3e-16;
    check(std::abs(found - sum) <= eps * size() * magnitude, "{}: element {} is {}, expected {}", call, index, found,
          sum);
  }

  // All processes must have the same bits.
  void expect_same_bits(const std::vector<double>& values, const std::string& call) {
    const std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
    for (const std::string& other : communicator_.all_gather_bytes(bytes)) {
      check(other == bytes, "{}: processes have different bits", call);
    }
  }

  void reduce(int64_t extent, DType dtype) {
    Tensor values = mine(extent, dtype);
    communicator_.all_reduce(values, context_.stream());
    const std::vector<double> sums = read_values(context_, values);
    for (int64_t i = 0; i < extent; ++i) expect_sum(sums[i], i, dtype, "all_reduce");
    expect_same_bits(sums, "all_reduce");
    values = mine(extent, dtype);
    communicator_.all_reduce(values, context_.stream());
    check(read_values(context_, values) == sums, "all_reduce: a repeat has other bits");

    for (const std::vector<int64_t>& bounds : {equal_bounds(extent, size()), uneven_bounds(extent)}) {
      values = mine(extent, dtype);
      communicator_.reduce_scatter(values, bounds, context_.stream());
      const std::vector<double> found = read_values(context_, values);
      for (int64_t i = bounds[rank()]; i < bounds[rank() + 1]; ++i) expect_sum(found[i], i, dtype, "reduce_scatter");
      communicator_.all_gather(values, bounds, context_.stream());
      const std::vector<double> gathered = read_values(context_, values);
      for (int64_t i = 0; i < extent; ++i) expect_sum(gathered[i], i, dtype, "all_gather");
      expect_same_bits(gathered, "all_gather");
    }
  }

  void move() {
    for (int root = 0; root < size(); ++root) {
      const Tensor values = tensor({static_cast<double>(rank()), 2.0, 3.0}, DType::bfloat16);
      communicator_.broadcast(values, root, context_.stream());
      check(read_values(context_, values)[0] == root, "broadcast from {}", root);
    }
    std::vector<double> ranks(static_cast<size_t>(3 * size()), -1.0);
    for (size_t i = 0; i < 3; ++i) ranks[static_cast<size_t>(3 * rank()) + i] = rank();
    const Tensor values = tensor(ranks, DType::int32);
    communicator_.all_gather(values, equal_bounds(3 * size(), size()), context_.stream());
    for (int64_t i = 0; i < 3 * size(); ++i) {
      check(read_values(context_, values)[i] == i / 3, "all_gather of int32: element {}", i);
    }
  }

  // What is not finite on one process is so on all.
  void not_finite() {
    for (int r = 0; r < size(); ++r) {
      const double odd = rank() == r ? std::numeric_limits<double>::quiet_NaN() : 1.0;
      const Tensor values = tensor({odd, 1.0}, DType::float32);
      communicator_.all_reduce(values, context_.stream());
      const std::vector<double> found = read_values(context_, values);
      check(std::isnan(found[0]) && found[1] == size(), "NaN of process {}", r);
    }
  }

  void texts() {
    const std::vector<std::string> all = communicator_.all_gather_bytes(std::string(static_cast<size_t>(rank()), 'x'));
    check(static_cast<int>(all.size()) == size(), "all_gather_bytes: {} texts", all.size());
    for (int r = 0; r < size(); ++r) check(all[r].size() == static_cast<size_t>(r), "all_gather_bytes: text {}", r);
    for (int r = 0; r < size(); ++r) {
      check(any_process(communicator_, rank() == r), "any_process does not see process {}", r);
    }
    check(!any_process(communicator_, false), "any_process sees what is nowhere");
  }

  Context& context_;
  Communicator& communicator_;
};

inline void check_communicator(Context& context, Communicator& communicator) {
  CommunicatorCheck(context, communicator).run();
}

}  // namespace heddle::testing
