// The scan for any dtype and size, without tensor cores: the chunk and the state lie in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan.h"

namespace heddle::kernels::cuda {
namespace detail {

inline constexpr int kAnyThreads = 128;

// Shared memory of a block; pointers into one array whose size scan_shared_bytes() bounds.
template <class A>
struct AnyShared {
  A *query, *key;      // (chunk, keys)
  A *value, *partner;  // (chunk, kScanTile)
  A *scores, *pairs;   // (chunk, chunk); pairs are P of the gradient of log decays
  A* state;            // (keys, kScanTile)
  A *in, *to, *rows;   // (chunk): weights of the state in a row of out, of a row in the state; sums of rows
  DecaySum<A>* sums;   // (chunk)
  A* threads;          // (kAnyThreads)

  __device__ __forceinline__ AnyShared(unsigned char* raw, int chunk, int keys) {
    A* at = reinterpret_cast<A*>(raw);
    const auto take = [&](int size) {
      A* const part = at;
      at += size;
      return part;
    };
    threads = take(kAnyThreads);
    sums = reinterpret_cast<DecaySum<A>*>(take(2 * chunk));
    query = take(chunk * keys);
    key = take(chunk * keys);
    value = take(chunk * kScanTile);
    partner = take(chunk * kScanTile);
    scores = take(chunk * chunk);
    pairs = take(chunk * chunk);
    in = take(chunk);
    to = take(chunk);
    rows = take(chunk);
    state = take(keys * kScanTile);
  }
};

// The sum of a thread's number over all threads, in a fixed order; all get it.
template <class A>
__device__ __forceinline__ A sum_over_threads(A number, A* threads) {
  threads[threadIdx.x] = number;
  __syncthreads();
  A sum = A(0);
  for (int i = 0; i < kAnyThreads; ++i) sum += threads[i];
  __syncthreads();
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kAnyThreads)
    scan_any(const __grid_constant__ ScanArgs<accumulate_t<T>> args, int chunk_size) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char raw[];
  const int keys = static_cast<int>(args.query.dim);
  const AnyShared<A> shared(raw, chunk_size, keys);
  const int64_t head_index = blockIdx.x % args.query.heads, batch = blockIdx.x / args.query.heads;
  const int64_t state_head = args.state_head(batch, head_index);
  const ScanSpan<A> span = args.span();
  const int64_t first_value = int64_t{blockIdx.y} * kScanTile;
  const int tile = static_cast<int>(min(int64_t{kScanTile}, args.value.dim - first_value));
  const bool from_end = args.from_end, wants_decay = args.token_gradients != nullptr;
  const bool keeps_history = wants_decay && !from_end;
  const int64_t chunks = parts_of(args.query.length, chunk_size);
  const auto history = [&](const ScanChunk& chunk, int d, int c) -> A& {
    return args
        .history[((state_head * chunks + chunk.begin / chunk_size) * keys + d) * args.value.dim + first_value + c];
  };
  const auto each = [&](int rows, int cols, const auto& visit) {
    for (int e = threadIdx.x; e < rows * cols; e += kAnyThreads) visit(e / cols, e % cols);
  };

  each(keys, kScanTile, [&](int d, int c) {
    shared.state[d * kScanTile + c] =
        span.state_in.data != nullptr && c < tile ? span.state_in.at(state_head, d, first_value + c) : A(0);
  });
  const HeadDecay<A> head_decay(args, state_head);
  ChunkWalk<A> walk(args, span, state_head, chunk_size);
  for (ScanChunk chunk = walk.next(); chunk.rows > 0; chunk = walk.next()) {
    const int rows = chunk.rows;
    const auto row_of = [&](const HeadsView& view, int r, int64_t head_of_view) {
      return head<const T>(view, batch, args.token(chunk, r), head_of_view);
    };
    const int64_t shared_head = head_index / args.group;
    __syncthreads();
    each(rows, keys, [&](int r, int d) {
      shared.query[r * keys + d] = widen(row_of(args.query, r, head_index)[d]);
      shared.key[r * keys + d] = widen(row_of(args.key, r, shared_head)[d]);
    });
    each(rows, kScanTile, [&](int r, int c) {
      const int64_t at = first_value + c;
      shared.value[r * kScanTile + c] = c < tile ? widen(row_of(args.value, r, shared_head)[at]) : A(0);
      if (wants_decay) {
        shared.partner[r * kScanTile + c] = c < tile ? widen(row_of(args.partner, r, head_index)[at]) : A(0);
      }
    });
    each(rows, 1, [&](int r, int) {
      const RowDecay<A> decay(head_decay, chunk, args.token(chunk, r));
      shared.sums[r] = from_end ? negated(decay.own) : decay.own;
      shared.in[r] = from_end ? decay.to_last() : decay.from_begin();
      shared.to[r] = args.inner * (from_end ? decay.from_begin() : decay.to_last());
    });
    const double whole = RowDecay<A>(head_decay, chunk, chunk.begin).whole();
    if (!from_end && chunk.starts_anew) {
      each(keys, kScanTile, [&](int d, int c) { shared.state[d * kScanTile + c] = A(0); });
    }
    __syncthreads();
    if (keeps_history && !chunk.starts_anew) {
      each(keys, tile, [&](int d, int c) { history(chunk, d, c) = shared.state[d * kScanTile + c]; });
    }
    each(args.is_for_span_states ? 0 : rows, rows, [&](int i, int j) {
      A sum = A(0), pair = A(0);
      if (i >= j) {
        for (int d = 0; d < keys; ++d) sum += shared.query[i * keys + d] * shared.key[j * keys + d];
        sum *= args.inner * decay_power(difference(shared.sums[i], shared.sums[j]));
        if (keeps_history) {
          for (int c = 0; c < tile; ++c) pair += shared.partner[i * kScanTile + c] * shared.value[j * kScanTile + c];
          pair *= args.outer * sum;
        }
      }
      shared.scores[i * chunk_size + j] = sum;
      if (keeps_history) shared.pairs[i * chunk_size + j] = pair;
    });
    __syncthreads();
    // The part of out that comes from the state: in a row of `rows`, its product with the row of `partner`.
    if (wants_decay) {
      each(rows, 1, [&](int r, int) {
        A product = A(0);
        for (int c = 0; c < tile; ++c) {
          A sum = A(0);
          for (int d = 0; d < keys; ++d) sum += shared.query[r * keys + d] * shared.state[d * kScanTile + c];
          product += sum * shared.partner[r * kScanTile + c];
        }
        shared.rows[r] = !from_end && chunk.starts_anew ? A(0) : product * shared.in[r] * args.outer;
      });
    }
    each(args.is_for_span_states ? 0 : rows, tile, [&](int i, int c) {
      A sum = A(0);
      for (int d = 0; d < keys; ++d) sum += shared.query[i * keys + d] * shared.state[d * kScanTile + c];
      sum *= shared.in[i];
      for (int j = 0; j <= i; ++j) sum += shared.scores[i * chunk_size + j] * shared.value[j * kScanTile + c];
      sum *= args.outer;
      const auto put = [&](auto* to) {
        using Out = std::remove_pointer_t<decltype(to)>;
        if (args.out.mode == GradientMode::accumulate) sum += widen(*to);
        *to = narrow<Out>(sum);
      };
      if (!args.out) return;
      const int64_t token = args.token(chunk, i);
      if (args.out.view.dtype == args.query.dtype) {
        put(head<T>(args.out.view, batch, token, head_index) + first_value + c);
      } else {
        put(head<A>(args.out.view, batch, token, head_index) + first_value + c);
      }
    });
    __syncthreads();
    if (wants_decay) {
      A crossing = A(0);  // exp(L_last) <S, dS>
      if (from_end && !chunk.starts_anew) {
        each(keys, tile, [&](int d, int c) { crossing += history(chunk, d, c) * shared.state[d * kScanTile + c]; });
        crossing = sum_over_threads(crossing * static_cast<A>(whole), shared.threads);
      }
      each(rows, 1, [&](int r, int) {
        A sum = crossing;
        if (from_end) {
          for (int j = r + 1; j < rows; ++j) sum += shared.rows[j];
        } else {
          for (int i = r; i < rows; ++i) {
            sum += shared.rows[i];
            for (int j = 0; j < r; ++j) sum += shared.pairs[i * chunk_size + j];
          }
        }
        A& to = args.token_gradients[(int64_t{blockIdx.y} * args.query.batch * args.heads + state_head) *
                                         args.query.length +
                                     args.token(chunk, r)];
        to = from_end ? to + sum : sum;
      });
      __syncthreads();
    }
    each(keys, kScanTile, [&](int d, int c) {
      A& state = shared.state[d * kScanTile + c];
      if (from_end && chunk.starts_anew) {
        state = A(0);
        return;
      }
      A sum = A(0);
      for (int j = 0; j < rows; ++j) sum += shared.to[j] * shared.key[j * keys + d] * shared.value[j * kScanTile + c];
      state = static_cast<A>(whole * static_cast<double>(state) + static_cast<double>(sum));
    });
  }
  if (span.state_out.data == nullptr) return;
  __syncthreads();
  each(keys, tile,
       [&](int d, int c) { put_state(args, span, state_head, d, first_value + c, shared.state[d * kScanTile + c]); });
}

}  // namespace detail

template <class T>
int64_t scan_without_tensor_cores(Context& context, const ScanArgs<accumulate_t<T>>& args) {
  using A = accumulate_t<T>;
  const int64_t keys = args.query.dim;
  const auto bytes = [&](int chunk) { return scan_shared_bytes(chunk, keys, sizeof(A)); };
  const auto available = static_cast<int64_t>(context.properties().shared_bytes_per_block);
  int chunk = scan_chunk(args.query.dtype, keys, args.value.dim);
  while (bytes(chunk) > available && chunk > 1 && args.token_gradients == nullptr) chunk /= 2;
  check(bytes(chunk) <= available, "[linear_attention] head dim {} is too large for the shared memory of this GPU",
        keys);
  const int64_t tiles = parts_of(args.value.dim, kScanTile);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads), static_cast<unsigned>(tiles),
                  span_blocks(args));
  HEDDLE_LAUNCH(context, detail::scan_any<T>, grid, detail::kAnyThreads, static_cast<size_t>(bytes(chunk)), args,
                chunk);
  return tiles;
}

}  // namespace heddle::kernels::cuda
