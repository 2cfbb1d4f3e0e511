// Chunks of a row in the type of arithmetic. float and double are used in place; bfloat16 and float16 are converted,
// many at a time, into a small buffer. All conversions round to nearest even, and NaN stays NaN.
//
//   Buffer<float> buffer;
//   for_each_chunk(dim, [&](int64_t begin, int64_t count) {
//     const float* x = load_chunk(row_of_x + begin, count, buffer);
//     ...
//     store_chunk(row_of_y + begin, result, count, GradientMode::overwrite);
//   });
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/common/cpu/types.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace heddle::kernels::cpu {

// Elements of a chunk at most: 16 KiB of float, and a multiple of kLanes in math.h.
inline constexpr int64_t kChunk = 4096;

// Scratch memory for one chunk, on the stack of a kernel. It is aligned to cache lines and a few lines longer than a
// power of two: in several buffers that follow each other, elements of the same index must not compete for the same
// cache set.
template <class A, int64_t kSize = kChunk>
class Buffer {
 public:
  A* data() { return values_; }
  operator A*() { return values_; }
  operator const A*() const { return values_; }

 private:
  alignas(64) A values_[kSize + 5 * 64 / sizeof(A)];
};

// Calls chunk(begin, count) for consecutive chunks of at most kChunk elements that together cover [0, size).
template <class Chunk>
inline void for_each_chunk(int64_t size, const Chunk& chunk) {
  for (int64_t begin = 0; begin < size; begin += kChunk) chunk(begin, std::min(kChunk, size - begin));
}

// to_float and from_float convert `count` elements; from_float rounds to nearest even.
inline void to_float(const bfloat16* from, float* __restrict to, int64_t count) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
}

inline void from_float(const float* from, bfloat16* __restrict to, int64_t count) {
  auto* bits = reinterpret_cast<uint16_t*>(to);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t word = std::bit_cast<uint32_t>(from[i]);
    const uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
    const uint32_t nan = (word >> 16) | 0x40u;
    bits[i] = static_cast<uint16_t>((word & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
  }
}

inline void to_float(const float16* from, float* __restrict to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
#endif
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

inline void from_float(const float* from, float16* __restrict to, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) to[i] = static_cast<float16>(from[i]);
}

// `count` <= kChunk elements in the type of arithmetic: `from` itself when T is that type, else `buffer`, into which
// they are converted.
template <class T>
inline const accumulate_t<T>* load_chunk(const T* from, int64_t count, accumulate_t<T>* buffer) {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    return from;
  } else {
    to_float(from, buffer, count);
    return buffer;
  }
}

// Where a kernel computes the elements that it then passes to store_chunk for `to`: `to` itself when they overwrite it
// without a conversion, else `buffer`.
template <class T>
inline accumulate_t<T>* target_chunk(T* to, GradientMode mode, accumulate_t<T>* buffer) {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    if (mode == GradientMode::overwrite) return to;
  }
  return buffer;
}

// Writes (=) or adds (+=) `count` <= kChunk values to `to`, each result rounded once. `values` may be `to` itself when
// the mode is overwrite.
template <class T>
inline void store_chunk(T* to, const accumulate_t<T>* values, int64_t count, GradientMode mode) {
  using A = accumulate_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (mode == GradientMode::accumulate) {
      for (int64_t i = 0; i < count; ++i) to[i] += values[i];
    } else if (to != values) {
      std::memcpy(to, values, static_cast<size_t>(count) * sizeof(T));
    }
  } else {
    if (mode == GradientMode::overwrite) return from_float(values, to, count);
    Buffer<A> sum;
    to_float(to, sum, count);
    for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
    from_float(sum, to, count);
  }
}

// Rounds values to T and back, in place, so that they equal what is read back after they were stored as T.
template <class T>
inline void round_chunk(accumulate_t<T>* values, int64_t count) {
  if constexpr (!std::is_same_v<T, accumulate_t<T>>) {
    Buffer<T> rounded;
    from_float(values, rounded, count);
    to_float(rounded, values, count);
  }
}

}  // namespace heddle::kernels::cpu
