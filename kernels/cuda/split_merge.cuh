// How warps, then splits, become one answer: each brings an output not yet divided by its sum, the largest score it was
// taken against and that sum (flash-decoding's log-sum-exp merge), and of a method that draws, the squared error of the
// output. The order is fixed, so the bits are too.
#ifndef SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_
#define SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_

#include <cmath>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/slab.cuh"
#include "kernels/sampling/standard_error.h"

namespace santa::cuda {

inline constexpr float kNegativeInfinity = -INFINITY;
inline constexpr int kMaxGroup = 16;  // query heads of one key/value head

// The running softmax of a warp for heads 2c, 2c + 1 of a block of 8: scores in units of log2.
struct RunningSoftmax {
  float max[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum[2] = {0, 0};            // this lane's share: the sum over r is the head's
  float squared_error[2] = {0, 0};  // likewise, of the output
};

// 2^x, for x <= 0 within 2 ulp; -inf gives 0.
__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 2^(from - to) where -inf stands for "nothing yet".
__device__ __forceinline__ float Rescale(float from, float to) {
  return from == kNegativeInfinity ? 0.0f : Exp2(from - to);
}

// Over the warp's lanes, which all get it.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ __forceinline__ float SquaredNorm(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

__device__ __forceinline__ float4 operator*(float factor, float4 v) {
  return {factor * v.x, factor * v.y, factor * v.z, factor * v.w};
}
__device__ __forceinline__ float4& operator+=(float4& sum, float4 v) {
  sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
  return sum;
}

__device__ __forceinline__ void StoreOutput(const DeviceItem& item, int index, float4 value) {
  if (item.io_dtype == DType::kFloat32) {
    *reinterpret_cast<float4*>(static_cast<float*>(item.o) + index) = value;
    return;
  }
  const bool bf16 = item.io_dtype == DType::kBFloat16;
  const uint2 packed = bf16 ? uint2{Pack<__nv_bfloat16>(value.x, value.y), Pack<__nv_bfloat16>(value.z, value.w)}
                            : uint2{Pack<__half>(value.x, value.y), Pack<__half>(value.z, value.w)};
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(item.o) + index) = packed;
}

// What a launch has for the results of splits. By value: a function that is called would read the kernel's own
// parameters as slowly as memory.
struct Partials {
  float* o;
  float2* max_sum;
  sampling::StepSums* errors;
  int num_kv_heads, group_size;

  __device__ __forceinline__ explicit Partials(const DecodeLaunch& launch)
      : o(launch.partial_o),
        max_sum(launch.partial_max_sum),
        errors(launch.partial_errors),
        num_kv_heads(launch.num_kv_heads),
        group_size(launch.group_size) {}

  // The place of a split's result for head `head` of the group.
  __device__ __forceinline__ size_t Of(const DeviceItem& item, int split, int kv_head, int head) const {
    return (static_cast<size_t>(item.first_split + split) * num_kv_heads + kv_head) * group_size + head;
  }
};

// One (item, key/value head) on its way to the answer.
struct AnswerWriter {
  const DeviceItem& item;
  int first_head;  // of the group, in [0, H)
  float value_scale;

  // num_kv_heads, group_size: of `shape`, a launch or its Partials.
  template <typename Shape>
  __device__ AnswerWriter(const Shape& shape, const DeviceItem& item, int kv_head)
      : item(item),
        first_head(kv_head * shape.group_size),
        value_scale(item.kv_scales ? item.kv_scales[shape.num_kv_heads + kv_head] : 1.0f) {}

  __device__ float Sink(int head) const {
    return item.sinks ? item.sinks[first_head + head] * kLog2E : kNegativeInfinity;
  }
  // max and sum: of all tokens and the sink.
  __device__ void WriteLse(int head, float max, float sum) const {
    item.lse[first_head + head] = (max + log2f(sum)) / kLog2E;
  }
  // Where it is wanted; of sums in the same units.
  __device__ void WriteError(int head, float squared_error, float squared_norm) const {
    item.relative_standard_error[first_head + head] = sampling::RelativeError(squared_error, squared_norm);
  }
  template <int D>
  __device__ void WriteOutput(int head, int dim, float4 o, float sum) const {
    StoreOutput(item, (first_head + head) * D + dim, value_scale / sum * o);
  }
};

// What a warp brings for a block of 8 heads, of which a group has kRows at most.
template <int D, int kRows>
struct alignas(16) WarpResult {
  float o[kRows][D + 4];
  float max[kRows], sum[kRows], squared_error[kRows];
};

// What the block's warps left for heads 8 * block .. + 7 of a split, merged: the answer of the only split of an item, a
// partial result of another one. results: warp w's lies `pitch` bytes after warp w - 1's. kTellsErrors: also their
// squared errors, where the item wants them. All threads call it. Not inlined: one for all types of cache, lest nvcc
// take as long for it as for the rest of a kernel.
template <int D, int kWarps, int kRows, bool kTellsErrors>
__device__ __noinline__ void MergeResults(const unsigned char* results, int pitch, Partials partials,
                                          const DeviceItem& item, int split, int kv_head, int block) {
  using Result = WarpResult<D, kRows>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool tells_errors = kTellsErrors && item.relative_standard_error != nullptr;
  const auto result = [&](int w) -> const Result& { return *reinterpret_cast<const Result*>(results + w * pitch); };
  const AnswerWriter answer(partials, item, kv_head);
  const int heads = min(8, partials.group_size - 8 * block);
  const bool only = item.num_splits == 1;
  for (int i = 4 * threadIdx.x; i < heads * D; i += 4 * 32 * kWarps) {
    const int in_block = i / D, dim = i % D, head = 8 * block + in_block;
    float max = only ? answer.Sink(head) : kNegativeInfinity;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, result(w).max[in_block]);
    float sum = only ? Rescale(answer.Sink(head), max) : 0.0f;
    float4 o = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Rescale(result(w).max[in_block], max);
      sum += factor * result(w).sum[in_block];
      o += factor * *reinterpret_cast<const float4*>(&result(w).o[in_block][dim]);
    }
    if (only) {
      answer.WriteOutput<D>(head, dim, o, sum);
      if (dim == 0) answer.WriteLse(head, max, sum);
    } else {
      const size_t to = partials.Of(item, split, kv_head, head);
      *reinterpret_cast<float4*>(partials.o + to * D + dim) = o;
      if (dim == 0) partials.max_sum[to] = make_float2(max, sum);
    }
  }
  for (int in_block = warp; tells_errors && in_block < heads; in_block += kWarps) {
    float max = kNegativeInfinity, squared_error = 0, squared_norm = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max = fmaxf(max, result(w).max[in_block]);
    const auto factor = [&](int w) { return Rescale(result(w).max[in_block], max); };
#pragma unroll
    for (int w = 0; w < kWarps; ++w) squared_error += factor(w) * factor(w) * result(w).squared_error[in_block];
    const int head = 8 * block + in_block;
    if (!only) {
      if (lane == 0) {
        partials.errors[partials.Of(item, split, kv_head, head)] = {.t = 0, .pairs = 0, .steps = squared_error};
      }
      continue;
    }
    for (int dim = 4 * lane; dim < D; dim += 4 * 32) {
      float4 o = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) o += factor(w) * *reinterpret_cast<const float4*>(&result(w).o[in_block][dim]);
      squared_norm += SquaredNorm(o);
    }
    squared_norm = WarpSum(squared_norm);
    if (lane == 0) answer.WriteError(head, squared_error, squared_norm);
  }
  __syncthreads();
}

// Merges the block's warps for heads 8 * block .. + 7 of a split, as MergeResults says. Warp w leaves what it brings
// `pitch` bytes after warp w - 1, in memory that no other warp touches. All threads call it.
template <typename Kv, int D, int kWarps, int kRows, bool kTellsErrors = false>
__device__ __forceinline__ void MergeWarps(unsigned char* results, int pitch, const OutputFragment<D>& out,
                                           const RunningSoftmax& softmax, const DecodeLaunch& launch,
                                           const DeviceItem& item, int split, int kv_head, int block) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  auto& mine = *reinterpret_cast<WarpResult<D, kRows>*>(results + warp * pitch);
  const bool tells_errors = kTellsErrors && item.relative_standard_error != nullptr;
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = softmax.sum[h], squared_error = softmax.squared_error[h];
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      sum += __shfl_xor_sync(~0u, sum, step);
      if (tells_errors) squared_error += __shfl_xor_sync(~0u, squared_error, step);
    }
    const int head = 2 * c + h;
    if (head >= kRows) continue;
    if (r == 0) {
      mine.max[head] = softmax.max[h];
      mine.sum[head] = sum;
      if (tells_errors) mine.squared_error[head] = squared_error;
    }
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      mine.o[head][OutputDim<Kv>(j, lane, 0)] = out.o[j][h];
      mine.o[head][OutputDim<Kv>(j, lane, 1)] = out.o[j][h + 2];
    }
  }
  __syncthreads();
  MergeResults<D, kWarps, kRows, kTellsErrors>(results, pitch, Partials(launch), item, split, kv_head, block);
}

// The block whose split was the last of its (item, head) merges them all, as many at a time as its shared memory has
// room for: num_bytes from `bytes` on, at least kLeastBytes.
template <int D, int kWarps, bool kTellsErrors>
class SplitMerger {
 public:
  __device__ SplitMerger(unsigned char* bytes, int num_bytes, const Partials& partials, const DeviceItem& item,
                         int kv_head)
      : shared_(*reinterpret_cast<Shared*>(bytes)),
        parts_(reinterpret_cast<float4*>(bytes + sizeof(Shared))),
        answer_(partials, item, kv_head),
        group_size_(partials.group_size),
        num_splits_(item.num_splits),
        quads_(partials.group_size * D / 4),
        at_once_(min(kMostAtOnce, (num_bytes - static_cast<int>(sizeof(Shared))) / (16 * quads_))),
        stride_(static_cast<size_t>(partials.num_kv_heads) * partials.group_size) {
    const size_t first = item.first_split * stride_ + kv_head * partials.group_size;
    max_sums_ = partials.max_sum + first;
    errors_ = partials.errors + first;
    tells_errors_ = kTellsErrors && item.relative_standard_error != nullptr;
    partial_o_ = reinterpret_cast<float4*>(partials.o + first * D);
  }

  __device__ void Run() {
    if (threadIdx.x < group_size_) {
      shared_.max[threadIdx.x] = answer_.Sink(threadIdx.x);
      shared_.sum[threadIdx.x] = answer_.Sink(threadIdx.x) == kNegativeInfinity ? 0.0f : 1.0f;
      shared_.squared_error[threadIdx.x] = 0;
    }
    constexpr int kPasses = kMaxGroup * D / 4 / (32 * kWarps);
    float4 o[kPasses] = {};
    for (int from = 0; from < num_splits_; from += at_once_) {
      const int count = min(at_once_, num_splits_ - from);
      StartCopies(from, count);
      WaitCopies<0>();
      __syncthreads();
      Weigh(from, count);
      Discard(from, count);
      __syncthreads();
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int quad = pass * blockDim.x + threadIdx.x;
        if (quad >= quads_) break;
        const int head = 4 * quad / D;
        o[pass] = shared_.keep[head] * o[pass];
#pragma unroll 8
        for (int split = 0; split < count; ++split) {
          o[pass] += shared_.max_sum[split][head].x * parts_[split * quads_ + quad];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int quad = pass * blockDim.x + threadIdx.x;
      if (quad >= quads_) break;
      answer_.template WriteOutput<D>(4 * quad / D, 4 * quad % D, o[pass], shared_.sum[4 * quad / D]);
    }
    if (threadIdx.x < group_size_) {
      answer_.WriteLse(threadIdx.x, shared_.max[threadIdx.x], shared_.sum[threadIdx.x]);
    }
    if (!tells_errors_) return;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int quad = pass * blockDim.x + threadIdx.x;
      if (quad < quads_) parts_[quad] = o[pass];
    }
    __syncthreads();
    for (int head = threadIdx.x / 32; head < group_size_; head += kWarps) {
      float squared_norm = 0;
      for (int i = threadIdx.x % 32; i < D / 4; i += 32) squared_norm += SquaredNorm(parts_[head * (D / 4) + i]);
      squared_norm = WarpSum(squared_norm);
      if (threadIdx.x % 32 == 0) answer_.WriteError(head, shared_.squared_error[head], squared_norm);
    }
  }

 private:
  static constexpr int kMostAtOnce = 64;
  struct alignas(16) Shared {
    float2 max_sum[kMostAtOnce][kMaxGroup];  // of the splits at hand; then the factors of their outputs, and nothing
    float max[kMaxGroup], sum[kMaxGroup];    // of the sink and the splits up to here
    float keep[kMaxGroup];                   // the factor of what was summed before
    float squared_error[kMaxGroup];          // of that; without the sink, which has none
  };

  __device__ void StartCopies(int from, int count) {
    for (int quad = threadIdx.x; quad < quads_; quad += blockDim.x) {
#pragma unroll 4
      for (int split = 0; split < count; ++split) {
        CopyAsync16(SharedAddress(parts_ + split * quads_ + quad),
                    partial_o_ + (from + split) * stride_ * (D / 4) + quad);
      }
    }
    for (int i = threadIdx.x; i < count * group_size_; i += blockDim.x) {
      const int split = i / group_size_, head = i % group_size_;
      shared_.max_sum[split][head] = __ldcg(max_sums_ + (from + split) * stride_ + head);
    }
    CommitCopies();
  }

  // Gives up the partial outputs, which every thread has copied.
  __device__ void Discard(int from, int count) {
    for (int quad = 8 * threadIdx.x; quad < count * quads_; quad += 8 * blockDim.x) {
      DiscardLine(partial_o_ + (from + quad / quads_) * stride_ * (D / 4) + quad % quads_);
    }
  }

  // A warp a head: the largest score so far, the sum against it, and the factors that bring the outputs to it.
  __device__ void Weigh(int from, int count) {
    const int lane = threadIdx.x % 32;
    for (int head = threadIdx.x / 32; head < group_size_; head += blockDim.x / 32) {
      float max = shared_.max[head];
      for (int split = lane; split < count; split += 32) max = fmaxf(max, shared_.max_sum[split][head].x);
#pragma unroll
      for (int step = 1; step < 32; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
      const float keep = Rescale(shared_.max[head], max);
      float sum = lane == 0 ? keep * shared_.sum[head] : 0.0f;
      float squared_error = lane == 0 ? keep * keep * shared_.squared_error[head] : 0.0f;
      for (int split = lane; split < count; split += 32) {
        const float2 part = shared_.max_sum[split][head];
        const float factor = Rescale(part.x, max);
        shared_.max_sum[split][head].x = factor;
        sum += factor * part.y;
        if (tells_errors_) squared_error += factor * factor * __ldcg(&errors_[(from + split) * stride_ + head].steps);
      }
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        sum += __shfl_xor_sync(~0u, sum, step);
        if (tells_errors_) squared_error += __shfl_xor_sync(~0u, squared_error, step);
      }
      __syncwarp();  // every lane has read the largest score that lane 0 replaces
      if (lane == 0) {
        shared_.max[head] = max;
        shared_.sum[head] = sum;
        shared_.keep[head] = keep;
        if (tells_errors_) shared_.squared_error[head] = squared_error;
      }
    }
  }

 public:
  static constexpr int kLeastBytes = static_cast<int>(sizeof(Shared)) + kMaxGroup * D * 4;

 private:
  Shared& shared_;
  float4* const parts_;  // [split][G * D / 4]
  const AnswerWriter answer_;
  const int group_size_, num_splits_, quads_, at_once_;
  const size_t stride_;  // between splits, in heads
  const float2* max_sums_;
  const sampling::StepSums* errors_;
  bool tells_errors_;
  float4* partial_o_;
};

// A split's place among those of its (item, head) when it has been read. Asked for before its warps are merged, so that
// the answer is there afterwards.
class SplitPlace {
 public:
  __device__ SplitPlace(const DecodeLaunch& launch, const DeviceItem& item, int item_index, int kv_head)
      : read_(launch.tickets + 2 * (item_index * launch.num_kv_heads + kv_head)), last_(item.num_splits - 1) {
    if (threadIdx.x == 0 && last_ > 0) place_ = atomicAdd(read_, 1);
  }

  // Whether this one is the last, and then all partial results are there. All threads call it, having written theirs.
  __device__ bool WaitForOthers() {
    unsigned* written = read_ + 1;
    if (!__syncthreads_or(threadIdx.x == 0 && place_ == last_)) {
      if (threadIdx.x == 0) AddRelease(written, 1);
      return false;
    }
    if (threadIdx.x == 0) {
      while (LoadAcquire(written) != last_) continue;  // the others are about to be done
      *read_ = 0;
      *written = 0;
    }
    __syncthreads();
    return true;
  }

 private:
  unsigned* const read_;
  const unsigned last_;
  unsigned place_ = 0;
};

// The last split's block, as SplitMerger says; not inlined, as MergeResults.
template <int D, int kWarps, bool kTellsErrors>
__device__ __noinline__ void MergeAllSplits(unsigned char* bytes, int num_bytes, Partials partials,
                                            const DeviceItem& item, int kv_head) {
  SplitMerger<D, kWarps, kTellsErrors>(bytes, num_bytes, partials, item, kv_head).Run();
}

// The last split of an (item, head) merges them all and writes the answer. All threads call it.
template <int D, int kWarps, int kBytes, bool kTellsErrors = false>
__device__ __forceinline__ void MergeSplits(unsigned char* bytes, const DecodeLaunch& launch, const DeviceItem& item,
                                            int kv_head, SplitPlace& place) {
  static_assert(kBytes >= SplitMerger<D, kWarps, kTellsErrors>::kLeastBytes);
  if (item.num_splits == 1 || !place.WaitForOthers()) return;
  MergeAllSplits<D, kWarps, kTellsErrors>(bytes, kBytes, Partials(launch), item, kv_head);
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SPLIT_MERGE_CUH_
