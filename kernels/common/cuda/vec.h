// Loads and stores of several elements at once, up to 16 bytes an instruction.
// A kernel has a template argument `width`, the number of elements of one access. The host checks once a launch, by
// can_vectorize(), that all pointers and row strides are multiples of the access and row lengths multiples of the
// width. If so, the width is what 16 bytes hold of the narrowest type, else it is 1. Kernels have no code for heads and
// tails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda {

template <class T>
inline constexpr int vector_width = 16 / static_cast<int>(sizeof(T));

// N elements of T. It is longer than 16 bytes where T is wider than the type that determines the width.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vec {
  T values[N];
  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

namespace detail {

// The type whose loads and stores move `Bytes` bytes in one instruction.
template <int Bytes>
struct word_of;
template <>
struct word_of<2> {
  using type = unsigned short;
};
template <>
struct word_of<4> {
  using type = unsigned;
};
template <>
struct word_of<8> {
  using type = uint2;
};
template <>
struct word_of<16> {
  using type = uint4;
};

template <class T, int N>
struct Words {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static constexpr int kWord = kBytes < 16 ? kBytes : 16;
  static constexpr int kCount = kBytes / kWord;
  using Word = typename word_of<kWord>::type;
};

}  // namespace detail

template <int N, class T>
__device__ __forceinline__ Vec<T, N> load(const T* from) {
  using W = detail::Words<T, N>;
  Vec<T, N> result;
  auto* to = reinterpret_cast<typename W::Word*>(&result);
  const auto* words = reinterpret_cast<const typename W::Word*>(from);
#pragma unroll
  for (int i = 0; i < W::kCount; ++i) to[i] = words[i];
  return result;
}

// Predicated load of 16 bytes: `otherwise` in every element where `valid` is false. The load stays asynchronous; a
// select between two vectors would make the compiler wait for it here.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_if(bool valid, const T* from, T otherwise) {
  Vec<T, N> result;
  static_assert(sizeof(result) == 16);
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] = otherwise;
  uint4& words = *reinterpret_cast<uint4*>(&result);
  asm volatile(
      "{\n\t.reg .pred valid;\n\tsetp.ne.u32 valid, %4, 0;\n\t@valid ld.global.v4.u32 {%0, %1, %2, %3}, [%5];\n\t}"
      : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)
      : "r"(static_cast<unsigned>(valid)), "l"(from)
      : "memory");
  return result;
}

// L2 eviction priorities, as the cache policies that createpolicy.fractional.L2::evict_* makes for all accesses.
enum class EvictionPriority : uint64_t {
  normal = 0x10F0000000000000,
  first = 0x12F0000000000000,
  last = 0x14F0000000000000
};

// Loads from a tensor that the kernel reads once and does not write before. With priority `last`, L2 evicts lines that
// are written before lines that are read: on an H200, kernels that read and write as much take 3 to 4 % less time.
// Presumably memory then changes less often between reading and writing.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_stream(const T* from) {
  using W = detail::Words<T, N>;
  if constexpr (W::kWord < 16) {
    return load<N>(from);
  } else {
    Vec<T, N> result;
    auto* to = reinterpret_cast<uint4*>(&result);
#pragma unroll
    for (int i = 0; i < W::kCount; ++i) {
      asm("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
          : "=r"(to[i].x), "=r"(to[i].y), "=r"(to[i].z), "=r"(to[i].w)
          : "l"(reinterpret_cast<const uint4*>(from) + i), "l"(static_cast<uint64_t>(EvictionPriority::last)));
    }
    return result;
  }
}

template <class T, int N>
__device__ __forceinline__ void store(T* to, const Vec<T, N>& value) {
  using W = detail::Words<T, N>;
  const auto* from = reinterpret_cast<const typename W::Word*>(&value);
  auto* words = reinterpret_cast<typename W::Word*>(to);
#pragma unroll
  for (int i = 0; i < W::kCount; ++i) words[i] = from[i];
}

// Stores 16 bytes that the kernel does not read again.
template <class T, int N>
__device__ __forceinline__ void store_stream(T* to, const Vec<T, N>& value, EvictionPriority priority) {
  static_assert(sizeof(value) == 16);
  const uint4 words = *reinterpret_cast<const uint4*>(&value);
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to), "r"(words.x), "r"(words.y),
               "r"(words.z), "r"(words.w), "l"(static_cast<uint64_t>(priority))
               : "memory");
}

// Hides where a value comes from: the compiler must treat it as unknown. What it has computed from the value before,
// wide copies above all, it computes again at the next use instead of keeping it in registers.
template <class T, int N>
__device__ __forceinline__ void hide_from_compiler(Vec<T, N>& values) {
  static_assert(sizeof(values) % 4 == 0);
  auto* words = reinterpret_cast<unsigned*>(&values);
#pragma unroll
  for (size_t i = 0; i < sizeof(values) / 4; ++i) asm volatile("" : "+r"(words[i]));
}

template <class T>
__device__ __forceinline__ void hide_from_compiler(T*& pointer) {
  asm volatile("" : "+l"(pointer));
}
__device__ __forceinline__ void hide_from_compiler(uint32_t& word) { asm volatile("" : "+r"(word)); }
__device__ __forceinline__ void hide_from_compiler(int& word) { asm volatile("" : "+r"(word)); }

// Keeps the compiler from computing what follows in a rarely taken branch in any case.
__device__ __forceinline__ void stay_branch() { asm volatile("" ::: "memory"); }

// Converts to the type of arithmetic, exactly; 16-bit types two at a time.
template <class T, int N>
__device__ __forceinline__ Vec<accumulate_t<T>, N> widen_all(const Vec<T, N>& values) {
  Vec<accumulate_t<T>, N> result;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) widen_pair(values.values + i, result[i], result[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) result[i] = widen(values[i]);
  }
  return result;
}

// The larger of a[i] and b[i] for each i; NaN is ignored. 16-bit types two at a time.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> elementwise_max(const Vec<T, N>& a, const Vec<T, N>& b) {
  Vec<T, N> result;
#pragma unroll
  for (int i = 0; i < N; i += sizeof(T) == 2 && N % 2 == 0 ? 2 : 1) {
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
      max_pair(a.values + i, b.values + i, result.values + i);
    } else {
      result[i] = narrow<T>(fmax(widen(a[i]), widen(b[i])));
    }
  }
  return result;
}

// Loads N elements in the type of arithmetic.
template <int N, class T>
__device__ __forceinline__ Vec<accumulate_t<T>, N> load_wide(const T* from) {
  return widen_all(load<N>(from));
}

// Converts to a storage type, rounding once to nearest even; 16-bit types two at a time.
template <class T, class A, int N>
__device__ __forceinline__ Vec<T, N> narrow_all(const Vec<A, N>& values) {
  Vec<T, N> result;
  if constexpr (sizeof(T) == 2 && sizeof(A) == 4 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) narrow_pair(values[i], values[i + 1], result.values + i);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) result[i] = narrow<T>(values[i]);
  }
  return result;
}

template <class T, class A, int N>
__device__ __forceinline__ void store_narrow(T* to, const Vec<A, N>& values) {
  store(to, narrow_all<T>(values));
}

// to (=|+=) values, rounded once. `add` must be the same for all threads.
template <class T, class A, int N>
__device__ __forceinline__ void store_or_add(T* to, Vec<A, N> values, bool add) {
  if (add) {
    const Vec<T, N> old = load<N>(to);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] += static_cast<A>(widen(old[i]));
  }
  store_narrow(to, values);
}

// Host: whether rows can be accessed `width` elements at a time. An empty view always can.
inline bool can_vectorize(const void* data, DType dtype, int64_t cols, int64_t row_stride, int width) {
  if (data == nullptr) return true;
  const int64_t bytes = width * static_cast<int64_t>(size_of(dtype));
  const int64_t access = bytes < 16 ? bytes : 16;
  return reinterpret_cast<uintptr_t>(data) % access == 0 && cols % width == 0 && row_stride % width == 0;
}
inline bool can_vectorize(const RowsView& view, int width) {
  return can_vectorize(view.data, view.dtype, view.cols, view.rows > 1 ? view.row_stride : view.cols, width);
}
inline bool can_vectorize(const VectorView& view, int width) {
  return can_vectorize(view.data, view.dtype, view.size, view.size, width);
}
// All strides must keep the alignment, except those of dimensions of extent 1.
inline bool can_vectorize(const HeadsView& view, int width) {
  const auto stride = [](int64_t extent, int64_t value) { return extent > 1 ? value : 0; };
  return can_vectorize(view.data, view.dtype, view.dim, stride(view.batch, view.batch_stride), width) &&
         can_vectorize(view.data, view.dtype, view.dim, stride(view.length, view.length_stride), width) &&
         can_vectorize(view.data, view.dtype, view.dim, stride(view.heads, view.head_stride), width);
}
template <class... Views>
bool can_vectorize_all(int width, const Views&... views) {
  return (can_vectorize(views, width) && ...);
}

// Host: calls launch(std::integral_constant<int, width>) with vector_width<T> or 1.
template <class T, class Launch>
void with_width(bool vectorized, const Launch& launch) {
  if (vectorized) {
    launch(std::integral_constant<int, vector_width<T>>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

}  // namespace heddle::kernels::cuda
