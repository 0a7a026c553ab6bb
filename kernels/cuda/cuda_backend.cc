#include "kernels/cuda/cuda_backend.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <deque>
#include <iterator>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/cuda_timing.h"
#include "kernels/cuda/decode_wave.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/read_ceiling.h"
#include "kernels/cuda/step_graph.h"

namespace santa {
namespace {

using cuda::ToStatus;

constexpr int kWaves = 4;
constexpr int kMaxInFlight = 2;
constexpr int kMaxGroup = 16;
constexpr int kTurnsWithoutCuda = 10'000;  // of a wait: about a millisecond
constexpr int kTimedSteps = 8;             // at the least, so that the graph's start counts for little
constexpr int32_t kHeadDims[] = {64, 96, 128, 192, 256};

class CudaBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Make(const CudaBackendOptions& options, std::string device);
  ~CudaBackend() override {
    cudaSetDevice(options_.device);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_.get());  // which has waited for uploads_
  }

  std::string_view name() const override { return "cuda"; }
  std::string device() const override { return device_; }
  const KvLayout& layout() const override { return options_.layout; }
  int32_t num_pages() const override { return options_.num_pages; }
  int max_decodes_in_flight() const override { return kMaxInFlight; }
  std::unique_ptr<MappedMemory> MapMemory(std::span<char> memory) override;

  absl::Status Supports(const AttentionOptions& options, int64_t num_tokens) const override;
  absl::Status Append(std::span<const KvAppend> appends) override;
  absl::Status Compare(std::span<const KvAppend> appends, std::span<bool> matches) override;
  absl::Status CopyPages(std::span<const PageCopy> copies) override;
  absl::Status Decode(std::span<const DecodeItem> items) override;
  absl::Status BeginDecode(std::span<const DecodeItem> items) override;
  absl::Status AwaitDecode(double* device_seconds) override;

  absl::StatusOr<CudaStopwatch> TimeDecode(std::span<const std::vector<DecodeItem>> steps);
  absl::StatusOr<CudaStopwatch> TimeRead(int64_t bytes, int variant);

 private:
  // A wave's memory, and which wave has it. Whoever needs it, the thread that begins decodes or the one that awaits
  // them, waits for the device and delivers.
  struct Slot {
    std::mutex mutex;
    cuda::DecodeWave wave;
    int64_t number = -1;
    bool queued = false;
  };
  // Waves [first, end) of one call.
  struct Waves {
    int64_t first = 0;
    int64_t end = 0;
  };

  CudaBackend(const CudaBackendOptions& options, std::string device) : options_(options), device_(std::move(device)) {}

  absl::Status WarmUp();
  // To be called at the start of every call: the device of this thread, or the error that sticks.
  absl::Status Enter();
  // Makes an error stick.
  absl::Status Keep(absl::Status status);
  // Where it is an error, returns once the device has done with what it was given, and so with mapped memory.
  absl::Status Drained(absl::Status status);
  absl::Status Submit(std::span<const DecodeItem> items, Waves* waves);
  absl::Status Await(const Waves& waves, double* device_seconds);
  absl::Status Settle(Slot& slot, double* device_seconds);
  absl::Status AwaitEnd(const cuda::DecodeWave& wave);
  bool DeviceIsIdle() const;

  const CudaBackendOptions options_;
  const std::string device_;
  cuda::Stream stream_;
  cuda::Stream uploads_;  // of waves
  cuda::KvCache cache_;
  cuda::DecodeScratch scratch_;
  std::array<Slot, kWaves> slots_;
  int64_t next_wave_ = 0;

  std::mutex mutex_;
  std::deque<Waves> begun_;  // and not awaited
  absl::Status error_;
};

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Make(const CudaBackendOptions& options, std::string device) {
  std::unique_ptr<CudaBackend> backend(new CudaBackend(options, std::move(device)));
  for (cuda::Stream* stream : {&backend->stream_, &backend->uploads_}) {
    absl::StatusOr<cuda::Stream> made = cuda::MakeStream(stream == &backend->uploads_);
    if (!made.ok()) return made.status();
    *stream = *std::move(made);
  }
  // The small things first: what fails is then the cache, which can be made smaller.
  const auto limits = cuda::WaveLimits::For(options.layout, options.num_pages);
  absl::StatusOr<cuda::DecodeScratch> scratch =
      cuda::DecodeScratch::Allocate(options.layout, limits, backend->stream_.get());
  if (!scratch.ok()) return scratch.status();
  backend->scratch_ = *std::move(scratch);
  for (Slot& slot : backend->slots_) {
    absl::StatusOr<cuda::DecodeWave> wave = cuda::DecodeWave::Allocate(options.layout, limits);
    if (!wave.ok()) return wave.status();
    slot.wave = *std::move(wave);
  }
  absl::StatusOr<cuda::KvCache> cache =
      cuda::KvCache::Allocate(options.layout, options.num_pages, options.scales, backend->stream_.get());
  if (!cache.ok()) return cache.status();
  backend->cache_ = *std::move(cache);
  if (absl::Status status = backend->WarmUp(); !status.ok()) return status;
  return backend;
}

// The run time loads a kernel when it is first launched, which allocates and waits: so launch each now, over two tokens
// of zeros in page 0.
absl::Status CudaBackend::WarmUp() {
  const KvLayout& layout = options_.layout;
  const std::vector<float> zeros(static_cast<size_t>(layout.num_query_heads) * layout.head_dim * 2, 0.0f);
  std::vector<float> o(zeros.size());
  std::vector<float> lse(layout.num_query_heads);
  const int32_t page = 0;
  const std::vector<int32_t> many(kLeastTokensForTarget / layout.page_size + 1, page);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const KvAppend append = {
        .page_table = &page, .num_tokens = 2, .dtype = dtype, .k = zeros.data(), .v = zeros.data()};
    bool matches = false;
    if (absl::Status status = Append({&append, 1}); !status.ok()) return status;
    if (absl::Status status = Compare({&append, 1}, {&matches, 1}); !status.ok()) return status;
    if (!matches) return absl::InternalError("the device does not hold what was stored in it");
  }
  for (const Method method : kAllMethods) {
    const AttentionOptions attention = {.method = method,
                                        .sample_count = DrawsValues(method) ? 1u : 0u,
                                        .score_draws = method == Method::kBernoulliQk ? 1u : 0u};
    if (!Supports(attention, 2).ok()) continue;
    DecodeItem item = {.page_table = &page,
                       .num_tokens = 2,
                       .options = attention,
                       .q = zeros.data(),
                       .o = o.data(),
                       .lse = lse.data()};
    if (absl::Status status = Decode({&item, 1}); !status.ok()) return status;
    if (method != Method::kCoordinated && method != Method::kSketched) continue;
    // A target takes a kernel more, where there are tokens enough; the page many times over has as many.
    item.page_table = many.data();
    item.num_tokens = kLeastTokensForTarget;
    item.options = {.method = method, .target_relative_error = 0.5f};
    if (absl::Status status = Decode({&item, 1}); !status.ok()) return status;
  }
  if (options_.num_pages == 1) return absl::OkStatus();
  const PageCopy copy = {.from = 0, .to = 1};
  if (absl::Status status = CopyPages({&copy, 1}); !status.ok()) return status;
  return Keep(ToStatus(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"));
}

absl::Status CudaBackend::Enter() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_.ok()) return error_;
  }
  return Keep(ToStatus(cudaSetDevice(options_.device), "cudaSetDevice"));
}

absl::Status CudaBackend::Keep(absl::Status status) {
  if (status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (error_.ok()) error_ = std::move(status);
  return error_;
}

absl::Status CudaBackend::Drained(absl::Status status) {
  if (status.ok()) return status;
  // What these answer is no news.
  cudaStreamSynchronize(uploads_.get());
  cudaStreamSynchronize(stream_.get());
  return status;
}

std::unique_ptr<MappedMemory> CudaBackend::MapMemory(std::span<char> memory) {
  if (!Enter().ok()) return nullptr;
  return cuda::HostMapping::Make(memory);
}

absl::Status CudaBackend::Supports(const AttentionOptions& options, int64_t /*num_tokens*/) const {
  return SupportsLayout(options, options_.layout);
}

absl::Status CudaBackend::Append(std::span<const KvAppend> appends) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return Drained(Keep(cache_.Append(appends)));
}

absl::Status CudaBackend::Compare(std::span<const KvAppend> appends, std::span<bool> matches) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return Drained(Keep(cache_.Compare(appends, matches)));
}

absl::Status CudaBackend::CopyPages(std::span<const PageCopy> copies) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return Keep(cache_.CopyPages(copies));
}

absl::Status CudaBackend::Decode(std::span<const DecodeItem> items) {
  Waves waves;
  if (absl::Status status = Drained(Submit(items, &waves)); !status.ok()) return status;
  double device_seconds = 0;
  return Drained(Await(waves, &device_seconds));
}

absl::Status CudaBackend::BeginDecode(std::span<const DecodeItem> items) {
  Waves waves;
  if (absl::Status status = Drained(Submit(items, &waves)); !status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  begun_.push_back(waves);
  return absl::OkStatus();
}

absl::Status CudaBackend::AwaitDecode(double* device_seconds) {
  Waves waves;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (begun_.empty()) return absl::FailedPreconditionError("AwaitDecode without a BeginDecode before it");
    waves = begun_.front();
    begun_.pop_front();
  }
  *device_seconds = 0;
  return Drained(Await(waves, device_seconds));
}

absl::Status CudaBackend::Submit(std::span<const DecodeItem> items, Waves* waves) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  *waves = {.first = next_wave_, .end = next_wave_};
  while (!items.empty()) {
    Slot& slot = slots_[next_wave_ % kWaves];
    const std::lock_guard<std::mutex> lock(slot.mutex);
    double seconds_of_another_wave = 0;
    if (absl::Status status = Settle(slot, &seconds_of_another_wave); !status.ok()) return status;
    // New tokens come along with the upload, but not beside work that was queued before: pages that they go to may have
    // been another sequence's, which a wave still reads.
    if (!DeviceIsIdle()) {
      if (absl::Status status = Keep(cache_.QueueKept()); !status.ok()) return status;
    }
    const absl::StatusOr<size_t> count = slot.wave.Fill(items, cache_, scratch_);
    if (!count.ok()) return Keep(count.status());
    if (absl::Status status = Keep(slot.wave.Queue(scratch_, cache_.kept(), stream_.get(), uploads_.get()));
        !status.ok()) {
      return status;
    }
    if (absl::Status status = Keep(cache_.KeptIsQueued(uploads_.get())); !status.ok()) return status;
    slot.number = next_wave_++;
    slot.queued = true;
    items = items.subspan(*count);
  }
  waves->end = next_wave_;
  return absl::OkStatus();
}

absl::Status CudaBackend::Await(const Waves& waves, double* device_seconds) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  for (int64_t wave = waves.first; wave < waves.end; ++wave) {
    Slot& slot = slots_[wave % kWaves];
    const std::lock_guard<std::mutex> lock(slot.mutex);
    // A later wave may have the slot already: then this one was delivered before that was filled.
    if (slot.number != wave) continue;
    if (absl::Status status = Settle(slot, device_seconds); !status.ok()) return status;
  }
  return Enter();
}

// Waits for the slot's wave and delivers it. The slot's mutex is held.
absl::Status CudaBackend::Settle(Slot& slot, double* device_seconds) {
  if (!slot.queued) return absl::OkStatus();
  slot.queued = false;
  if (absl::Status status = Keep(AwaitEnd(slot.wave)); !status.ok()) return status;
  *device_seconds += slot.wave.Deliver();
  return absl::OkStatus();
}

absl::Status CudaBackend::AwaitEnd(const cuda::DecodeWave& wave) {
  while (true) {
    for (int turn = 0; turn < kTurnsWithoutCuda; ++turn) {
      if (wave.ended()) return absl::OkStatus();
      _mm_pause();
    }
    // A kernel that goes wrong ends all of them, and none tells.
    const cudaError_t error = cudaStreamQuery(stream_.get());
    if (error == cudaErrorNotReady) continue;
    if (error != cudaSuccess) return ToStatus(error, "cudaStreamQuery");
    if (!wave.ended()) return absl::InternalError("the device is done with a wave and has not said so");
  }
}

// Only the thread that queues asks.
bool CudaBackend::DeviceIsIdle() const {
  return !cache_.queued_alone() && (next_wave_ == 0 || slots_[(next_wave_ - 1) % kWaves].wave.ended());
}

// What a stopwatch owns.
struct Timed {
  std::vector<cuda::DecodeWave> waves;
  cuda::DeviceMemory sink;
  cuda::StepGraph graph;
};

// `count` things in turns: how many steps to capture so that each is there as often as the others.
int TimedSteps(int64_t count) { return static_cast<int>((kTimedSteps + count - 1) / count * count); }

absl::StatusOr<CudaStopwatch> CudaBackend::TimeDecode(std::span<const std::vector<DecodeItem>> steps) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  if (absl::Status status = Keep(cache_.QueueKept()); !status.ok()) return status;
  auto timed = std::make_shared<Timed>();
  std::vector<size_t> first_wave = {0};  // of every step; and the end
  for (const std::vector<DecodeItem>& step : steps) {
    auto limits = cuda::WaveLimits::For(options_.layout, options_.num_pages);
    limits.items = std::min(limits.items, static_cast<int32_t>(step.size()));
    for (std::span<const DecodeItem> items = step; !items.empty();) {
      absl::StatusOr<cuda::DecodeWave> wave = cuda::DecodeWave::Allocate(options_.layout, limits);
      if (!wave.ok()) return wave.status();
      const absl::StatusOr<size_t> count = wave->Fill(items, cache_, scratch_);
      if (!count.ok()) return count.status();
      if (absl::Status status = Keep(wave->QueueUpload({}, stream_.get())); !status.ok()) return status;
      timed->waves.push_back(*std::move(wave));
      items = items.subspan(*count);
    }
    first_wave.push_back(timed->waves.size());
  }
  if (timed->waves.empty()) return absl::InvalidArgumentError("there are no steps to time");
  const auto queue = [&](int number) {
    const size_t step = number % steps.size();
    absl::Status status;
    for (size_t wave = first_wave[step]; wave < first_wave[step + 1] && status.ok(); ++wave) {
      status = timed->waves[wave].QueueKernels(scratch_, stream_.get());
    }
    return status;
  };
  const auto count = static_cast<int64_t>(steps.size());
  absl::StatusOr<cuda::StepGraph> graph = cuda::StepGraph::Capture(stream_.get(), TimedSteps(count), queue);
  if (!graph.ok()) return Keep(graph.status());
  timed->graph = *std::move(graph);
  return [timed] { return timed->graph.Run(); };
}

absl::StatusOr<CudaStopwatch> CudaBackend::TimeRead(int64_t bytes, int variant) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  const int64_t all = static_cast<int64_t>(options_.layout.page_bytes()) * options_.num_pages;
  if (bytes < 16 || bytes > all) {
    return absl::InvalidArgumentError(absl::StrCat("bytes is ", bytes, "; it must be in [16, ", all, "]"));
  }
  auto timed = std::make_shared<Timed>();
  absl::StatusOr<cuda::DeviceMemory> sink = cuda::AllocateDevice(sizeof(unsigned), "a number");
  if (!sink.ok()) return sink.status();
  timed->sink = *std::move(sink);
  const int64_t places = all / bytes;
  const auto queue = [&](int step) {
    const auto* data = static_cast<const uint8_t*>(cache_.layer(0)) + step % places * (bytes / 16 * 16);
    return ToStatus(cuda::LaunchRead(data, static_cast<size_t>(bytes) / 16 * 16,
                                     static_cast<unsigned*>(timed->sink.get()), variant, stream_.get()),
                    "LaunchRead");
  };
  absl::StatusOr<cuda::StepGraph> graph = cuda::StepGraph::Capture(stream_.get(), TimedSteps(places), queue);
  if (!graph.ok()) return Keep(graph.status());
  timed->graph = *std::move(graph);
  return [timed] { return timed->graph.Run(); };
}

absl::StatusOr<CudaBackend*> AsCuda(Backend& backend) {
  auto* const cuda = dynamic_cast<CudaBackend*>(&backend);
  if (cuda == nullptr) return absl::InvalidArgumentError("only the CUDA backend has a CUDA stopwatch");
  return cuda;
}

absl::Status CheckLayout(const KvLayout& layout) {
  if (absl::Status status = Validate(layout); !status.ok()) return status;
  if (layout.dtype == DType::kFloat32) {
    return absl::UnimplementedError("dtype is fp32; the CUDA backend has bf16, fp16 and fp8_e4m3");
  }
  if (std::find(std::begin(kHeadDims), std::end(kHeadDims), layout.head_dim) == std::end(kHeadDims)) {
    return absl::UnimplementedError(
        absl::StrCat("head_dim is ", layout.head_dim, "; the CUDA backend has 64, 96, 128, 192 and 256"));
  }
  if (ValueBits(layout.sketch) > 0 && layout.dtype == DType::kFloat8E4M3) {
    return absl::UnimplementedError(absl::StrCat("sketch is ", std::string(Name(layout.sketch)),
                                                 ", dtype is fp8_e4m3; the CUDA backend has none and k4 for it"));
  }
  if (layout.group_size() > kMaxGroup) {
    return absl::UnimplementedError(absl::StrCat("num_query_heads / num_kv_heads is ", layout.group_size(),
                                                 "; the CUDA backend has 1 to ", kMaxGroup));
  }
  return absl::OkStatus();
}

// Makes the device that of this thread, and describes it.
absl::StatusOr<std::string> UseDevice(int32_t device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return absl::UnavailableError(absl::StrCat("this machine has no NVIDIA GPU that CUDA can use",
                                               error == cudaSuccess ? "" : ": ",
                                               error == cudaSuccess ? "" : cudaGetErrorString(error)));
  }
  if (device < 0 || device >= count) {
    return absl::InvalidArgumentError(absl::StrCat("device is ", device, "; it must be in [0, ", count - 1, "]"));
  }
  cudaDeviceProp properties = {};
  if (absl::Status status = ToStatus(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
      !status.ok()) {
    return status;
  }
  const std::string name =
      absl::StrFormat("%s, %.0f GiB, compute capability %d.%d", properties.name,
                      static_cast<double>(properties.totalGlobalMem) / (1 << 30), properties.major, properties.minor);
  if (properties.major < 8) {
    return absl::UnimplementedError(absl::StrCat("device ", device, " is ", name, "; the CUDA backend needs 8.0"));
  }
  if (absl::Status status = ToStatus(cudaSetDevice(device), "cudaSetDevice"); !status.ok()) return status;
  return name;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  if (absl::Status status = CheckLayout(options.layout); !status.ok()) return status;
  if (absl::Status status = Validate(options.scales, options.layout); !status.ok()) return status;
  if (options.num_pages < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_pages is ", options.num_pages, "; it must be at least 1"));
  }
  absl::StatusOr<std::string> device = UseDevice(options.device);
  if (!device.ok()) return device.status();
  absl::StatusOr<std::unique_ptr<CudaBackend>> backend = CudaBackend::Make(options, *std::move(device));
  if (!backend.ok()) return backend.status();
  return *std::move(backend);
}

absl::StatusOr<CudaStopwatch> TimeCudaDecode(Backend& backend, std::span<const std::vector<DecodeItem>> steps) {
  const absl::StatusOr<CudaBackend*> cuda = AsCuda(backend);
  if (!cuda.ok()) return cuda.status();
  return (*cuda)->TimeDecode(steps);
}

absl::StatusOr<CudaStopwatch> TimeCudaRead(Backend& backend, int64_t bytes, int variant) {
  const absl::StatusOr<CudaBackend*> cuda = AsCuda(backend);
  if (!cuda.ok()) return cuda.status();
  return (*cuda)->TimeRead(bytes, variant);
}

absl::StatusOr<CudaMemory> CudaDeviceMemory(int32_t device) {
  const absl::StatusOr<std::string> name = UseDevice(device);
  if (!name.ok()) return name.status();
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (absl::Status status = ToStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"); !status.ok()) {
    return status;
  }
  return CudaMemory{.free_bytes = static_cast<int64_t>(free_bytes), .total_bytes = static_cast<int64_t>(total_bytes)};
}

int64_t CudaOverheadBytes(const KvLayout& layout) {
  // Scratch, kWaves buffers, and what the context and the kernels' code take.
  const auto limits = cuda::WaveLimits::For(layout, 1);
  const int64_t numbers = int64_t{layout.num_query_heads} * layout.head_dim;
  const auto queries = static_cast<int64_t>(cuda::QueryScratchBytes(layout));
  return limits.splits * (numbers * 4 + layout.num_query_heads * 20) + limits.items * (queries + numbers * 8 * kWaves) +
         cuda::WaveLimits::kStoredBytes + (int64_t{512} << 20);
}

}  // namespace santa
