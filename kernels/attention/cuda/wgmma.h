// Asynchronous matrix products of a warpgroup, four consecutive warps (wgmma, sm_90a), their operands in shared memory
// and the order between threads and hardware.
//   C (64, N) = [C +] A (64, 16) B (16, N), N = 32, 48, 64, 80, 96 or 128
// in float, A and B of a 16-bit type. Warp w of the group holds rows 16 w to 16 w + 15 of C and of an A in registers,
// in the fragments of mma.h. Only kernels whose body stands within #ifdef HEDDLE_WGMMA may call what is here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/mma.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HEDDLE_WGMMA 1
#endif

namespace heddle::kernels::cuda {

// --- Order ---

// Registers and shared memory that the thread wrote come before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Makes one group of the products issued since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING groups of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving accesses of a C past this point: it does not know that products run asynchronously.
template <int TILES>
__device__ __forceinline__ void hold(FragmentC (&c)[TILES]) {
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(c[n].values[e])::"memory");
  }
}

// What this thread wrote to shared memory comes before what wgmma and bulk copies read or write there, once a barrier
// has followed.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Named barriers, 1 to 15, for `threads` threads; 0 is that of __syncthreads().
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Sets how many registers each thread of a warpgroup has; all its warps call it.
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// A barrier in shared memory (mbarrier). A phase ends when `arrivals` threads have arrived and the announced bytes have
// been copied; phases have the parities 0, 1, 0, ...
class SharedBarrier {
 public:
  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  // After init() and before the other threads are let go.
  static __device__ __forceinline__ void fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  __device__ __forceinline__ void arrive_and_expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }
  // Waits for the end of a phase of this parity; the phase before it counts as ended with parity 1 at the start.
  __device__ __forceinline__ void wait(unsigned parity) {
    asm volatile(
        "{\n\t.reg .pred done;\n\t"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@done bra ended;\n\t"
        "bra again;\n\t"
        "ended:\n\t}" ::"r"(address()),
        "r"(parity)
        : "memory");
  }
  __device__ __forceinline__ uint32_t address() const { return shared_address(this); }

 private:
  uint64_t state_;
};

// --- Operands in shared memory ---

// A matrix (ROWS, COLS) of 16-bit numbers as panels (ROWS, 64): rows of 128 bytes, in whose units of 16 bytes the unit
// u of row r is at u ^ (r % 8). That is the hardware's swizzle of 128 bytes. ROWS is a multiple of 8, COLS of 64.
template <class T, int ROWS, int COLS>
struct alignas(1024) SwizzledMatrix {
  static constexpr int kRows = ROWS, kCols = COLS, kBytes = ROWS * COLS * 2, kPanelBytes = ROWS * 128;
  T data[ROWS * COLS];

  // Elements col to col + 7 of a row; col is a multiple of 8.
  __device__ __forceinline__ T* unit(int row, int col) {
    return data + col / 64 * (ROWS * 64) + row * 64 + ((col % 64 / 8) ^ (row % 8)) * 8;
  }

  // Descriptors for wgmma; row is a multiple of 8. `by_rows`: rows are those of A, or columns of B, and columns of the
  // matrix are depths, from `col` on (a multiple of 16). `by_depth`: rows are depths, columns those of B or rows of A,
  // from `col` on (a multiple of 64).
  __device__ __forceinline__ uint64_t by_rows(int row, int col) const {
    return descriptor(col / 64 * kPanelBytes + row * 128 + col % 64 * 2, 16);
  }
  __device__ __forceinline__ uint64_t by_depth(int row, int col) const {
    return descriptor(col / 64 * kPanelBytes + row * 128, kPanelBytes);
  }

 private:
  __device__ __forceinline__ uint64_t descriptor(int offset, int leading_bytes) const {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroupOf8Rows = uint64_t{1024 / 16} << 32;
    const uint32_t address = shared_address(data) + offset;
    return kSwizzle128 | kGroupOf8Rows | static_cast<uint64_t>(leading_bytes / 16) << 16 | (address & 0x3ffff) >> 4;
  }
};

// Stores four 8 x 8 matrices of 16-bit numbers, each lane giving the address of one row (stmatrix).
template <bool TRANSPOSE = false>
__device__ __forceinline__ void store_matrices(uint32_t address, const unsigned (&words)[4]) {
  if constexpr (TRANSPOSE) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
}

// --- Products ---

// How an operand in shared memory is stored, as in SwizzledMatrix.
enum class Stored : int { by_rows = 0, by_depth = 1 };

// `use` is "+f" for fragments that are read and written, "=f" for those that are only written.
#define HEDDLE_FRAGMENTS_1(use, c, n) \
  use((c)[n].values[0]), use((c)[n].values[1]), use((c)[n].values[2]), use((c)[n].values[3])
#define HEDDLE_FRAGMENTS_4(use, c, n)                                                                  \
  HEDDLE_FRAGMENTS_1(use, c, n), HEDDLE_FRAGMENTS_1(use, c, n + 1), HEDDLE_FRAGMENTS_1(use, c, n + 2), \
      HEDDLE_FRAGMENTS_1(use, c, n + 3)
#define HEDDLE_FRAGMENTS_2(use, c, n) HEDDLE_FRAGMENTS_1(use, c, n), HEDDLE_FRAGMENTS_1(use, c, n + 1)
#define HEDDLE_FRAGMENTS_6(use, c) HEDDLE_FRAGMENTS_4(use, c, 0), HEDDLE_FRAGMENTS_2(use, c, 4)
#define HEDDLE_FRAGMENTS_8(use, c) HEDDLE_FRAGMENTS_4(use, c, 0), HEDDLE_FRAGMENTS_4(use, c, 4)
#define HEDDLE_FRAGMENTS_10(use, c) HEDDLE_FRAGMENTS_8(use, c), HEDDLE_FRAGMENTS_2(use, c, 8)
#define HEDDLE_FRAGMENTS_12(use, c) HEDDLE_FRAGMENTS_8(use, c), HEDDLE_FRAGMENTS_4(use, c, 8)
#define HEDDLE_FRAGMENTS_16(use, c) HEDDLE_FRAGMENTS_12(use, c), HEDDLE_FRAGMENTS_4(use, c, 12)
#define HEDDLE_REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define HEDDLE_REGISTERS_24 HEDDLE_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define HEDDLE_REGISTERS_32 HEDDLE_REGISTERS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define HEDDLE_REGISTERS_40 HEDDLE_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define HEDDLE_REGISTERS_48 HEDDLE_REGISTERS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define HEDDLE_REGISTERS_64 \
  HEDDLE_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// The instruction for each N and type. The numbers after the registers of C are those of the operands that follow them.
#define HEDDLE_WGMMA_SHARED(n, type, registers, fragments, a_, b_, add_, store_a_, store_b_)                     \
  asm volatile("{\n\t.reg .pred sum;\n\tsetp.ne.b32 sum, %" #add_ ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32." #type "." #type " {" registers "}, %" #a_ ", %" #b_ ", sum, 1, 1, %" #store_a_         \
               ", %" #store_b_ ";\n\t}"                                                                          \
               : fragments                                                                                       \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(STORED_A)),                    \
                 "n"(static_cast<int>(STORED_B)))
#define HEDDLE_WGMMA_REGISTERS(n, type, registers, fragments, a0_, a1_, a2_, a3_, b_, add_, store_b_)             \
  asm volatile("{\n\t.reg .pred sum;\n\tsetp.ne.b32 sum, %" #add_ ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n  \
               "k16.f32." #type "." #type " {" registers "}, {%" #a0_ ", %" #a1_ ", %" #a2_ ", %" #a3_ "}, %" #b_ \
               ", sum, 1, 1, %" #store_b_ ";\n\t}"                                                                \
               : fragments                                                                                        \
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "l"(b),                      \
                 "r"(static_cast<int>(add)), "n"(static_cast<int>(STORED_B)))

// c (=) a b, or c (+=) a b where `add`: starts the product. A and B are given by descriptors.
template <class T, Stored STORED_A, Stored STORED_B, int TILES>
__device__ __forceinline__ void wgmma(FragmentC (&c)[TILES], uint64_t a, uint64_t b, bool add) {
  constexpr bool kBrain = std::is_same_v<T, bf16>;
  static_assert(sizeof(T) == 2 && (TILES == 8 || TILES == 16 || (TILES == 4 && kBrain)));
  if constexpr (TILES == 4) {
    HEDDLE_WGMMA_SHARED(32, bf16, HEDDLE_REGISTERS_16, HEDDLE_FRAGMENTS_4("+f", c, 0), 16, 17, 18, 19, 20);
  } else if constexpr (TILES == 8 && kBrain) {
    HEDDLE_WGMMA_SHARED(64, bf16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("+f", c), 32, 33, 34, 35, 36);
  } else if constexpr (TILES == 8) {
    HEDDLE_WGMMA_SHARED(64, f16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("+f", c), 32, 33, 34, 35, 36);
  } else if constexpr (kBrain) {
    HEDDLE_WGMMA_SHARED(128, bf16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("+f", c), 64, 65, 66, 67, 68);
  } else {
    HEDDLE_WGMMA_SHARED(128, f16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("+f", c), 64, 65, 66, 67, 68);
  }
}

// c (=) a b: starts the product, whatever c was, so that its registers are free until then.
template <class T, Stored STORED_A, Stored STORED_B, int TILES>
__device__ __forceinline__ void wgmma(FragmentC (&c)[TILES], uint64_t a, uint64_t b) {
  static_assert(sizeof(T) == 2 && (TILES == 8 || TILES == 16));
  constexpr bool kBrain = std::is_same_v<T, bf16>, add = false;
  if constexpr (TILES == 8 && kBrain) {
    HEDDLE_WGMMA_SHARED(64, bf16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("=f", c), 32, 33, 34, 35, 36);
  } else if constexpr (TILES == 8) {
    HEDDLE_WGMMA_SHARED(64, f16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("=f", c), 32, 33, 34, 35, 36);
  } else if constexpr (kBrain) {
    HEDDLE_WGMMA_SHARED(128, bf16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("=f", c), 64, 65, 66, 67, 68);
  } else {
    HEDDLE_WGMMA_SHARED(128, f16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("=f", c), 64, 65, 66, 67, 68);
  }
}

// The same with A in registers.
template <class T, Stored STORED_B, int TILES>
__device__ __forceinline__ void wgmma(FragmentC (&c)[TILES], const FragmentA& a, uint64_t b, bool add) {
  constexpr bool kBrain = std::is_same_v<T, bf16>;
  static_assert(sizeof(T) == 2 &&
                (TILES == 8 || TILES == 16 || ((TILES == 6 || TILES == 10 || TILES == 12) && kBrain)));
  if constexpr (TILES == 6) {
    HEDDLE_WGMMA_REGISTERS(48, bf16, HEDDLE_REGISTERS_24, HEDDLE_FRAGMENTS_6("+f", c), 24, 25, 26, 27, 28, 29, 30);
  } else if constexpr (TILES == 10) {
    HEDDLE_WGMMA_REGISTERS(80, bf16, HEDDLE_REGISTERS_40, HEDDLE_FRAGMENTS_10("+f", c), 40, 41, 42, 43, 44, 45, 46);
  } else if constexpr (TILES == 12) {
    HEDDLE_WGMMA_REGISTERS(96, bf16, HEDDLE_REGISTERS_48, HEDDLE_FRAGMENTS_12("+f", c), 48, 49, 50, 51, 52, 53, 54);
  } else if constexpr (TILES == 8 && kBrain) {
    HEDDLE_WGMMA_REGISTERS(64, bf16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("+f", c), 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (TILES == 8) {
    HEDDLE_WGMMA_REGISTERS(64, f16, HEDDLE_REGISTERS_32, HEDDLE_FRAGMENTS_8("+f", c), 32, 33, 34, 35, 36, 37, 38);
  } else if constexpr (kBrain) {
    HEDDLE_WGMMA_REGISTERS(128, bf16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("+f", c), 64, 65, 66, 67, 68, 69, 70);
  } else {
    HEDDLE_WGMMA_REGISTERS(128, f16, HEDDLE_REGISTERS_64, HEDDLE_FRAGMENTS_16("+f", c), 64, 65, 66, 67, 68, 69, 70);
  }
}

#undef HEDDLE_WGMMA_REGISTERS
#undef HEDDLE_WGMMA_SHARED
#undef HEDDLE_REGISTERS_64
#undef HEDDLE_REGISTERS_48
#undef HEDDLE_REGISTERS_40
#undef HEDDLE_REGISTERS_32
#undef HEDDLE_REGISTERS_24
#undef HEDDLE_REGISTERS_16
#undef HEDDLE_FRAGMENTS_16
#undef HEDDLE_FRAGMENTS_12
#undef HEDDLE_FRAGMENTS_10
#undef HEDDLE_FRAGMENTS_8
#undef HEDDLE_FRAGMENTS_6
#undef HEDDLE_FRAGMENTS_4
#undef HEDDLE_FRAGMENTS_2
#undef HEDDLE_FRAGMENTS_1

}  // namespace heddle::kernels::cuda
