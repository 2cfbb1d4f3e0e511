// Elementwise operations on (rows, cols) with row strides.                              kernels/dense/elementwise.h
//   activation   y (=);    d_x (=|+=)
//   glu          y (=);    d_a, d_b (=|+=)
//   accumulate, scale   to (=|+=)
// All are operations of map(), in map_vectors.h.
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/activation.h"
#include "kernels/dense/cuda/map_vectors.h"
#include "kernels/dense/elementwise.h"

namespace heddle::kernels::cuda {
namespace {

// A kernel takes as many registers as the most expensive of its activations needs. Those that fused kernels compute too
// are cheap, so they have kernels of their own.
template <bool is_fused, class Visit>
__device__ __forceinline__ void visit_one_of(Activation act, const Visit& visit) {
  if constexpr (is_fused) {
    visit_activation(act, visit);
  } else {
    visit_unfused_activation(act, visit);
  }
}

// Calls visit(T{}, is_fused) with the C++ type and, as std::bool_constant, the kernels that compute the activation.
template <class Visit>
void visit_type_and_kind(DType dtype, Activation act, const Visit& visit) {
  visit_floating(dtype, [&](auto type) {
    if (is_fused_activation(act)) {
      visit(type, std::true_type{});
    } else {
      visit(type, std::false_type{});
    }
  });
}

// in: x; out: y
template <class T, bool is_fused>
struct ActivationForward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[1], Vec<A, width> (&out)[1]) const {
    visit_one_of<is_fused>(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) out[0][j] = activate<decltype(chosen)::value, T>(in[0][j]);
    });
  }
};

// in: x, d_y; out: d_x
template <class T, bool is_fused>
struct ActivationBackward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[2], Vec<A, width> (&out)[1]) const {
    visit_one_of<is_fused>(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        constexpr Activation kAct = decltype(chosen)::value;
        out[0][j] = chain_rule<kAct>(in[1][j], activate_with_derivative<kAct, T>(in[0][j]).derivative);
      }
    });
  }
};

// in: a, b; out: y
template <class T, bool is_fused>
struct GluForward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[2], Vec<A, width> (&out)[1]) const {
    visit_one_of<is_fused>(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        constexpr Activation kAct = decltype(chosen)::value;
        out[0][j] = gated<kAct>(in[0][j], activate<kAct, T>(in[0][j]), in[1][j]);
      }
    });
  }
};

// in: a, b, d_y; out: d_a, d_b
template <class T, bool is_fused>
struct GluBackward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[3], Vec<A, width> (&out)[2]) const {
    visit_one_of<is_fused>(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        constexpr Activation kAct = decltype(chosen)::value;
        const auto gate = activate_with_derivative<kAct, T>(in[0][j]);
        out[0][j] = chain_rule<kAct>(in[2][j], gate.derivative, in[1][j]);
        out[1][j] = gated<kAct>(in[0][j], gate.value, in[2][j]);
      }
    });
  }
};

// out = scale * in; the product is computed in the wider of the two types.
struct Scale {
  double scale;
  template <class A, class B, int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[1], Vec<B, width> (&out)[1]) const {
    using Wide = std::conditional_t<(sizeof(A) > sizeof(B)), A, B>;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      out[0][j] = static_cast<B>(static_cast<Wide>(scale) * static_cast<Wide>(in[0][j]));
    }
  }
};

// out = in * factor / divisor
template <class A>
struct ScaleByQuotient {
  const A *factor, *divisor;  // divisor may be null: 1
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[1], Vec<A, width> (&out)[1]) const {
    const A divided_by = divisor != nullptr ? *divisor : A(1);
    const A quotient = divided_by != A(0) ? *factor / divided_by : A(0);
#pragma unroll
    for (int j = 0; j < width; ++j) out[0][j] = quotient * in[0][j];
  }
};

}  // namespace

void activation_forward(Context& context, const ActivationForwardArgs& args) {
  visit_type_and_kind(args.x.dtype, args.act, [&]<class T>(T, auto kind) {
    map<T, T, 1, 1>(context, {args.x}, {written(args.y)}, ActivationForward<T, kind()>{args.act});
  });
}

void activation_backward(Context& context, const ActivationBackwardArgs& args) {
  visit_type_and_kind(args.x.dtype, args.act, [&]<class T>(T, auto kind) {
    map<T, T, 2, 1>(context, {args.x, args.d_y}, {args.d_x}, ActivationBackward<T, kind()>{args.act});
  });
}

void glu_forward(Context& context, const GluForwardArgs& args) {
  visit_type_and_kind(args.a.dtype, args.act, [&]<class T>(T, auto kind) {
    map<T, T, 2, 1>(context, {args.a, args.b}, {written(args.y)}, GluForward<T, kind()>{args.act});
  });
}

void glu_backward(Context& context, const GluBackwardArgs& args) {
  visit_type_and_kind(args.a.dtype, args.act, [&]<class T>(T, auto kind) {
    map<T, T, 3, 2>(context, {args.a, args.b, args.d_y}, {args.d_a, args.d_b}, GluBackward<T, kind()>{args.act});
  });
}

void accumulate(Context& context, const AccumulateArgs& args) {
  visit_floating(args.from.dtype, [&](auto from) {
    visit_floating(args.to.view.dtype, [&](auto to) {
      map<decltype(from), decltype(to), 1, 1>(context, {args.from}, {args.to}, Scale{args.scale});
    });
  });
}

void scale(Context& context, const ScaleArgs& args) {
  visit_floating(args.to.view.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const A* divisor = args.divisor ? vector<const A>(args.divisor) : nullptr;
    map<A, T, 1, 1>(context, {args.from}, {args.to}, ScaleByQuotient<A>{vector<const A>(args.factor), divisor});
  });
}

}  // namespace heddle::kernels::cuda
