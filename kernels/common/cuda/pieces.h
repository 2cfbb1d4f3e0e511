// Products on the tensor cores with the accuracy of their inputs: numbers enter as sums of bfloat16 pieces.
// A bfloat16 is one piece, a float16 two, a float three, each exactly. Numbers that a kernel computes on the way to a
// 16-bit result are rounded to two pieces, a relative error of 2^-16. Pieces have the exponents of float, so a state or
// a score beyond the range of float16 does no harm. Of the products of pieces those are left out that are below the
// last one kept. Where a factor is infinite the product may be NaN. The names of a fragment's rows, columns and depth
// are those of mma.h.
#pragma once

#include <type_traits>

#include "kernels/common/cuda/mma.h"

namespace heddle::kernels::cuda {

template <class T>
inline constexpr int kPieces = 1;
template <>
inline constexpr int kPieces<fp16> = 2;
template <>
inline constexpr int kPieces<float> = 3;

// Pieces of a number that was computed in float on the way to a result of T.
template <class T>
inline constexpr int kComputedPieces = kPieces<T> < 2 ? 2 : kPieces<T>;

template <int N>
struct PiecesA {
  FragmentA parts[N];
};
template <int N>
struct PiecesB {
  FragmentPairB parts[N];
};

// Two numbers as N words of two pieces each, the first number in the lower halves. The difference to the pieces before
// it is rounded to the last piece. An infinity has pieces of 0 after the first one, so that the sum of its pieces is
// the number again; with MAY_BREAK, which takes fewer instructions, it has pieces that are NaN.
template <int N, bool MAY_BREAK = false>
__device__ __forceinline__ void split(float first, float second, unsigned (&words)[N]) {
#pragma unroll
  for (int p = 0; p < N - 1; ++p) {
    words[p] = __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
    const float2 cut = unpack<bf16>(words[p]);
    first = !MAY_BREAK && first == cut.x ? 0.0f : first - cut.x;
    second = !MAY_BREAK && second == cut.y ? 0.0f : second - cut.y;
  }
  words[N - 1] = pack<bf16>(first, second);
}

// A matrix (ROWS, COLS) in shared memory, as PLANES matrices of E one after the other: the number is their sum. Rows
// are padded by 16 bytes, so that the rows that one ldmatrix reads lie in different banks.
template <class E, int PLANES, int ROWS, int COLS>
struct PlaneMatrix {
  static constexpr int kRows = ROWS, kCols = COLS, kPlanes = PLANES, kStride = COLS + 8, kPlane = ROWS * kStride;
  E data[PLANES * kPlane];

  __device__ __forceinline__ E* row(int i) { return data + i * kStride; }
  __device__ __forceinline__ const E* at(int plane, int row, int col) const {
    return data + plane * kPlane + row * kStride + col;
  }
  __device__ __forceinline__ float value(int row, int col) const {
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < PLANES; ++p) sum += widen(*at(p, row, col));
    return sum;
  }
  // Stores numbers of T at (row, col) and (row, col + 1). `col` is even.
  template <class T>
  __device__ __forceinline__ void put_pair(int row, int col, float first, float second) {
    unsigned words[PLANES];
    if constexpr (sizeof(T) == sizeof(E)) {
      words[0] = pack<E>(first, second);
    } else {
      split(first, second, words);
    }
    put_words(row, col, words);
  }
  // The same of numbers that were computed.
  __device__ __forceinline__ void put_computed(int row, int col, float first, float second) {
    unsigned words[PLANES];
    split<PLANES, true>(first, second, words);
    put_words(row, col, words);
  }
  __device__ __forceinline__ void put_words(int row, int col, const unsigned (&words)[PLANES]) {
#pragma unroll
    for (int p = 0; p < PLANES; ++p) {
      *reinterpret_cast<unsigned*>(data + p * kPlane + row * kStride + col) = words[p];
    }
  }
};

namespace detail {

template <class T>
struct Stored {
  using type = T;
  static constexpr int kPlanes = 1;
};
template <>
struct Stored<float> {
  using type = bf16;
  static constexpr int kPlanes = kPieces<float>;
};

}  // namespace detail

// Numbers of T as they are stored (16-bit types) or as pieces (float).
template <class T, int ROWS, int COLS>
using StoredMatrix = PlaneMatrix<typename detail::Stored<T>::type, detail::Stored<T>::kPlanes, ROWS, COLS>;
// Numbers that were computed on the way to a result of T.
template <class T, int ROWS, int COLS>
using ComputedMatrix = PlaneMatrix<bf16, kComputedPieces<T>, ROWS, COLS>;

// Fragments of a matrix of planes, one a plane. (row, col) is the first element of the 16 x 16 tile as it is stored.
template <class E, int PLANES, int ROWS, int COLS>
__device__ __forceinline__ PiecesA<PLANES> load_a(const PlaneMatrix<E, PLANES, ROWS, COLS>& matrix, int row, int col) {
  PiecesA<PLANES> a;
#pragma unroll
  for (int p = 0; p < PLANES; ++p) a.parts[p] = load_a(matrix.at(p, row, col), matrix.kStride);
  return a;
}
template <class E, int PLANES, int ROWS, int COLS>
__device__ __forceinline__ PiecesA<PLANES> load_a_transposed(const PlaneMatrix<E, PLANES, ROWS, COLS>& matrix, int row,
                                                             int col) {
  PiecesA<PLANES> a;
#pragma unroll
  for (int p = 0; p < PLANES; ++p) a.parts[p] = load_a_transposed(matrix.at(p, row, col), matrix.kStride);
  return a;
}
template <class E, int PLANES, int ROWS, int COLS>
__device__ __forceinline__ PiecesB<PLANES> load_b(const PlaneMatrix<E, PLANES, ROWS, COLS>& matrix, int row, int col) {
  PiecesB<PLANES> b;
#pragma unroll
  for (int p = 0; p < PLANES; ++p) b.parts[p] = load_b(matrix.at(p, row, col), matrix.kStride);
  return b;
}
template <class E, int PLANES, int ROWS, int COLS>
__device__ __forceinline__ PiecesB<PLANES> load_b_transposed(const PlaneMatrix<E, PLANES, ROWS, COLS>& matrix, int row,
                                                             int col) {
  PiecesB<PLANES> b;
#pragma unroll
  for (int p = 0; p < PLANES; ++p) b.parts[p] = load_b_transposed(matrix.at(p, row, col), matrix.kStride);
  return b;
}

// The pieces of fragments of numbers of T as they are stored.
template <class T, int PLANES>
__device__ __forceinline__ PiecesA<kPieces<T>> pieces(const PiecesA<PLANES>& stored) {
  if constexpr (PLANES == kPieces<T>) {
    return stored;
  } else {
    PiecesA<2> result;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 pair = unpack<T>(stored.parts[0].words[w]);
      unsigned words[2];
      split(pair.x, pair.y, words);
      result.parts[0].words[w] = words[0];
      result.parts[1].words[w] = words[1];
    }
    return result;
  }
}
template <class T, int PLANES>
__device__ __forceinline__ PiecesB<kPieces<T>> pieces(const PiecesB<PLANES>& stored) {
  if constexpr (PLANES == kPieces<T>) {
    return stored;
  } else {
    PiecesB<2> result;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 pair = unpack<T>(stored.parts[0].parts[w / 2].words[w % 2]);
      unsigned words[2];
      split(pair.x, pair.y, words);
      result.parts[0].parts[w / 2].words[w % 2] = words[0];
      result.parts[1].parts[w / 2].words[w % 2] = words[1];
    }
    return result;
  }
}
// Two neighbouring tiles of C as operand A of depth 16.
template <int N, bool MAY_BREAK = false>
__device__ __forceinline__ PiecesA<N> pieces_of(const FragmentC& left, const FragmentC& right) {
  PiecesA<N> result;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float* from = (w < 2 ? left : right).values + w % 2 * 2;
    unsigned words[N];
    split<N, MAY_BREAK>(from[0], from[1], words);
#pragma unroll
    for (int p = 0; p < N; ++p) result.parts[p].words[w] = words[p];
  }
  return result;
}

// sum += a b for two neighbouring tiles of C, the smallest products of pieces first. SWAPPED: the order of
// the products is that of b a, so that scores and transposed scores have the same bits.
template <bool SWAPPED = false, int A, int B>
__device__ __forceinline__ void multiply_pair(FragmentC* sum, const PiecesA<A>& a, const PiecesB<B>& b) {
  constexpr int kKept = A > B ? A : B;
#pragma unroll
  for (int order = kKept - 1; order >= 0; --order) {
#pragma unroll
    for (int i = 0; i <= order; ++i) {
      const int x = SWAPPED ? order - i : i;
      if (x >= A || order - x >= B) continue;
#pragma unroll
      for (int part = 0; part < 2; ++part) mma<bf16>(sum[part], a.parts[x], b.parts[order - x].parts[part]);
    }
  }
}

// The same; where the numbers are floats, summed apart and added here: tensor cores cut what they add to a sum instead
// of rounding it.
template <int A, int B>
__device__ __forceinline__ void multiply(FragmentC* c, const PiecesA<A>& a, const PiecesB<B>& b) {
  if constexpr (A < 3 && B < 3) {
    multiply_pair(c, a, b);
  } else {
    FragmentC sum[2];
    multiply_pair(sum, a, b);
#pragma unroll
    for (int e = 0; e < 8; ++e) c[e / 4].values[e % 4] += sum[e / 4].values[e % 4];
  }
}
// The same where both factors are numbers of T as they are stored.
template <class T, int PLANES>
__device__ __forceinline__ void multiply_stored(FragmentC* c, const PiecesA<PLANES>& a, const PiecesB<PLANES>& b) {
  if constexpr (PLANES == 1) {
    mma<T>(c[0], a.parts[0], b.parts[0].parts[0]);
    mma<T>(c[1], a.parts[0], b.parts[0].parts[1]);
  } else {
    multiply(c, a, b);
  }
}

// acc + 0 x for each of the two numbers of a word: NaN where x is not finite.
template <class E>
__device__ __forceinline__ void add_zero_times(unsigned word, unsigned& acc) {
  if constexpr (std::is_same_v<E, fp16>) {
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(acc) : "r"(word), "r"(0u));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(acc) : "r"(word), "r"(0u));
  }
}

// Puts 0 in place of what is not finite. Returns whether there was such a number.
template <class E, int PLANES>
__device__ __forceinline__ bool drop_not_finite(PiecesB<PLANES>& b) {
  constexpr unsigned kExponent = std::is_same_v<E, fp16> ? 0x7c00u : 0x7f80u;
  bool found = false;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const unsigned word = b.parts[0].parts[w / 2].words[w % 2];
    const unsigned keep = ((word & kExponent) == kExponent ? 0u : 0x0000ffffu) |
                          ((word >> 16 & kExponent) == kExponent ? 0u : 0xffff0000u);
    found = found || keep != 0xffffffffu;
#pragma unroll
    for (int p = 0; p < PLANES; ++p) b.parts[p].parts[w / 2].words[w % 2] &= keep;
  }
  return found;
}

namespace detail {

// out (16, 8 TILES) += weights (16, 16) times what is not finite in b, for the pairs of row and depth that
// sees(row, depth) allows, one after the other.
template <int TILES, class Matrix, class Sees>
__device__ __noinline__ void add_seen_infinities(FragmentC* out, const FragmentC* weights, const Matrix& b, int first,
                                                 int column, Sees sees) {
  const int lane = threadIdx.x % 32, g = lane / 4, t2 = lane % 4 * 2;
  for (int depth = 0; depth < 16; ++depth) {
    for (int half = 0; half < 2; ++half) {
      const int row = g + half * 8;
      const float weight =
          __shfl_sync(0xffffffffu, weights[depth / 8].values[half * 2 + depth % 2], lane / 4 * 4 + depth % 8 / 2);
      if (!sees(row, depth)) continue;
      for (int n = 0; n < TILES; ++n) {
        for (int e = 0; e < 2; ++e) {
          const float number = b.value(first + depth, column + n * 8 + t2 + e);
          if (!isfinite(number)) out[n].values[half * 2 + e] += weight * number;
        }
      }
    }
  }
}

}  // namespace detail

// out (16, 8 TILES) += weights (16, 16) b, where b are the 16 rows from `first` on, and the columns from `column` on,
// of a StoredMatrix of T.
template <class T, int TILES, class Matrix>
__device__ __forceinline__ void add_product(FragmentC (&out)[TILES], const FragmentC (&weights)[2], const Matrix& b,
                                            int first, int column) {
  const auto a = pieces_of<kComputedPieces<T>, true>(weights[0], weights[1]);
#pragma unroll
  for (int n = 0; n < TILES / 2; ++n) multiply(out + 2 * n, a, pieces<T>(load_b(b, first, column + n * 16)));
}

// The same where a weight is 0 unless sees(row, depth). An infinity or NaN of b that a row does not see changes no bit
// there. All lanes of the warp call it. `sees` holds copies of what it needs: what a reference reaches leaves the
// registers.
template <class T, int TILES, class Matrix, class Sees>
__device__ __forceinline__ void add_masked_product(FragmentC (&out)[TILES], const FragmentC (&weights)[2],
                                                   const Matrix& b, int first, int column, const Sees& sees) {
  using E = typename detail::Stored<T>::type;
  unsigned zeros = 0;
#pragma unroll
  for (int n = 0; n < TILES / 2; ++n) {
    const FragmentPairB plane = load_b(b.at(0, first, column + n * 16), b.kStride);
#pragma unroll
    for (int w = 0; w < 4; ++w) add_zero_times<E>(plane.parts[w / 2].words[w % 2], zeros);
  }
  if (__all_sync(0xffffffffu, (zeros & 0x7fff7fffu) == 0)) return add_product<T>(out, weights, b, first, column);
  const auto a = pieces_of<kComputedPieces<T>, true>(weights[0], weights[1]);
#pragma unroll
  for (int n = 0; n < TILES / 2; ++n) {
    auto stored = load_b(b, first, column + n * 16);
    drop_not_finite<E>(stored);
    multiply(out + 2 * n, a, pieces<T>(stored));
  }
  FragmentC copy[TILES];  // only copies leave the registers
  const FragmentC weights_copy[2] = {weights[0], weights[1]};
#pragma unroll
  for (int n = 0; n < TILES; ++n) copy[n] = out[n];
  detail::add_seen_infinities<TILES>(copy, weights_copy, b, first, column, sees);
#pragma unroll
  for (int n = 0; n < TILES; ++n) out[n] = copy[n];
}

}  // namespace heddle::kernels::cuda
