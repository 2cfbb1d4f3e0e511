#include "core/distributed/mpi.h"

#include "core/runtime/error.h"

#if defined(HEDDLE_MPI)

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/runtime/context.h"
#include "core/tensor/element_types.h"

namespace heddle {
namespace {

// The most that one message holds: below the int that MPI counts with, and small enough for the caches.
constexpr int64_t kMessageBytes = int64_t{1} << 20;

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  fail("{}: {}", call, std::string_view(text.data(), static_cast<size_t>(length)));
}

// Initialized once in a process; finalized when the program ends.
class Mpi {
 public:
  Mpi() {
    int is_initialized = 0;
    MPI_Initialized(&is_initialized);
    if (is_initialized != 0) return;
    int provided = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    owns_ = true;
  }
  ~Mpi() {
    int is_finalized = 0;
    MPI_Finalized(&is_finalized);
    if (owns_ && is_finalized == 0) MPI_Finalize();
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;

 private:
  bool owns_ = false;
};

// sums += values.
template <class T>
void add(int64_t count, const T* __restrict values, double* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(values[i]);
}

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(Context& context) : context_(context) {
    static const Mpi initialized;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  // MPI_Comm_free would wait for the others, which may be gone.
  ~MpiCommunicator() override = default;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  std::string_view name() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(const Tensor& values, StreamHandle stream) override {
    const std::vector<int64_t> bounds = equal_bounds(values.numel(), size_);
    on_host(values, stream, [&](char* data) {
      reduce_parts(values.dtype(), data, bounds);
      gather_parts(data, static_cast<int64_t>(size_of(values.dtype())), bounds);
    });
  }

  void reduce_scatter(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) override {
    on_host(values, stream, [&](char* data) { reduce_parts(values.dtype(), data, bounds); });
  }

  void all_gather(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) override {
    on_host(values, stream,
            [&](char* data) { gather_parts(data, static_cast<int64_t>(size_of(values.dtype())), bounds); });
  }

  void broadcast(const Tensor& values, int root, StreamHandle stream) override {
    on_host(values, stream, [&](char* data) {
      broadcast_bytes(data, values.numel() * static_cast<int64_t>(size_of(values.dtype())), root);
    });
  }

  std::vector<std::string> all_gather_bytes(std::string_view bytes) override {
    const uint64_t mine = bytes.size();
    std::vector<uint64_t> sizes(static_cast<size_t>(size_));
    check_mpi(MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, sizes.data(), sizeof(mine), MPI_BYTE, comm_),
              "MPI_Allgather");
    std::vector<std::string> all;
    for (int root = 0; root < size_; ++root) {
      std::string& text = root == rank_ ? all.emplace_back(bytes) : all.emplace_back(sizes[root], '\0');
      broadcast_bytes(text.data(), static_cast<int64_t>(text.size()), root);
    }
    return all;
  }

  void barrier() override { check_mpi(MPI_Barrier(comm_), "MPI_Barrier"); }

  void abort(std::string_view message) noexcept override {
    if (size_ == 1) return;
    std::fprintf(stderr, "error: process %d of %d ends all: %.*s\n", rank_, size_, static_cast<int>(message.size()),
                 message.data());
    std::fflush(nullptr);
    MPI_Abort(comm_, 1);
  }

 private:
  // Calls work(address of the first element in host memory).
  template <class Work>
  void on_host(const Tensor& values, StreamHandle stream, const Work& work) {
    check(values.rank() == 1 && values.is_contiguous(),
          "[communicator] found a tensor of shape {}, expected a dense one "
          "of one dimension",
          values.shape());
    if (size_ == 1 || context_.is_meta()) return;
    if (values.device().type == DeviceType::cpu) return work(static_cast<char*>(values.raw()));
    const size_t bytes = static_cast<size_t>(values.numel()) * size_of(values.dtype());
    staged_.resize(bytes);
    context_.backend().copy_to_host(staged_.data(), values.raw(), bytes, stream);
    work(staged_.data());
    context_.backend().copy_from_host(values.raw(), staged_.data(), bytes, stream);
    context_.backend().synchronize(stream);
  }

  void reduce_parts(DType dtype, char* data, std::span<const int64_t> bounds) {
    if (dtype == DType::float64) return reduce_parts(reinterpret_cast<double*>(data), bounds);
    check(dtype == DType::float32, "[communicator] found {}, expected float32 or float64", heddle::name(dtype));
    reduce_parts(reinterpret_cast<float*>(data), bounds);
  }

  // Every process sends each part to the one it belongs to, which takes them in the order of the ranks. They are added
  // in double, so that a sum of floats is rounded once.
  template <class T>
  void reduce_parts(T* data, std::span<const int64_t> bounds) {
    constexpr int64_t kCount = kMessageBytes / static_cast<int64_t>(sizeof(T));
    int64_t longest = 0;
    for (int r = 0; r < size_; ++r) longest = std::max(longest, bounds[r + 1] - bounds[r]);
    received_.resize(static_cast<size_t>(size_ * std::min(longest, kCount)) * sizeof(T));
    sums_.resize(static_cast<size_t>(std::min(longest, kCount)));
    for (int64_t begin = 0; begin < longest; begin += kCount) {
      const auto count_of = [&](int r) { return std::clamp<int64_t>(bounds[r + 1] - bounds[r] - begin, 0, kCount); };
      const int64_t mine = count_of(rank_);
      T* received = reinterpret_cast<T*>(received_.data());
      requests_.clear();
      for (int r = 0; r < size_; ++r) {
        if (r == rank_) continue;
        receive(received + r * mine, mine * sizeof(T), r);
        send(data + bounds[r] + begin, count_of(r) * sizeof(T), r);
      }
      check_mpi(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
      T* part = data + bounds[rank_] + begin;
      for (int r = 0; r < size_; ++r) {
        const T* of_rank = r == rank_ ? part : received + r * mine;
        if (r == 0) {
          std::copy_n(of_rank, mine, sums_.begin());
        } else {
          add(mine, of_rank, sums_.data());
        }
      }
      std::transform(sums_.begin(), sums_.begin() + mine, part, [](double sum) { return static_cast<T>(sum); });
    }
  }

  void receive(void* data, size_t bytes, int from) {
    if (bytes == 0) return;
    check_mpi(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, 0, comm_, &requests_.emplace_back()),
              "MPI_Irecv");
  }
  void send(const void* data, size_t bytes, int to) {
    if (bytes == 0) return;
    check_mpi(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, 0, comm_, &requests_.emplace_back()), "MPI_Isend");
  }

  void gather_parts(char* data, int64_t element_bytes, std::span<const int64_t> bounds) {
    for (int root = 0; root < size_; ++root) {
      broadcast_bytes(data + bounds[root] * element_bytes, (bounds[root + 1] - bounds[root]) * element_bytes, root);
    }
  }

  void broadcast_bytes(char* data, int64_t bytes, int root) {
    for (int64_t begin = 0; begin < bytes; begin += kMessageBytes) {
      const int count = static_cast<int>(std::min(bytes - begin, kMessageBytes));
      check_mpi(MPI_Bcast(data + begin, count, MPI_BYTE, root, comm_), "MPI_Bcast");
    }
  }

  Context& context_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<char> received_, staged_;
  std::vector<double> sums_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(Context& context) {
  return std::make_unique<MpiCommunicator>(context);
}

}  // namespace heddle

#else

namespace heddle {

std::unique_ptr<Communicator> make_mpi_communicator(Context&) {
  fail("heddle was built without MPI: several processes on CPUs need it (Debian package libopenmpi-dev)");
}

}  // namespace heddle

#endif
