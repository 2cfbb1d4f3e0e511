// Matrix products and column sums on the CPU. A product is divided into blocks, one task each, of which a library
// computes the product on one thread (gemm_tile.h).                     docs/notes/dense.md#cpu-matrix-products
#include "kernels/dense/gemm.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/common/cpu/types.h"
#include "kernels/dense/cpu/bfloat16_product.h"
#include "kernels/dense/cpu/gemm_blocks.h"
#include "kernels/dense/cpu/gemm_tile.h"
#include "kernels/dense/cpu/vector_product.h"

namespace heddle::kernels::cpu {
namespace {

// Memory for the partial sums of a product whose sum is split. Its size is bounded, so it belongs to the context, as
// the workspace of a GPU library does.
template <class A>
class SplitSums {
 public:
  explicit SplitSums(Context& context) : sums_(new A[kMaxPartialSums]) {
    context.add_library_bytes(kMaxPartialSums * sizeof(A));
  }
  A* data() { return sums_.get(); }

 private:
  std::unique_ptr<A[]> sums_;
};

template <class T>
GemmOperand<T> operand(const RowsView& view, Transpose transpose) {
  return {static_cast<const T*>(view.data), view.row_stride, transpose};
}

// c (rows, cols) (=|+=) product + bias. The product is dense; bias may be null.
template <class A, class T, class C>
void finish_tile(const A* product, int64_t rows, int64_t cols, const T* bias, C* c, int64_t c_stride,
                 GradientMode mode) {
  Buffer<A> sums;
  for (int64_t i = 0; i < rows; ++i) {
    for_each_chunk(cols, [&](int64_t first, int64_t count) {
      const A* values = product + i * cols + first;
      if (bias != nullptr) {
        for (int64_t j = 0; j < count; ++j) sums[j] = values[j] + static_cast<A>(bias[first + j]);
        values = sums;
      }
      store_chunk(c + i * c_stride + first, values, count, mode);
    });
  }
}

// Terms of a sum that are added up in its own type at most, by a library or here; the sums of so many are added up in
// double, so that the error does not grow with k.
constexpr int64_t kLongestSum = 4096;

// total (=|+=) sums, and sums (=) what total then is or, with `more` to come, 0.
template <class A>
void add_to_total(A* sums, int64_t count, bool is_first, bool more, double* total) {
  for (int64_t i = 0; i < count; ++i) {
    total[i] = (is_first ? 0.0 : total[i]) + static_cast<double>(sums[i]);
    sums[i] = more ? A(0) : static_cast<A>(total[i]);
  }
}

// product (=) op(a) op(b), dense, for a depth of more than kLongestSum.
template <class T>
void multiply_long(const Block& size, const GemmOperand<T>& a, const GemmOperand<T>& b, T* product) {
  static thread_local std::vector<double> total;  // at most kLargestTile
  const int64_t count = size.rows * size.cols;
  total.resize(std::max<size_t>(total.size(), count));
  for (int64_t begin = 0; begin < size.depth; begin += kLongestSum) {
    const int64_t depth = std::min(kLongestSum, size.depth - begin);
    multiply(size.rows, size.cols, depth, a.at(0, begin), b.at(begin, 0), product, size.cols);
    add_to_total(product, count, begin == 0, begin + depth < size.depth, total.data());
  }
}

// One block of c (=|+=) op(a) op(b) + bias; bias may be null. This one is for float and double: the library reads a and
// b in place, and writes c in place when it is overwritten.
template <class T>
requires(sizeof(T) > 2) void compute_block(const Block& size, const GemmOperand<T>& a, const GemmOperand<T>& b,
                                           const T* bias, T* c, int64_t c_stride, GradientMode mode) {
  if (mode == GradientMode::overwrite && size.depth <= kLongestSum) {
    multiply(size.rows, size.cols, size.depth, a, b, c, c_stride);
    if (bias == nullptr) return;
    for (int64_t i = 0; i < size.rows; ++i) {
      T* row = c + i * c_stride;
      for (int64_t j = 0; j < size.cols; ++j) row[j] += bias[j];
    }
    return;
  }
  static thread_local std::vector<T> product;  // at most kLargestTile
  product.resize(std::max<size_t>(product.size(), size.rows * size.cols));
  if (size.depth > kLongestSum) {
    multiply_long(size, a, b, product.data());
  } else {
    multiply(size.rows, size.cols, size.depth, a, b, product.data(), size.cols);
  }
  finish_tile(product.data(), size.rows, size.cols, bias, c, c_stride, mode);
}

// Extents of the panels in which operands of 16 bits are converted to float. Tiles are summed in float and rounded
// once.
constexpr Block kPanel{64, 128, 256};

struct ConversionScratch {
  std::array<float, kPanel.rows * kPanel.depth> a;
  std::array<float, kPanel.depth * kPanel.cols> b;
  std::array<float, kPanel.rows * kPanel.cols> part, sums;
  std::array<double, kPanel.rows * kPanel.cols> total;
};

// Converts the first (rows, cols) of op(x) to float, in the order in which x lies in memory.
template <class T>
GemmOperand<float> convert_panel(const GemmOperand<T>& x, int64_t rows, int64_t cols, float* to) {
  if (x.transpose == Transpose::yes) std::swap(rows, cols);
  for (int64_t i = 0; i < rows; ++i) to_float(x.data + i * x.stride, to + i * cols, cols);
  return {to, cols, x.transpose};
}

// One block of c (=|+=) op(a) op(b) + bias for types of 16 bits; bias may be null.
template <class T, class C>
requires(sizeof(T) == 2) void compute_block(const Block& size, const GemmOperand<T>& a, const GemmOperand<T>& b,
                                            const T* bias, C* c, int64_t c_stride, GradientMode mode) {
  static thread_local ConversionScratch scratch;
  float* sums = scratch.sums.data();
  for (int64_t row = 0; row < size.rows; row += kPanel.rows) {
    const int64_t rows = std::min(kPanel.rows, size.rows - row);
    for (int64_t col = 0; col < size.cols; col += kPanel.cols) {
      const int64_t cols = std::min(kPanel.cols, size.cols - col);
      std::fill_n(sums, rows * cols, 0.0f);
      for (int64_t begin = 0; begin < size.depth; begin += kPanel.depth) {
        const int64_t depth = std::min(kPanel.depth, size.depth - begin);
        const auto left = convert_panel(a.at(row, begin), rows, depth, scratch.a.data());
        const auto right = convert_panel(b.at(begin, col), depth, cols, scratch.b.data());
        multiply(rows, cols, depth, left, right, scratch.part.data(), cols);
        for (int64_t i = 0; i < rows * cols; ++i) sums[i] += scratch.part[i];
        const int64_t end = begin + depth;
        if (size.depth > kLongestSum && (end % kLongestSum == 0 || end == size.depth)) {
          add_to_total(sums, rows * cols, end <= kLongestSum, end < size.depth, scratch.total.data());
        }
      }
      finish_tile(sums, rows, cols, bias != nullptr ? bias + col : nullptr, c + row * c_stride + col, c_stride, mode);
    }
  }
}

// One block of c (=|+=) op(a) op(b) + bias by the instructions of the CPU for bfloat16. Returns false, with c as it
// was, where oneDNN refuses.
template <class C>
bool compute_block_of_bfloat16(Bfloat16Products& products, const Block& size, const GemmOperand<bfloat16>& a,
                               const GemmOperand<bfloat16>& b, const bfloat16* bias, C* c, int64_t c_stride,
                               GradientMode mode) {
  // What is packed of a and b for more terms leaves the nearest caches.
  const int64_t most_depth = size.depth <= 768 ? 768 : 512;
  if (size.depth == 0) return false;
  if (bias == nullptr && (c_stride == size.cols || size.rows == 1) && size.depth <= most_depth) {
    return products.multiply(size, a, b, c, mode);
  }
  static thread_local std::vector<float> sums;
  static thread_local std::vector<double> total;
  const int64_t count = size.rows * size.cols;
  sums.resize(std::max<size_t>(sums.size(), count));
  const bool is_long = size.depth > kLongestSum;
  if (is_long) total.resize(std::max<size_t>(total.size(), count));
  for (int64_t begin = 0; begin < size.depth; begin += most_depth) {
    const int64_t end = std::min(begin + most_depth, size.depth);
    const auto part = begin == 0 ? GradientMode::overwrite : GradientMode::accumulate;
    if (!products.multiply({size.rows, size.cols, end - begin}, a.at(0, begin), b.at(begin, 0), sums.data(), part)) {
      return false;
    }
    if (is_long && (end % kLongestSum == 0 || end == size.depth)) {
      add_to_total(sums.data(), count, end <= kLongestSum, end < size.depth, total.data());
    }
  }
  finish_tile(sums.data(), size.rows, size.cols, bias, c, c_stride, mode);
  return true;
}

// c (=|+=) bias + the partial sums of all splits, added in their order. Those of one split are a dense matrix of c's
// shape, and the splits follow each other in memory.
template <class C, class A, class T>
void add_splits(const Context& context, const A* partials, int64_t splits, const T* bias, const RowsDestination& to) {
  const RowsView& c = to.view;
  constexpr int64_t together = 2048;  // sums, of several rows where these are short
  parallel_ranges(context, c.rows, std::max<int64_t>(1, together / c.cols), [&](int64_t begin, int64_t end) {
    Buffer<double> total;
    Buffer<A> sums;
    for_each_chunk((end - begin) * c.cols, [&](int64_t first, int64_t count) {
      const A* part = partials + begin * c.cols + first;
      for (int64_t j = 0; j < count; ++j) {
        total[j] = bias != nullptr ? static_cast<double>(static_cast<A>(bias[(first + j) % c.cols])) : 0.0;
      }
      for (int64_t split = 0; split < splits; ++split, part += c.rows * c.cols) {
        for (int64_t j = 0; j < count; ++j) total[j] += static_cast<double>(part[j]);
      }
      for (int64_t j = 0; j < count; ++j) sums[j] = static_cast<A>(total[j]);
      for (int64_t j = 0, size = 0; j < count; j += size) {
        const int64_t row = begin + (first + j) / c.cols, col = (first + j) % c.cols;
        size = std::min(c.cols - col, count - j);
        store_chunk(kernels::row<C>(c, row) + col, sums.data() + j, size, to.mode);
      }
    });
  });
}

// The product where c is a row or a column. Returns false where c is neither or the library is as good: sums of few
// terms.
template <class T, class C>
bool multiply_vector(const Context& context, const GemmArgs& args, int64_t terms) {
  constexpr int64_t kFewTerms = 256;
  const RowsView& c = args.c.view;
  if ((c.rows > 1 && c.cols > 1) || terms < kFewTerms) return false;
  VectorProductArgs<T, C> product{.size = c.rows, .terms = terms, .mode = args.c.mode};
  const auto other = [](Transpose transpose) { return transpose == Transpose::no ? Transpose::yes : Transpose::no; };
  // The vector is a column of op(x), or a row of its transpose.
  const auto vector_of = [](const RowsView& x, bool is_row) {
    return StridedVector<const T>{static_cast<const T*>(x.data), is_row ? 1 : x.row_stride};
  };
  if (c.cols == 1) {
    product.matrix = operand<T>(args.a, args.transpose_a);
    product.weights = vector_of(args.b, args.transpose_b == Transpose::yes);
    product.bias = {vector<const T>(args.bias), 0};
    product.to = {row<C>(c, 0), c.row_stride};
  } else {
    product.size = c.cols;
    product.matrix = operand<T>(args.b, other(args.transpose_b));
    product.weights = vector_of(args.a, args.transpose_a == Transpose::no);
    product.bias = {vector<const T>(args.bias), 1};
    product.to = {row<C>(c, 0), 1};
  }
  vector_product(context, product);
  return true;
}

// The products by instructions of the CPU for T, or null where it has none.
template <class T>
Bfloat16Products* instructions_for([[maybe_unused]] Context& context) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    auto& products = context.resource<Bfloat16Products>();
    if (products.available()) return &products;
  }
  return nullptr;
}

template <class T, class C>
void gemm_as(Context& context, const GemmArgs& args) {
  using A = accumulate_t<T>;
  const RowsView& c = args.c.view;
  const int64_t m = c.rows, n = c.cols, k = args.transpose_a == Transpose::no ? args.a.cols : args.a.rows;
  if (multiply_vector<T, C>(context, args, k)) return;
  const auto a = operand<T>(args.a, args.transpose_a);
  const auto b = operand<T>(args.b, args.transpose_b);
  const T* bias = vector<const T>(args.bias);
  Bfloat16Products* const products = instructions_for<T>(context);
  const Block block = products != nullptr ? choose_bfloat16_blocks(m, n, k) : choose_blocks(m, n, k);
  const int64_t down = ceil_div(m, block.rows), across = ceil_div(n, block.cols);
  const int64_t splits = k > 0 ? ceil_div(k, block.depth) : 1;
  A* partials = splits > 1 ? context.resource<SplitSums<A>>().data() : nullptr;
  parallel_for(context, splits * down * across, [&](int64_t index) {
    const int64_t split = index / (down * across), tile = index % (down * across);
    const int64_t row = tile / across * block.rows, col = tile % across * block.cols, begin = split * block.depth;
    const Block size{std::min(block.rows, m - row), std::min(block.cols, n - col), std::min(block.depth, k - begin)};
    const auto left = a.at(row, begin);
    const auto right = b.at(begin, col);
    const auto compute = [&](const T* block_bias, auto* to, int64_t stride, GradientMode mode) {
      if constexpr (std::is_same_v<T, bfloat16>) {
        if (products != nullptr &&
            compute_block_of_bfloat16(*products, size, left, right, block_bias, to, stride, mode)) {
          return;
        }
      }
      compute_block(size, left, right, block_bias, to, stride, mode);
    };
    if (splits > 1) {
      compute(nullptr, partials + split * m * n + row * n + col, n, GradientMode::overwrite);
    } else {
      compute(bias != nullptr ? bias + col : nullptr, kernels::row<C>(c, row) + col, c.row_stride, args.c.mode);
    }
  });
  if (splits > 1) add_splits<C>(context, partials, splits, bias, args.c);
}

}  // namespace

void gemm(Context& context, const GemmArgs& args) {
  if (args.c.view.rows == 0 || args.c.view.cols == 0) return;
  visit_floating(args.a.dtype, [&]<class T>(T) {
    visit_same_or_accumulate<T>(args.c.view.dtype, args.a.dtype, [&]<class C>(C) { gemm_as<T, C>(context, args); });
  });
}

void column_sum(Context& context, const ColumnSumArgs& args) {
  visit_floating(args.x.dtype, [&]<class T>(T) {
    visit_same_or_accumulate<T>(args.sums.view.dtype, args.x.dtype, [&]<class S>(S) {
      vector_product<T, S>(context, {.size = args.x.cols,
                                     .terms = args.x.rows,
                                     .matrix = operand<T>(args.x, Transpose::yes),
                                     .to = {vector<S>(args.sums.view), 1},
                                     .mode = args.sums.mode});
    });
  });
}

}  // namespace heddle::kernels::cpu
