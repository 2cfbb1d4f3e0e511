// One thread of the CPU as the Team of wide_group.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/common/cpu/activation.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/types.h"
#include "kernels/norm/wide_group.h"

namespace heddle::kernels::cpu {

struct WideThread {
  template <class T>
  double load(T element) const {
    return static_cast<double>(static_cast<accumulate_t<T>>(element));
  }
  template <class T>
  T narrow(double number) const {
    return static_cast<T>(static_cast<accumulate_t<T>>(number));
  }
  template <class T>
  Activated<double> activate(Activation act, T gate) const {
    Activated<double> result{};
    visit_activation(act, [&](auto kind) {
      const auto both = activate_with_derivative<kind.value>(static_cast<accumulate_t<T>>(gate));
      result = {both.value, both.derivative};
    });
    return result;
  }
  template <int N, class Value>
  Numbers<N> sum(int64_t count, const Value& value) const {
    Lanes<double, N> lanes;
    lanes.add(count, [&](int64_t c) {
      std::array<double, N> numbers;
      std::copy_n(value(c).values, N, numbers.begin());
      return numbers;
    });
    Numbers<N> result;
    for (int k = 0; k < N; ++k) result.values[k] = lanes.total(k);
    return result;
  }
  template <class Value>
  double maximum(int64_t count, const Value& value) const {
    return maximum_of<double>(count, value);
  }
  template <class Visit>
  void for_each(int64_t count, const Visit& visit) const {
    for (int64_t c = 0; c < count; ++c) visit(c);
  }
  double inverse(int64_t count) const { return 1.0 / static_cast<double>(count); }
  double inverse_root(double number) const { return 1.0 / std::sqrt(number); }
  bool is_leader() const { return true; }
};

}  // namespace heddle::kernels::cpu
