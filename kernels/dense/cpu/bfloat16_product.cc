#include "kernels/dense/cpu/bfloat16_product.h"

#if defined(HEDDLE_ONEDNN)
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/dense/cpu/one_thread.h"
#endif

namespace heddle::kernels::cpu {

#if defined(HEDDLE_ONEDNN)
namespace {

using dnnl::memory;

struct ProductShape {
  Block size;
  Transpose a, b;
  memory::data_type c;
  GradientMode mode;
  auto key() const { return std::tie(size.rows, size.cols, size.depth, a, b, c, mode); }
  bool operator<(const ProductShape& other) const { return key() < other.key(); }
};

// A dense (rows, cols) matrix in memory, or the transpose of a dense (cols, rows) one.
memory::desc dense(int64_t rows, int64_t cols, Transpose transpose) {
  const auto order = transpose == Transpose::no ? memory::format_tag::ab : memory::format_tag::ba;
  return {{rows, cols}, memory::data_type::bf16, order};
}

// The code of one shape. All matrices are dense: for others oneDNN has slower code, with other sums.
struct Product {
  Product(const dnnl::engine& engine, const ProductShape& shape)
      : a(dense(shape.size.rows, shape.size.depth, shape.a)),
        b(dense(shape.size.depth, shape.size.cols, shape.b)),
        c({shape.size.rows, shape.size.cols}, shape.c, memory::format_tag::ab) {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (shape.mode == GradientMode::accumulate) {
      dnnl::post_ops operations;
      operations.append_sum();
      attributes.set_post_ops(operations);
    }
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine, a, b, c, attributes);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, engine);
#endif
    scratch = description.scratchpad_desc();
    // Other code than this one does not keep the order of its sums, or takes a thousand times as long.
    if (std::string_view(description.impl_info_str()).starts_with("brg")) code = dnnl::matmul(description);
  }

  memory::desc a, b, c, scratch;
  dnnl::matmul code;  // empty where oneDNN has none that is of use
};

// Memory that a thread keeps for the next product.
template <class T>
T* scratch_of(std::vector<T>& memory, int64_t size) {
  memory.resize(std::max(memory.size(), static_cast<size_t>(size)));
  return memory.data();
}

// The elements of op(x), (rows, cols), as a dense matrix of the same transpose: in place or copied.
const bfloat16* make_dense(const GemmOperand<bfloat16>& x, int64_t rows, int64_t cols, std::vector<bfloat16>& copy) {
  if (x.transpose == Transpose::yes) std::swap(rows, cols);
  if (x.stride == cols || rows == 1) return x.data;
  bfloat16* to = scratch_of(copy, rows * cols);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(x.data + row * x.stride, cols, to + row * cols);
  return to;
}

}  // namespace

class Bfloat16Products::Generated {
 public:
  // The product of a shape, made when it is asked for first. It lives as long as this object or whoever holds it.
  std::shared_ptr<const Product> find(const ProductShape& shape) {
    const std::lock_guard lock(mutex_);
    if (products_.size() >= kMost && products_.count(shape) == 0) products_.clear();
    std::shared_ptr<const Product>& product = products_[shape];
    if (product == nullptr) product = std::make_shared<Product>(engine_, shape);
    return product;
  }
  const dnnl::engine& engine() const { return engine_; }

 private:
  static constexpr size_t kMost = 1024;  // shapes, of some 50 KiB each
  const dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::mutex mutex_;
  std::map<ProductShape, std::shared_ptr<const Product>> products_;  // guarded by mutex_
};

Bfloat16Products::Bfloat16Products(Context&) {
  const auto bits = [](dnnl::cpu_isa isa) { return static_cast<unsigned>(isa); };
  const unsigned needed = bits(dnnl::cpu_isa::avx512_core_bf16);
  if ((bits(dnnl::get_effective_cpu_isa()) & needed) == needed) generated_ = std::make_unique<Generated>();
}

template <class C>
bool Bfloat16Products::multiply(const Block& size, const GemmOperand<bfloat16>& a, const GemmOperand<bfloat16>& b, C* c,
                                GradientMode mode) {
  static thread_local std::vector<bfloat16> copy_of_a, copy_of_b;
  static thread_local std::vector<std::byte> scratch;
  constexpr auto type_of_c = std::is_same_v<C, float> ? memory::data_type::f32 : memory::data_type::bf16;
  const OneThread one_thread;
  try {
    const auto product = generated_->find({size, a.transpose, b.transpose, type_of_c, mode});
    if (!product->code) return false;
    const auto matrix = [&](const memory::desc& layout, const void* data) {
      return memory(layout, generated_->engine(), const_cast<void*>(data));
    };
    const auto scratch_bytes = static_cast<int64_t>(product->scratch.get_size());
    dnnl::stream stream(generated_->engine());
    product->code.execute(stream,
                          {{DNNL_ARG_SRC, matrix(product->a, make_dense(a, size.rows, size.depth, copy_of_a))},
                           {DNNL_ARG_WEIGHTS, matrix(product->b, make_dense(b, size.depth, size.cols, copy_of_b))},
                           {DNNL_ARG_DST, matrix(product->c, c)},
                           {DNNL_ARG_SCRATCHPAD, matrix(product->scratch, scratch_of(scratch, scratch_bytes))}});
  } catch (const dnnl::error&) {
    return false;
  }
  return true;
}
#else
class Bfloat16Products::Generated {};

Bfloat16Products::Bfloat16Products(Context&) {}

template <class C>
bool Bfloat16Products::multiply(const Block&, const GemmOperand<bfloat16>&, const GemmOperand<bfloat16>&, C*,
                                GradientMode) {
  return false;
}
#endif

Bfloat16Products::~Bfloat16Products() = default;

template bool Bfloat16Products::multiply(const Block&, const GemmOperand<bfloat16>&, const GemmOperand<bfloat16>&,
                                         bfloat16*, GradientMode);
template bool Bfloat16Products::multiply(const Block&, const GemmOperand<bfloat16>&, const GemmOperand<bfloat16>&,
                                         float*, GradientMode);

}  // namespace heddle::kernels::cpu
