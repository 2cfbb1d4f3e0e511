// Strided views against a brute-force model: a list of positions in memory, in row-major order of the view.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/element_types.h"
#include "core/tensor/random.h"
#include "core/tensor/tensor.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

// Element i of a fresh tensor has value i, so the values of a view are the positions it shows.
Tensor counted(Context& context, const Shape& shape) {
  Tensor tensor = Tensor::empty(context, shape, DType::float32);
  Values values(static_cast<size_t>(numel(shape)));
  std::iota(values.begin(), values.end(), 0.0);
  write_values(context, tensor, values);
  return tensor;
}

// A tensor as a list of values with a shape, and views as new lists.
struct Model {
  Shape shape;
  Values values;

  // The view whose element at index `to` is the element of this one at index from(to).
  template <class From>
  Model map(const Shape& to_shape, const From& from) const {
    Model result{to_shape, {}};
    std::vector<int64_t> index(static_cast<size_t>(to_shape.rank()), 0);
    const Shape strides = contiguous_strides(shape);
    for (int64_t n = 0; n < numel(to_shape); ++n) {
      int64_t rest = n;
      for (int dim = to_shape.rank() - 1; dim >= 0; --dim) {
        index[static_cast<size_t>(dim)] = rest % to_shape[dim];
        rest /= to_shape[dim];
      }
      const std::vector<int64_t> source = from(index);
      int64_t position = 0;
      for (int dim = 0; dim < shape.rank(); ++dim) position += source[static_cast<size_t>(dim)] * strides[dim];
      result.values.push_back(values[static_cast<size_t>(position)]);
    }
    return result;
  }
};

class ViewTest : public ::testing::Test {
 protected:
  void expect_same(const Tensor& tensor, const Model& model) {
    EXPECT_EQ(tensor.shape(), model.shape);
    EXPECT_EQ(read_values(context_, tensor), model.values);
  }

  Context context_;
};

TEST_F(ViewTest, RandomChainsEqualTheModel) {
  Random random(1, RandomStream::test);
  const auto below = [&](int64_t bound) {
    return static_cast<int64_t>(random.next_below(static_cast<uint64_t>(bound)));
  };
  int reshaped = 0, refused = 0;
  for (int chain = 0; chain < 2000; ++chain) {
    Shape shape;
    for (int64_t rank = 1 + below(4); rank > 0; --rank) shape.append(1 + below(4));
    Tensor tensor = counted(context_, shape);
    Model model{shape, read_values(context_, tensor)};
    for (int64_t steps = 1 + below(5); steps > 0; --steps) {
      const Shape from = tensor.shape();
      if (from.rank() == 0) break;
      const int dim = static_cast<int>(below(from.rank()));
      switch (below(5)) {
        case 0: {
          const int64_t begin = below(from[dim]), end = begin + below(from[dim] - begin + 1);
          Shape to = from;
          to[dim] = end - begin;
          tensor = tensor.slice(dim - (below(2) == 0 ? from.rank() : 0), begin, end);
          model = model.map(to, [&](std::vector<int64_t> index) {
            index[static_cast<size_t>(dim)] += begin;
            return index;
          });
          break;
        }
        case 1: {
          const int64_t chosen = below(from[dim]);
          Shape to = from.part(0, dim);
          for (int later = dim + 1; later < from.rank(); ++later) to.append(from[later]);
          tensor = tensor.select(dim, chosen);
          model = model.map(to, [&](std::vector<int64_t> index) {
            index.insert(index.begin() + dim, chosen);
            return index;
          });
          break;
        }
        case 2: {
          const int other = static_cast<int>(below(from.rank()));
          Shape to = from;
          std::swap(to[dim], to[other]);
          tensor = tensor.transpose(dim, other);
          model = model.map(to, [&](std::vector<int64_t> index) {
            std::swap(index[static_cast<size_t>(dim)], index[static_cast<size_t>(other)]);
            return index;
          });
          break;
        }
        case 3: {
          const int64_t first = below(from[dim] + 1);
          const std::vector<Tensor> parts = tensor.split(dim, {first, from[dim] - first});
          EXPECT_EQ(parts[0].numel() + parts[1].numel(), tensor.numel());
          Shape to = from;
          to[dim] = from[dim] - first;
          tensor = parts[1];
          model = model.map(to, [&](std::vector<int64_t> index) {
            index[static_cast<size_t>(dim)] += first;
            return index;
          });
          break;
        }
        default: {
          // Any factorization of the number of elements, with ones thrown in.
          Shape to;
          int64_t rest = tensor.numel();
          while (rest > 1 && to.rank() < 4) {
            int64_t factor = 1 + below(rest);
            while (rest % factor != 0) --factor;
            to.append(factor);
            rest /= factor;
          }
          to.append(rest);
          if (below(3) == 0) to.append(1);
          Tensor view;
          try {
            view = tensor.reshape(to);
          } catch (const Error&) {
            // Right to refuse only where no strides exist: a dense copy of the same shape always can be seen so.
            EXPECT_FALSE(tensor.is_contiguous());
            ++refused;
            break;
          }
          ++reshaped;
          tensor = view;
          model.shape = to;
        }
      }
      if (tensor.numel() == 0) break;
      expect_same(tensor, model);
    }
  }
  EXPECT_GT(reshaped, 500);
  EXPECT_GT(refused, 20);
}

// Whether a view of given positions exists as strides, decided by trying: position = sum of index * stride.
bool strides_exist(const Shape& shape, const Values& positions) {
  int64_t dense = 1;
  std::vector<int64_t> measured;
  for (int dim = shape.rank() - 1; dim >= 0; --dim) {
    measured.insert(measured.begin(),
                    shape[dim] > 1 ? static_cast<int64_t>(positions[static_cast<size_t>(dense)] - positions[0]) : 0);
    dense *= shape[dim];
  }
  for (int64_t n = 0; n < numel(shape); ++n) {
    int64_t rest = n, position = static_cast<int64_t>(positions[0]);
    for (int dim = shape.rank() - 1; dim >= 0; --dim) {
      position += rest % shape[dim] * measured[static_cast<size_t>(dim)];
      rest /= shape[dim];
    }
    if (position != static_cast<int64_t>(positions[static_cast<size_t>(n)])) return false;
  }
  return true;
}

// All reshapes of all small sliced and transposed tensors: a view is given exactly where one exists.
TEST_F(ViewTest, ReshapeGivesAViewExactlyWhereOneExists) {
  const std::vector<Shape> targets{{12},      {2, 6},    {6, 2},  {3, 4},  {4, 3},    {2, 2, 3},
                                   {3, 2, 2}, {2, 3, 2}, {1, 12}, {12, 1}, {2, 1, 6}, {1, 3, 1, 4, 1}};
  std::vector<Tensor> sources;
  for (const Shape& shape : {Shape{3, 4}, Shape{3, 8}, Shape{6, 4}, Shape{2, 3, 2}, Shape{2, 6, 2}, Shape{2, 3, 5},
                             Shape{4, 3, 1}, Shape{3, 1, 4}, Shape{3, 2, 4}, Shape{1, 3, 8}}) {
    const size_t first = sources.size();
    const Tensor whole = counted(context_, shape);
    sources.push_back(whole);
    for (int dim = 0; dim < whole.rank(); ++dim) {
      for (int64_t size = 1; size < whole.size(dim); ++size) {
        sources.push_back(whole.slice(dim, whole.size(dim) - size, whole.size(dim)));
      }
    }
    for (size_t i = first, count = sources.size(); i < count; ++i) {
      for (int a = 0; a < sources[i].rank(); ++a) {
        for (int b = a + 1; b < sources[i].rank(); ++b) sources.push_back(sources[i].transpose(a, b));
      }
    }
  }
  int views = 0, refusals = 0;
  for (const Tensor& source : sources) {
    if (source.numel() != 12) continue;
    const Values positions = read_values(context_, source);
    for (const Shape& target : targets) {
      const bool exists = strides_exist(target, positions);
      (exists ? views : refusals)++;
      try {
        EXPECT_EQ(read_values(context_, source.reshape(target)), positions);
        EXPECT_TRUE(exists);
      } catch (const Error& error) {
        EXPECT_FALSE(exists) << error.what();
      }
    }
  }
  EXPECT_GT(views, 100);
  EXPECT_GT(refusals, 100);
}

TEST_F(ViewTest, ATensorCanBeMadeInTheOrderOfAnother) {
  const Tensor like = counted(context_, {2, 5, 3, 4}).slice(1, 1, 4).transpose(0, 3);
  const Tensor tensor = Tensor::empty_in_order(context_, like.shape(), like.strides(), DType::float64);
  EXPECT_EQ(tensor.shape(), (Shape{4, 3, 3, 2}));
  EXPECT_EQ(tensor.strides(), (Shape{1, 12, 4, 36}));
  EXPECT_TRUE(tensor.transpose(0, 3).is_contiguous());
  EXPECT_TRUE(Tensor::empty_in_order(context_, {1, 3, 1}, {1, 1, 1}, DType::float32).is_contiguous());
}

TEST_F(ViewTest, ViewsShareStorage) {
  const Tensor tensor = counted(context_, {4, 6});
  const Tensor view = tensor.slice(1, 2, 5).transpose(0, 1);
  EXPECT_TRUE(view.shares_storage_with(tensor));
  write_values(context_, view, Values(12, -1.0));
  EXPECT_EQ(read_values(context_, tensor.select(0, 3)), (Values{18, 19, -1, -1, -1, 23}));
  EXPECT_FALSE(tensor.is_unique());
}

TEST_F(ViewTest, AViewKeepsTheMemoryAlive) {
  Tensor tail;
  {
    const Tensor tensor = counted(context_, {4});
    tail = tensor.slice(0, 2, 4);
  }
  EXPECT_TRUE(tail.is_unique());
  EXPECT_EQ(read_values(context_, tail), (Values{2, 3}));
  EXPECT_EQ(context_.allocator().stats().allocated.current, 512u);
  tail = {};
  EXPECT_EQ(context_.allocator().stats().allocated.current, 0u);
}

TEST_F(ViewTest, ContiguityMindsOnesAndZeros) {
  const Tensor tensor = counted(context_, {4, 6});
  EXPECT_TRUE(tensor.is_contiguous());
  EXPECT_TRUE(tensor.slice(0, 1, 3).is_contiguous());
  EXPECT_FALSE(tensor.slice(1, 0, 3).is_contiguous());
  EXPECT_TRUE(tensor.slice(1, 0, 3).slice(0, 2, 3).is_contiguous()) << "one row";
  EXPECT_FALSE(tensor.slice(1, 2, 3).is_contiguous()) << "a column";
  EXPECT_TRUE(tensor.slice(1, 2, 3).slice(0, 0, 1).is_contiguous()) << "one element";
  EXPECT_TRUE(tensor.transpose(0, 1).slice(0, 2, 2).is_contiguous()) << "nothing";
  EXPECT_TRUE(tensor.slice(1, 2, 2).transpose(0, 1).is_contiguous()) << "nothing";
  EXPECT_EQ(tensor.slice(1, 2, 2).transpose(0, 1).reshape({3, 0, 7}).shape(), (Shape{3, 0, 7}));
  EXPECT_TRUE(counted(context_, {}).is_contiguous());
}

TEST_F(ViewTest, ReshapeCompletesOneExtent) {
  const Tensor tensor = counted(context_, {4, 6});
  EXPECT_EQ(tensor.reshape({-1}).shape(), (Shape{24}));
  EXPECT_EQ(tensor.reshape({2, -1, 3}).shape(), (Shape{2, 4, 3}));
  EXPECT_EQ(counted(context_, {1}).reshape({}).rank(), 0);
  EXPECT_EQ(counted(context_, {}).reshape({1, 1}).shape(), (Shape{1, 1}));
  EXPECT_EQ(counted(context_, {0, 3}).reshape({-1, 3}).shape(), (Shape{0, 3}));
  EXPECT_EQ(counted(context_, {0, 3}).reshape({3, -1}).shape(), (Shape{3, 0}));
}

class ViewErrorTest : public ViewTest {
 protected:
  template <class Run>
  static void expect_error(const std::string& text, const Run& run) {
    try {
      run();
      ADD_FAILURE() << "no error, expected: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), text);
    }
  }
};

TEST_F(ViewErrorTest, NameTheShapes) {
  const Tensor tensor = counted(context_, {4, 6});
  expect_error("slice [3, 7) of dimension 1 of a tensor of shape (4, 6)", [&] { tensor.slice(-1, 3, 7); });
  expect_error("slice [-1, 2) of dimension 0 of a tensor of shape (4, 6)", [&] { tensor.slice(0, -1, 2); });
  expect_error("slice [3, 2) of dimension 0 of a tensor of shape (4, 6)", [&] { tensor.slice(0, 3, 2); });
  expect_error("no dimension 2 in a tensor of shape (4, 6)", [&] { tensor.slice(2, 0, 1); });
  expect_error("no dimension -3 in a tensor of shape (4, 6)", [&] { tensor.transpose(0, -3); });
  expect_error("slice [4, 5) of dimension 0 of a tensor of shape (4, 6)", [&] { tensor.select(0, 4); });
  expect_error("cannot reshape (4, 6) to (5, 5): the numbers of elements differ", [&] { tensor.reshape({5, 5}); });
  expect_error("cannot reshape (4, 6) to (5, -1): the numbers of elements differ", [&] { tensor.reshape({5, -1}); });
  expect_error("cannot reshape (4, 6) to (-1, -1): only one extent may be -1", [&] { tensor.reshape({-1, -1}); });
  expect_error("cannot reshape (0, 3) to (0, -1): any extent would do for -1 beside an extent of 0", [&] {
    counted(context_, {0, 3}).reshape({0, -1});
  });
  expect_error("cannot reshape (4, 6) to (0, -1): any extent would do for -1 beside an extent of 0", [&] {
    tensor.reshape({0, -1});
  });
  expect_error("cannot reshape (4, 6) to (-2, -12): negative extent", [&] { tensor.reshape({-2, -12}); });
  expect_error("cannot view (6, 4) with strides (1, 6) as (24) without a copy",
               [&] { tensor.transpose(0, 1).reshape({24}); });
  expect_error("split of dimension 1 of a tensor of shape (4, 6): the parts add up to 5", [&] {
    tensor.split(1, {2, 3});
  });
  expect_error("slice [2, 7) of dimension 1 of a tensor of shape (4, 6)", [&] { tensor.split(1, {2, 5}); });
}

TEST_F(ViewErrorTest, ImpossibleTensors) {
  expect_error("negative extent in shape (2, -1)", [&] { Tensor::empty(context_, {2, -1}, DType::float32); });
  const int64_t huge = int64_t{1} << 40;
  expect_error("shape (1099511627776, 1099511627776) is too large: it has more elements than an int64 counts", [&] {
    Tensor::empty(context_, {huge, huge}, DType::float32);
  });
  expect_error("shape (4611686018427387904) is too large: it has more bytes than an int64 counts",
               [&] { Tensor::empty(context_, {int64_t{1} << 62}, DType::float32); });
  EXPECT_THROW(Tensor::empty(context_, {huge, huge, 0}, DType::float32), Error);
  EXPECT_EQ(Tensor::empty(context_, {0, huge}, DType::float32).numel(), 0);
  Context limited(Device{}, {.allocator = {.limit_bytes = 1 << 20}});
  EXPECT_THROW(Tensor::empty(limited, {huge, 1 << 20}, DType::float32), OutOfMemory);
}

// Meta has no memory that could be used up, but its bytes are counted.
TEST_F(ViewErrorTest, MoreTensorsThanCanBeCountedAreAnErrorOnMeta) {
  Context meta(Device{DeviceType::meta});
  const Shape large = {(int64_t{1} << 62) - (int64_t{1} << 30)};
  const Tensor first = Tensor::empty(meta, large, DType::float16), second = Tensor::empty(meta, large, DType::float16);
  EXPECT_THROW(Tensor::empty(meta, large, DType::float16), OutOfMemory);
  EXPECT_EQ(meta.allocator().stats().allocated.current, 2 * 2 * static_cast<size_t>(numel(large)));
}

TEST_F(ViewErrorTest, UndefinedTensorsAndWrongTypes) {
  expect_error("data of an undefined tensor", [] { Tensor().raw(); });
  expect_error("device of an undefined tensor", [] { Tensor().device(); });
  const Tensor tensor = counted(context_, {4});
  EXPECT_EQ(tensor.data<float>()[3], 3.0f);
  expect_error("data of a float32 tensor asked for as bfloat16", [&] { tensor.data<bfloat16>(); });
}

}  // namespace
}  // namespace heddle
