// Position encoding by rotation.                                                        docs/layers.md#lrpe-rotate
//   forward   y = R(phi) act(x)                                   writes (=) y
//   backward  d_a = R(-phi) d_y;  d_x = d_a act'(x), for a softmax a (d_a - <a, d_a>)
//                                                                 writes (=) or adds to (+=) d_x, d_theta

#include <type_traits>

#include "kernels/position/cuda/lrpe_launch.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels::cuda {
namespace {

// Calls launch(Vectors, Single) with the encodings of a storage type and a pairing.
template <class Launch>
void with_encoding(DType dtype, Pairing pairing, const Launch& launch) {
  visit_floating(dtype, [&](auto type) {
    using T = decltype(type);
    if (pairing == Pairing::interleaved) {
      launch(std::type_identity<Rotation<T, vector_width<T>, true>>{}, std::type_identity<Rotation<T, 1, true>>{});
    } else {
      launch(std::type_identity<Rotation<T, vector_width<T>, false>>{}, std::type_identity<Rotation<T, 1, false>>{});
    }
  });
}

}  // namespace

void lrpe_rotate_forward(Context& context, const LrpeRotateForwardArgs& args) {
  with_encoding(args.x.dtype, args.options.pairing, [&](auto vectors, auto single) {
    launch_lrpe_forward<typename decltype(vectors)::type, typename decltype(single)::type>(context, args);
  });
}

void lrpe_rotate_backward(Context& context, const LrpeRotateBackwardArgs& args) {
  with_encoding(args.d_y.dtype, args.options.pairing, [&](auto vectors, auto single) {
    launch_lrpe_backward<typename decltype(vectors)::type, typename decltype(single)::type>(context, args);
  });
}

}  // namespace heddle::kernels::cuda
