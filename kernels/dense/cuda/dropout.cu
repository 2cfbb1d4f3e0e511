// Dropout, as an operation of map() in map_vectors.h.                                          kernels/dense/dropout.h
//   y (=|+=)
// Philox gives the words of four elements at once. A vector of four elements or more begins where such a block does,
// unless the mask begins elsewhere: then each element draws its own block.
#include <cstdint>
#include <type_traits>

#include "core/tensor/random.h"
#include "kernels/dense/cuda/map_vectors.h"
#include "kernels/dense/dropout.h"

namespace heddle::kernels::cuda {
namespace {

// The word at `place`, chosen without an address: words that are indexed by a variable would lie in memory.
__device__ __forceinline__ uint32_t word_at(const PhiloxBlock& block, unsigned place) {
  const uint32_t low = place % 2 == 0 ? block.words[0] : block.words[1];
  const uint32_t high = place % 2 == 0 ? block.words[2] : block.words[3];
  return place < 2 ? low : high;
}

// in: x; out: y. is_aligned: first_element is a multiple of 4.
template <class A, bool is_aligned>
struct Dropout {
  DropoutRule given;
  int64_t first_element;
  const int64_t* seed_on_device;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t first, const Vec<A, width> (&in)[1],
                                             Vec<A, width> (&out)[1]) const {
    DropoutRule rule = given;
    if (seed_on_device != nullptr) rule.seed = static_cast<uint64_t>(*seed_on_device);
    const A scale = static_cast<A>(rule.scale);
    PhiloxBlock block;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const int64_t place = first_element + first + j;
      if (!is_aligned || j % 4 == 0) block = rule.words(place / 4);
      const uint32_t word = word_at(block, is_aligned && width % 4 == 0 ? j % 4 : static_cast<unsigned>(place) % 4);
      out[0][j] = word < rule.dropped_below ? A(0) : rounded_product(in[0][j], scale);
    }
  }
};

}  // namespace

void dropout(Context& context, const DropoutArgs& args) {
  visit_floating(args.x.dtype, [&]<class T>(T) {
    const DropoutRule rule(args.p, args.seed);
    const auto run = [&](auto is_aligned) {
      map<T, T, 1, 1>(
          context, {args.x}, {args.y},
          Dropout<accumulate_t<T>, decltype(is_aligned)::value>{rule, args.first_element, args.seed_on_device});
    };
    args.first_element % 4 == 0 ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace heddle::kernels::cuda
