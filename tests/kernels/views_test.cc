// What kernels see of tensors whose dimensions do not follow one another in memory.
#include "kernels/common/views.h"

#include <gtest/gtest.h>

#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/tensor/tensor.h"

namespace heddle::kernels {
namespace {

TEST(Views, HeadsOfAPartOfASequence) {
  Context context;
  const Tensor whole = Tensor::empty(context, {3, 11, 4, 8}, DType::float32);
  const HeadsView part = heads_view(whole.slice(1, 2, 7));
  EXPECT_EQ(part.data, whole.data<float>() + 2 * 32);
  EXPECT_EQ(part.batch, 3);
  EXPECT_EQ(part.length, 5);
  EXPECT_EQ(part.heads, 4);
  EXPECT_EQ(part.dim, 8);
  EXPECT_EQ(part.batch_stride, 11 * 32);
  EXPECT_EQ(part.length_stride, 32);
  EXPECT_EQ(part.head_stride, 8);
}

// Without a dimension of heads there is one.
TEST(Views, HeadsOfRankThree) {
  Context context;
  const Tensor whole = Tensor::empty(context, {3, 11, 16}, DType::bfloat16);
  const HeadsView part = heads_view(whole.slice(1, 2, 7).slice(2, 8, 16));
  EXPECT_EQ(part.batch, 3);
  EXPECT_EQ(part.length, 5);
  EXPECT_EQ(part.heads, 1);
  EXPECT_EQ(part.dim, 8);
  EXPECT_EQ(part.batch_stride, 11 * 16);
  EXPECT_EQ(part.length_stride, 16);
}

TEST(Views, HeadsBeforeTheSequence) {
  Context context;
  const Tensor whole = Tensor::empty(context, {3, 4, 11, 8}, DType::float32);
  const HeadsView part = heads_view(whole.slice(2, 0, 9), Layout::bhnd);
  EXPECT_EQ(part.length, 9);
  EXPECT_EQ(part.heads, 4);
  EXPECT_EQ(part.batch_stride, 4 * 11 * 8);
  EXPECT_EQ(part.head_stride, 11 * 8);
  EXPECT_EQ(part.length_stride, 8);
}

TEST(Views, RowsOfColumns) {
  Context context;
  const Tensor whole = Tensor::empty(context, {6, 5, 10}, DType::float64);
  const RowsView part = rows_view(whole.slice(2, 3, 7));
  EXPECT_EQ(part.rows, 30);
  EXPECT_EQ(part.cols, 4);
  EXPECT_EQ(part.row_stride, 10);
}

TEST(Views, VectorsHaveNoGaps) {
  Context context;
  const Tensor whole = Tensor::empty(context, {4, 6}, DType::float32);
  EXPECT_EQ(vector_view(whole).size, 24);
  EXPECT_THROW(vector_view(whole.slice(1, 0, 3)), Error);
}

}  // namespace
}  // namespace heddle::kernels
