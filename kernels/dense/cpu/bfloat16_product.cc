#include "kernels/dense/cpu/bfloat16_product.h"

#if defined(HEDDLE_ONEDNN)
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
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

// The code of one shape, ready to be called: to make what oneDNN's call needs takes a fifth of the time of a product.
// All matrices are dense: for others oneDNN has slower code, with other sums.
class Product {
 public:
  Product(const dnnl::engine& engine, const ProductShape& shape) : stream_(engine) {
    const memory::desc a = dense(shape.size.rows, shape.size.depth, shape.a);
    const memory::desc b = dense(shape.size.depth, shape.size.cols, shape.b);
    const memory::desc c({shape.size.rows, shape.size.cols}, shape.c, memory::format_tag::ab);
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
    // Other code than this one does not keep the order of its sums, or takes a thousand times as long.
    if (std::string_view(description.impl_info_str()).starts_with("brg")) code_ = dnnl::matmul(description);
    const memory::desc scratch = description.scratchpad_desc();
    matrices_ = {memory(a, engine, nullptr), memory(b, engine, nullptr), memory(c, engine, nullptr),
                 memory(scratch, engine, nullptr)};
    scratch_bytes_ = static_cast<int64_t>(scratch.get_size());
  }

  // Whether oneDNN has code of use for the shape.
  bool exists() const { return static_cast<bool>(code_); }
  int64_t scratch_bytes() const { return scratch_bytes_; }

  void compute(const bfloat16* a, const bfloat16* b, void* c, void* scratch) {
    constexpr std::array<int, 4> names{DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    const std::array<void*, 4> data{const_cast<bfloat16*>(a), const_cast<bfloat16*>(b), c, scratch};
    std::array<dnnl_exec_arg_t, 4> arguments;
    for (size_t i = 0; i < names.size(); ++i) {
      matrices_[i].set_data_handle(data[i]);
      arguments[i] = {names[i], matrices_[i].get()};
    }
    dnnl::error::wrap_c_api(dnnl_primitive_execute(code_.get(), stream_.get(), names.size(), arguments.data()),
                            "no product of bfloat16");
  }

 private:
  dnnl::stream stream_;
  dnnl::matmul code_;
  std::array<memory, 4> matrices_;  // a, b, c and scratch memory
  int64_t scratch_bytes_;
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
  // A product of a shape that no other thread uses, made where there is none. oneDNN itself keeps the code of shapes.
  std::unique_ptr<Product> take(const ProductShape& shape) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = idle_.find(shape);
      if (found != idle_.end()) return std::move(idle_.extract(found).mapped());
    }
    return std::make_unique<Product>(engine_, shape);
  }
  void give_back(const ProductShape& shape, std::unique_ptr<Product> product) {
    const std::lock_guard lock(mutex_);
    if (idle_.size() >= kMost) idle_.clear();
    idle_.emplace(shape, std::move(product));
  }

 private:
  static constexpr size_t kMost = 1024;
  const dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::mutex mutex_;
  std::multimap<ProductShape, std::unique_ptr<Product>> idle_;  // guarded by mutex_
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
    const ProductShape shape{size, a.transpose, b.transpose, type_of_c, mode};
    auto product = generated_->take(shape);
    const bool exists = product->exists();
    if (exists) {
      product->compute(make_dense(a, size.rows, size.depth, copy_of_a), make_dense(b, size.depth, size.cols, copy_of_b),
                       c, scratch_of(scratch, product->scratch_bytes()));
    }
    generated_->give_back(shape, std::move(product));
    return exists;
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) throw std::bad_alloc();  // other code would give other last bits
    return false;
  }
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
