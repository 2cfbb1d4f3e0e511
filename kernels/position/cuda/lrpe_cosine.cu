// Position encoding by cosine and sine, of tokens on a grid.                            docs/layers.md#lrpe-cosine
//   forward   y = (a cos phi, a sin phi), a = act(x)              writes (=) y
//   backward  d_a = d_y[cos] cos phi + d_y[sin] sin phi;  d_x = d_a act'(x), for a softmax a (d_a - <a, d_a>)
//                                                                 writes (=) or adds to (+=) d_x, d_theta

#include "kernels/position/cuda/lrpe_launch.h"
#include "kernels/position/lrpe_cosine.h"

namespace heddle::kernels::cuda {

void lrpe_cosine_forward(Context& context, const LrpeCosineForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    launch_lrpe_forward<CosineSine<T, vector_width<T>>, CosineSine<T, 1>>(context, args);
  });
}

void lrpe_cosine_backward(Context& context, const LrpeCosineBackwardArgs& args) {
  visit_floating(args.d_y.dtype, [&](auto type) {
    using T = decltype(type);
    launch_lrpe_backward<CosineSine<T, vector_width<T>>, CosineSine<T, 1>>(context, args);
  });
}

}  // namespace heddle::kernels::cuda
