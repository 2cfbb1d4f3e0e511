// Linear attention over sequences that a GPU cuts into spans, and of heads for which it has kernels of their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "layers/ops/linear_attention.h"
#include "tests/layers/linear_attention_numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::linear_attention_long_test {
namespace {

using Sizes = LinearAttentionSizes;

class LinearAttentionLong : public LinearAttentionNumbers {
 protected:
  // Weak decays, so that much of a state outlasts a span.
  void draw_weak_decays(Tensors& x) {
    for (double& value : x["log_decay"]) value = -4e-3 * random_.next_uniform();
  }
  // A tenth of them, so that a chunk has weak and strong ones.
  void strengthen_some_decays(Tensors& x) {
    for (double& value : x["log_decay"]) value *= random_.next_below(10) == 0 ? 20000.0 : 1.0;
  }
  // Three documents, one of which begins within a window and one at its border.
  static void set_documents(const Sizes& sizes, Tensors& x) {
    for (int64_t i = 0; i < sizes.batch * sizes.length; ++i) {
      const int64_t t = i % sizes.length;
      x["segments"][i] = t < sizes.length / 2 + 5 ? 0.0 : t < sizes.length * 3 / 4 / 64 * 64 ? 1.0 : 2.0;
    }
  }
  // The norm of the error over the norm of `exact`.
  static double error(const std::vector<double>& found, const std::vector<double>& exact) {
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error += std::pow(found[i] - exact[i], 2);
      norm += std::pow(exact[i], 2);
    }
    return std::sqrt(error / norm);
  }
  double error_of_rounding(const std::vector<double>& exact, DType dtype) {
    const Tensor rounded = Tensor::empty(context(), {static_cast<int64_t>(exact.size())}, dtype);
    write_values(context(), rounded, exact);
    return error(read_values(context(), rounded), exact);
  }
};

TEST(LinearAttentionSpans, AreAsManyAsFillAGpu) {
  const auto count = [](int64_t heads, int64_t length) {
    return kernels::scan_spans(DType::bfloat16, heads, length, 128, 128, 128).count;
  };
  EXPECT_EQ(count(16, 32768), 8);
  EXPECT_EQ(count(16, 512), 1);
  EXPECT_EQ(count(67, 32768), 1);
  EXPECT_EQ(count(128, 32768), 1);
  EXPECT_EQ(count(0, 32768), 1);
  EXPECT_EQ(kernels::scan_spans(DType::bfloat16, 32, 32768, 256, 256, 256).count, 2);  // two multiprocessors a head
  EXPECT_EQ(kernels::scan_spans(DType::bfloat16, 32, 32768, 128, 256, 128).count, 4);  // blocks share 128 features
  EXPECT_EQ(kernels::scan_spans(DType::float16, 32, 32768, 128, 256, 128).count, 2);
  EXPECT_EQ(kernels::scan_spans(DType::float32, 64, 4096, 256, 256, 256).count, 1);
  EXPECT_EQ(kernels::scan_spans(DType::float32, 64, 4096, 64, 256, 64).count, 4);   // blocks share 64 features
  EXPECT_EQ(kernels::scan_spans(DType::float32, 64, 4096, 16, 16, 16).count, 32);   // warps share a multiprocessor
  EXPECT_EQ(kernels::scan_spans(DType::float32, 64, 4096, 16, 128, 128).count, 8);  // four to a block
  EXPECT_EQ(kernels::scan_spans(DType::float32, 64, 4096, 16, 256, 256).count, 4);  // two blocks of four
  EXPECT_LE(kernels::scan_spans(DType::float32, 1, 1 << 20, 16, 16, 16).count, kernels::kMostSpans);
  EXPECT_EQ(count(1, 0), 1);
  for (const int64_t heads : {1, 2, 16, 60}) {
    for (int64_t length = 1; length < 5000; length += 37) {
      const auto spans = kernels::scan_spans(DType::bfloat16, heads, length, 64, 64, 64);
      ASSERT_LT((spans.count - 1) * spans.length, length) << "an empty span";
      ASSERT_GE(spans.count * spans.length, length);
      ASSERT_EQ(spans.length % kernels::kWindow, 0);
    }
  }
}

TEST_P(LinearAttentionLong, IsThatOfTheRecurrence) {
  for (const Sizes& sizes : {Sizes{1, 1100, 2, 1, 5, 3}, Sizes{1, 200, 1, 1, 64, 64}, Sizes{1, 100, 1, 1, 128, 40}}) {
    ASSERT_EQ(kernels::scan_spans(DType::float64, sizes.heads, sizes.length, sizes.dim, sizes.dim, sizes.dim).count > 2,
              sizes.length > 1000);
    for (const bool documents : {false, true}) {
      Tensors x = draw(sizes);
      draw_weak_decays(x);
      if (documents) set_documents(sizes, x);
      const Tensors exact = run(sizes, x, DType::float64), wanted = recurrence(sizes, x);
      expect_near(exact, wanted, 1e-11);
      const Tensors single = run(sizes, x, DType::float32);
      expect_near(single, wanted, sizes.dim < 10 ? 5e-4 : 5e-3);  // gradients of decays are sums whose terms cancel
      if (HasFatalFailure()) return;
    }
  }
}

// In 16 bits the error is hardly more than that of rounding the exact result, with one decay a head or a token, with
// documents, and where gradients are added to.
TEST_P(LinearAttentionLong, TheErrorIsThatOfOneRounding) {
  for (const Sizes& sizes : {Sizes{1, 1100, 2, 1, 64, 64}, Sizes{1, 1100, 2, 2, 128, 128}, Sizes{2, 200, 2, 2, 128, 72},
                             Sizes{1, 300, 1, 1, 40, 128}, Sizes{1, 90, 2, 2, 128, 256}, Sizes{1, 64, 1, 1, 8, 8},
                             Sizes{1, 1100, 1, 1, 136, 40}, Sizes{1, 300, 2, 1, 256, 256},
                             Sizes{2, 150, 1, 1, 160, 200}, Sizes{1, 90, 1, 1, 192, 256}}) {
    for (const Decay decay : {Decay::constant, Decay::data}) {
      for (const bool documents : {false, true}) {
        for (const DType dtype : {DType::bfloat16, DType::float16}) {
          if (!on_gpu() && sizes.length > 200) continue;  // the CPU has one kernel for all sizes
          Tensors x = draw(sizes);
          draw_weak_decays(x);
          if (decay == Decay::constant) x["log_decay"].assign(static_cast<size_t>(sizes.heads), -0.003);
          if (documents) set_documents(sizes, x);
          const Tensors found = run(sizes, x, dtype, decay, DecayGradient::unwanted);
          const Tensors exact = run(sizes, x, DType::float64, decay, DecayGradient::unwanted);
          const std::string where = std::string(name(dtype)) + (documents ? " with documents, D = " : ", D = ") +
                                    std::to_string(sizes.dim) + ", Dv = " + std::to_string(sizes.value_dim);
          for (const char* what : {"o", "d_q", "d_k", "d_v"}) {
            EXPECT_LE(error(found.at(what), exact.at(what)), 1.25 * error_of_rounding(exact.at(what), dtype))
                << what << ", " << where;
          }
          for (const char* what : {"final_state", "d_initial_state"}) {
            EXPECT_LE(error(found.at(what), exact.at(what)), 1e-4) << what << ", " << where;
          }
          EXPECT_EQ(run(sizes, x, dtype, decay, DecayGradient::unwanted), found) << "of a second run, " << where;
        }
      }
    }
  }
}

// The same with the gradient of the decays, whose terms are products of numbers that were not rounded. A GPU computes
// it by windows of 256 tokens.
TEST_P(LinearAttentionLong, GradientsOfDecaysInSixteenBits) {
  for (const Sizes& sizes : {Sizes{1, 513, 2, 1, 64, 64}, Sizes{1, 600, 2, 2, 128, 128}, Sizes{2, 150, 2, 2, 128, 72},
                             Sizes{1, 256, 1, 1, 40, 128}, Sizes{2, 20, 2, 2, 8, 8}, Sizes{1, 257, 3, 1, 17, 33},
                             Sizes{1, 255, 1, 1, 66, 128}, Sizes{1, 90, 1, 1, 136, 64}, Sizes{3, 1, 2, 2, 16, 16}}) {
    for (const Decay decay : {Decay::learned, Decay::data}) {
      for (const bool documents : {false, true}) {
        for (const DType dtype : {DType::bfloat16, DType::float16}) {
          if (!on_gpu() && sizes.length > 200) continue;  // the CPU has one kernel for all sizes
          Tensors x = draw(sizes);
          draw_weak_decays(x);
          if (!documents) strengthen_some_decays(x);
          if (decay == Decay::learned) x["log_decay"].resize(static_cast<size_t>(sizes.heads));
          if (documents) set_documents(sizes, x);
          const Tensors found = run(sizes, x, dtype, decay);
          const Tensors exact = run(sizes, x, DType::float64, decay);
          const std::string where = std::string(name(dtype)) + (documents ? " with documents, N = " : ", N = ") +
                                    std::to_string(sizes.length) + ", D = " + std::to_string(sizes.dim) +
                                    ", Dv = " + std::to_string(sizes.value_dim);
          for (const char* what : {"d_q", "d_k", "d_v"}) {
            EXPECT_LE(error(found.at(what), exact.at(what)), 1.25 * error_of_rounding(exact.at(what), dtype))
                << what << ", " << where;
          }
          // Learned decays: a sum over all tokens, whose terms cancel.
          EXPECT_LE(error(found.at("d_log_decay"), exact.at("d_log_decay")), decay == Decay::data ? 6e-5 : 2e-3)
              << where;
          EXPECT_EQ(run(sizes, x, dtype, decay), found) << "of a second run, " << where;
        }
      }
    }
  }
}

// An infinity or NaN of a token changes no bit of the gradient of a decay that does not weigh it: of q and d_o those of
// later tokens, of k and v those of the token itself and earlier ones, and in neither case those of another document.
TEST_P(LinearAttentionLong, NoDecaySeesWhatItDoesNotWeigh) {
  const Sizes sizes = on_gpu() ? Sizes{1, 600, 1, 1, 64, 64} : Sizes{1, 100, 1, 1, 16, 8};
  Tensors clean = draw(sizes);
  draw_weak_decays(clean);
  set_documents(sizes, clean);
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const std::vector<double> wanted = run(sizes, clean, dtype).at("d_log_decay");
    for (const int64_t token : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, sizes.length / 2 + 4,
                                sizes.length / 2 + 5, sizes.length - 60, sizes.length - 1}) {
      for (const std::string poisoned : {"q", "k", "v", "d_o"}) {
        Tensors x = clean;
        const int64_t width = static_cast<int64_t>(x[poisoned].size()) / sizes.length;
        x[poisoned][token * width + 5] = token % 2 == 0 ? kInfinity : std::nan("");
        const std::vector<double> found = run(sizes, x, dtype).at("d_log_decay");
        const bool is_row = poisoned == "q" || poisoned == "d_o";
        for (int64_t t = 0; t < sizes.length; ++t) {
          const bool same_document = clean["segments"][t] == clean["segments"][token];
          if (same_document && (is_row ? t <= token : t > token)) continue;
          ASSERT_EQ(found[t], wanted[t]) << heddle::name(dtype) << ": " << poisoned << " of token " << token
                                         << " changes the gradient of the decay of token " << t;
        }
      }
    }
  }
}

// In float32 the error is that of sums in float32, for the same.
TEST_P(LinearAttentionLong, InFloat32TheErrorIsThatOfItsSums) {
  for (const Sizes& sizes :
       {Sizes{1, 1100, 2, 1, 64, 64},  Sizes{1, 700, 2, 2, 128, 128}, Sizes{2, 200, 2, 2, 128, 72},
        Sizes{1, 300, 1, 1, 40, 128},  Sizes{1, 90, 4, 2, 100, 36},   Sizes{1, 90, 1, 1, 96, 256},
        Sizes{1, 64, 1, 1, 48, 33},    Sizes{1, 17, 1, 1, 64, 64},    Sizes{1, 300, 1, 1, 256, 256},
        Sizes{2, 150, 1, 1, 200, 136}, Sizes{1, 600, 2, 1, 127, 65},  Sizes{1, 130, 1, 1, 255, 63},
        Sizes{1, 600, 2, 2, 16, 16},   Sizes{1, 300, 1, 1, 9, 30},    Sizes{1, 150, 1, 1, 8, 200},
        Sizes{1, 900, 2, 1, 8, 5},     Sizes{1, 500, 1, 1, 24, 128},  Sizes{1, 200, 2, 2, 64, 17},
        Sizes{1, 150, 1, 1, 256, 32},  Sizes{1, 600, 1, 1, 36, 48},   Sizes{1, 90, 3, 1, 33, 7},
        Sizes{1, 70, 1, 1, 1, 140}}) {
    for (const Decay decay : {Decay::constant, Decay::data}) {
      for (const bool documents : {false, true}) {
        if (!on_gpu() && sizes.length > 200) continue;  // the CPU has one kernel for all sizes
        Tensors x = draw(sizes);
        draw_weak_decays(x);
        if (std::min(sizes.dim, sizes.value_dim) <= 32 && !documents) strengthen_some_decays(x);
        if (decay == Decay::constant) x["log_decay"].assign(static_cast<size_t>(sizes.heads), -0.003);
        if (documents) set_documents(sizes, x);
        const Tensors found = run(sizes, x, DType::float32, decay, DecayGradient::unwanted);
        const Tensors exact = run(sizes, x, DType::float64, decay, DecayGradient::unwanted);
        for (const char* what : {"o", "d_q", "d_k", "d_v", "final_state", "d_initial_state"}) {
          EXPECT_LE(error(found.at(what), exact.at(what)), 1e-6)
              << what << (documents ? " with documents, D = " : ", D = ") << sizes.dim << ", Dv = " << sizes.value_dim;
        }
        EXPECT_EQ(run(sizes, x, DType::float32, decay, DecayGradient::unwanted), found) << "of a second run";
      }
    }
  }
}

// The second of two gradients is added to the first; their sum is rounded once.
TEST_P(LinearAttentionLong, GradientsAddUp) {
  const Sizes narrow{1, 150, 2, 2, 64, 64}, wide{1, 200, 2, 1, 128, 128}, widest{1, 100, 1, 1, 193, 225},
      parts{1, 130, 1, 1, 184, 256}, small{1, 150, 2, 1, 12, 16}, uneven{1, 90, 1, 1, 7, 150},
      long_keys{1, 90, 1, 1, 256, 32};
  for (const auto& [sizes, dtype] :
       {std::pair{parts, DType::bfloat16}, std::pair{narrow, DType::bfloat16}, std::pair{wide, DType::bfloat16},
        std::pair{narrow, DType::float32}, std::pair{wide, DType::float32}, std::pair{widest, DType::float32},
        std::pair{small, DType::float32}, std::pair{uneven, DType::float32}, std::pair{long_keys, DType::float32}}) {
    Tensors x = draw(sizes);
    const auto stored = [&, dtype = dtype, &sizes = sizes](const std::string& what) {
      const Tensor tensor = Tensor::empty(context(), sizes.shape(what), dtype);
      write_values(context(), tensor, x.at(what));
      return tensor;
    };
    Tape tape(context());
    std::vector<Gradient> gradients(3);
    const Variable q = tape.leaf(stored("q"), gradients[0], "q"), k = tape.leaf(stored("k"), gradients[1], "k");
    const Variable v = tape.leaf(stored("v"), gradients[2], "v");
    const LinearAttentionOptions options{.decay = Decay::none, .scale = sizes.scale, .return_final_state = false};
    const LinearAttention first = linear_attention(tape, q, k, v, {}, options);
    const LinearAttention second = linear_attention(tape, q, k, v, {}, options);
    tape.backward({{first.o, stored("d_o")}, {second.o, stored("d_o")}});
    for (double& value : x["d_final_state"]) value = 0.0;
    for (double& value : x["initial_state"]) value = 0.0;
    for (const char* what : {"q", "k", "v", "d_o"}) x[what] = read_values(context(), stored(what));
    const Tensors exact = run(sizes, x, DType::float64);
    const char* const names[] = {"d_q", "d_k", "d_v"};
    for (size_t i = 0; i < 3; ++i) {
      std::vector<double> twice = exact.at(names[i]);
      for (double& value : twice) value *= 2.0;
      const double allowed = dtype == DType::float32 ? 1e-6 : 1.25 * error_of_rounding(twice, dtype);
      EXPECT_LE(error(read_values(context(), gradients[i].tensor), twice), allowed)
          << heddle::name(dtype) << " " << names[i] << ", D = " << sizes.dim;
    }
  }
}

// An infinity or NaN in a token changes, bit for bit, no output before it, none of another document, and no gradient
// that does not depend on it.
TEST_P(LinearAttentionLong, NoTokenSeesAnotherDocumentOrTheFuture) {
  if (!on_gpu()) GTEST_SKIP() << "the CPU has one kernel for all sizes";
  const Sizes narrow{1, 1100, 1, 1, 64, 64}, wide{1, 140, 1, 1, 128, 128}, widest{1, 140, 1, 1, 193, 90},
      parts{1, 140, 1, 1, 256, 136}, small{1, 600, 1, 1, 16, 16}, uneven{1, 140, 1, 1, 17, 130};
  for (const auto& [sizes, dtype] :
       {std::pair{parts, DType::bfloat16}, std::pair{narrow, DType::bfloat16}, std::pair{wide, DType::bfloat16},
        std::pair{narrow, DType::float32}, std::pair{wide, DType::float32}, std::pair{widest, DType::float32},
        std::pair{small, DType::float32}, std::pair{uneven, DType::float32}}) {
    Tensors clean = draw(sizes);
    draw_weak_decays(clean);
    set_documents(sizes, clean);
    const Tensors wanted = run(sizes, clean, dtype, Decay::data, DecayGradient::unwanted);
    for (const int64_t token : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{127}, sizes.length / 2 + 4,
                                sizes.length / 2 + 5, sizes.length - 70, sizes.length - 1}) {
      for (const std::string poisoned : {"q", "k", "v", "d_o"}) {
        Tensors x = clean;
        const int64_t width = static_cast<int64_t>(x[poisoned].size()) / sizes.length;
        x[poisoned][token * width + 11] = token % 2 == 0 ? kInfinity : std::nan("");
        const Tensors found = run(sizes, x, dtype, Decay::data, DecayGradient::unwanted);
        for (const std::string name : {"o", "d_q", "d_k", "d_v"}) {
          const std::vector<double>& numbers = found.at(name);
          const auto count = static_cast<int64_t>(numbers.size()) / sizes.length;
          int64_t changed = 0;
          for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i) {
            const int64_t at = i / count;
            const bool same_document = clean["segments"][at] == clean["segments"][token];
            const bool is_later = (name == "o" || name == "d_q") && at >= token;
            const bool is_earlier = (name == "d_k" || name == "d_v") && at <= token;
            changed += numbers[i] != wanted.at(name)[i];
            if (same_document && (is_later || is_earlier)) continue;
            ASSERT_EQ(numbers[i], wanted.at(name)[i]) << heddle::name(dtype) << ": " << poisoned << " of token "
                                                      << token << " changes " << name << " of token " << at;
          }
          const bool sees = poisoned != (name == "o" ? "d_o" : name.substr(2));
          EXPECT_EQ(changed > 0, sees) << poisoned << " of token " << token << ", " << name;
        }
      }
    }
  }
}

HEDDLE_ON_DEVICES(LinearAttentionLong);

}  // namespace
}  // namespace heddle::test::linear_attention_long_test
