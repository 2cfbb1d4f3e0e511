#include "core/tensor/transfer.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"
#include "core/tensor/element_types.h"

namespace heddle {
namespace {

size_t byte_count(const Tensor& tensor) { return static_cast<size_t>(tensor.numel()) * size_of(tensor.dtype()); }

// Only meta takes tensors of other devices: it does not look at them.
void require_device(const Context& context, const Tensor& tensor, const char* what) {
  if (context.is_meta() || tensor.device() == context.device()) return;
  fail("{}: the tensor is on device {}, the context on {}", what, to_string(tensor.device()),
       to_string(context.device()));
}

void require_contiguous(const Tensor& tensor, const char* what) {
  check(tensor.is_contiguous(), "{}: the tensor of shape {} and strides {} is not contiguous", what, tensor.shape(),
        tensor.strides());
}

// Calls run(address, bytes) for each contiguous range of memory that the tensor covers, in row-major order.
template <class Run>
void for_each_stretch(const Tensor& tensor, const Run& run) {
  if (tensor.numel() == 0) return;
  if (tensor.is_contiguous()) {
    run(static_cast<char*>(tensor.raw()), byte_count(tensor));
    return;
  }
  for (int64_t i = 0; i < tensor.size(0); ++i) for_each_stretch(tensor.select(0, i), run);
}

template <class T>
void decode(const std::vector<char>& bytes, std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    T element;
    std::memcpy(&element, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<double>(element);
  }
}

// `value` as a float in such a way that rounding the result to a shorter format gives what rounding `value` itself
// would: what float cannot hold is cut off, and the last bit is set when it was not zero ("rounding to odd").
// Source: Boldo, Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
// 2008.
float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(nearest) == value) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

template <class T>
T round_once(double value) {
  if constexpr (std::is_integral_v<T>) {
    // -low = 2^31 or 2^63 is exact as a double; the largest integer may not be.
    constexpr double low = static_cast<double>(std::numeric_limits<T>::min());
    check(value == std::trunc(value) && value >= low && value < -low, "write_values: {} is not an {}", value,
          name(dtype_of<T>::value));
  }
  if constexpr (sizeof(T) == 2) {
    return T(round_to_odd(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class T>
void encode(const std::vector<double>& values, std::vector<char>& bytes) {
  for (size_t i = 0; i < values.size(); ++i) {
    const T element = round_once<T>(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
  }
}

void fill_byte(Context& context, const Tensor& tensor, int byte) {
  require_device(context, tensor, "fill");
  if (context.is_meta()) return;
  for_each_stretch(
      tensor, [&](char* data, size_t bytes) { context.backend().fill_bytes(data, byte, bytes, context.stream()); });
}

}  // namespace

void copy_from_host(Context& context, const Tensor& tensor, const void* host) {
  require_device(context, tensor, "copy_from_host");
  require_contiguous(tensor, "copy_from_host");
  context.backend().copy_from_host(tensor.raw(), host, byte_count(tensor), context.stream());
}

void copy_to_host(Context& context, const Tensor& tensor, void* host) {
  require_device(context, tensor, "copy_to_host");
  require_contiguous(tensor, "copy_to_host");
  context.backend().copy_to_host(host, tensor.raw(), byte_count(tensor), context.stream());
}

void copy_to_host_async(Context& context, const Tensor& tensor, void* host) {
  require_device(context, tensor, "copy_to_host_async");
  require_contiguous(tensor, "copy_to_host_async");
  context.backend().copy_to_host_async(host, tensor.raw(), byte_count(tensor), context.stream());
}

void copy(Context& context, const Tensor& to, const Tensor& from) {
  check(to.shape() == from.shape() && to.dtype() == from.dtype(), "copy: {} {} to {} {}", name(from.dtype()),
        from.shape(), name(to.dtype()), to.shape());
  if (context.is_meta()) return;
  require_device(context, to, "copy");
  require_device(context, from, "copy");
  if (to.is_contiguous() && from.is_contiguous()) {
    context.backend().copy(to.raw(), from.raw(), byte_count(to), context.stream());
  } else {
    for (int64_t i = 0; i < to.size(0); ++i) copy(context, to.select(0, i), from.select(0, i));
  }
}

Tensor clone(Context& context, const Tensor& tensor) {
  Tensor result = Tensor::empty(context, tensor.shape(), tensor.dtype());
  copy(context, result, tensor);
  return result;
}

std::vector<double> read_values(Context& context, const Tensor& tensor) {
  require_device(context, tensor, "read_values");
  check_host_memory("the values of a tensor", tensor.numel(), sizeof(double));
  std::vector<char> bytes(byte_count(tensor));
  char* position = bytes.data();
  for_each_stretch(tensor, [&](char* data, size_t count) {
    context.backend().copy_to_host(position, data, count, context.stream());
    position += count;
  });
  std::vector<double> values(static_cast<size_t>(tensor.numel()));
  visit_type(tensor.dtype(), [&](auto type) { decode<decltype(type)>(bytes, values); });
  return values;
}

void write_values(Context& context, const Tensor& tensor, const std::vector<double>& values) {
  check(static_cast<int64_t>(values.size()) == tensor.numel(), "write_values: {} values for a tensor of shape {}",
        values.size(), tensor.shape());
  require_device(context, tensor, "write_values");
  std::vector<char> bytes(byte_count(tensor));
  visit_type(tensor.dtype(), [&](auto type) { encode<decltype(type)>(values, bytes); });
  const char* position = bytes.data();
  for_each_stretch(tensor, [&](char* data, size_t count) {
    context.backend().copy_from_host(data, position, count, context.stream());
    position += count;
  });
  context.synchronize();
}

void write_number(void* place, DType dtype, double value) {
  visit_type(dtype, [&](auto type) {
    const auto element = round_once<decltype(type)>(value);
    std::memcpy(place, &element, sizeof(element));
  });
}

double read_number(const void* place, DType dtype) {
  double value = 0.0;
  visit_type(dtype, [&](auto element) {
    std::memcpy(&element, place, sizeof(element));
    value = static_cast<double>(element);
  });
  return value;
}

void fill_zero(Context& context, const Tensor& tensor) { fill_byte(context, tensor, 0); }

void poison(Context& context, const Tensor& tensor) { fill_byte(context, tensor, 0xFF); }

}  // namespace heddle
