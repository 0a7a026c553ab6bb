// Grid: (key/value head, item). A thread takes the same four features in every draw that it takes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/feature_queries.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/sampling/ternary_query.h"

namespace santa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostFeatures = 256;  // of a head
static_assert(kThreads >= kMostFeatures);

// Of one group, in shared memory: [G][D], features of a head one after the other.
struct Group {
  uint64_t* thresholds;
  float* queries;
  uint32_t* taken;  // in how many draws

  static constexpr int kBytesOfNumber = sizeof(uint64_t) + sizeof(float) + sizeof(uint32_t);
  __device__ Group(unsigned char* bytes, int numbers)
      : thresholds(reinterpret_cast<uint64_t*>(bytes)),
        queries(reinterpret_cast<float*>(thresholds + numbers)),
        taken(reinterpret_cast<uint32_t*>(queries + numbers)) {}
};

__device__ __forceinline__ float Load(const DeviceItem& item, int index) {
  switch (item.io_dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(item.q)[index];
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(item.q)[index]);
    default:
      return __half2float(static_cast<const __half*>(item.q)[index]);
  }
}

// Counts in how many draws each feature was taken. All threads call it, after a barrier behind what they wrote.
__device__ void CountTaken(const Group& group, const DeviceItem& item, int kv_head, int group_size, int head_dim) {
  const int quads = head_dim / 4, parts = kThreads / quads;
  const int quad = threadIdx.x % quads, part = threadIdx.x / quads;
  if (part >= parts) return;
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, kv_head);
  uint32_t counts[kMaxGroup][2] = {};  // of two features in 16 bits each: there are 1,024 draws at most
#pragma unroll 1
  for (uint32_t draw = part; draw < item.score_draws; draw += parts) {
    const sampling::ScoreUniforms uniforms = sampling::DrawScoreUniforms(stream, head_dim, draw, quad);
#pragma unroll
    for (int head = 0; head < kMaxGroup; ++head) {
      if (head >= group_size) break;
      const uint64_t* thresholds = group.thresholds + head * head_dim + 4 * quad;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (uniforms.of_feature[i] < thresholds[i]) counts[head][i / 2] += 1u << 16 * (i % 2);
      }
    }
  }
#pragma unroll
  for (int head = 0; head < kMaxGroup; ++head) {
    if (head >= group_size) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      atomicAdd(group.taken + head * head_dim + 4 * quad + i, counts[head][i / 2] >> 16 * (i % 2) & 0xffff);
    }
  }
}

// Puts the mean of its ternary queries in place of each head's query. All threads call it, after a barrier and before
// one.
__device__ void DrawQueries(const Group& group, const DeviceItem& item, int kv_head, int group_size, int head_dim) {
  __shared__ float largest_of[kMaxGroup];
  const int numbers = group_size * head_dim, lane = threadIdx.x % 32;
  for (int head = threadIdx.x / 32; head < group_size; head += kThreads / 32) {
    float largest = 0;
    for (int j = lane; j < head_dim; j += 32) largest = fmaxf(largest, fabsf(group.queries[head * head_dim + j]));
#pragma unroll
    for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    if (lane == 0) largest_of[head] = largest;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < numbers; i += kThreads) {
    group.thresholds[i] = sampling::ScoreThreshold(group.queries[i], largest_of[i / head_dim]);
    group.taken[i] = 0;
  }
  __syncthreads();
  CountTaken(group, item, kv_head, group_size, head_dim);
  __syncthreads();
  for (int i = threadIdx.x; i < numbers; i += kThreads) {
    group.queries[i] =
        sampling::DrawnFeature(group.queries[i], largest_of[i / head_dim], group.taken[i], item.score_draws);
  }
}

// Lists the features that are to be read; how many. The first warp calls it.
__device__ int ListFeatures(uint16_t* list, const Group& group, bool draws, int group_size, int head_dim, int lane) {
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < head_dim; first += 32) {
    const int feature = first + lane;
    bool read = feature < head_dim && !draws;
    if (draws && feature < head_dim) {
      for (int head = 0; head < group_size; ++head) read = read || group.taken[head * head_dim + feature] > 0;
    }
    int through = read;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, through, step);
      if (lane >= step) through += other;
    }
    if (read) list[count + through - 1] = static_cast<uint16_t>(feature);
    count += __shfl_sync(~0u, through, 31);
  }
  return count;
}

__global__ void __launch_bounds__(kThreads) FeatureQueriesKernel(const __grid_constant__ FeatureQueriesLaunch launch) {
  extern __shared__ __align__(16) unsigned char bytes[];
  __shared__ uint16_t list[kMostFeatures];
  __shared__ int shared_count;
  LetLaterKernelStart();
  const DecodeLaunch& decode = launch.decode;
  const int kv_head = blockIdx.x, group_size = decode.group_size, head_dim = decode.head_dim;
  const DeviceItem& item = decode.items[blockIdx.y];
  const Group group(bytes, group_size * head_dim);
  for (int i = threadIdx.x; i < group_size * head_dim; i += kThreads) {
    group.queries[i] = Load(item, kv_head * group_size * head_dim + i);
  }
  __syncthreads();
  if (item.score_draws > 0) DrawQueries(group, item, kv_head, group_size, head_dim);
  __syncthreads();
  if (threadIdx.x < 32) {
    const int count = ListFeatures(list, group, item.score_draws > 0, group_size, head_dim, threadIdx.x);
    if (threadIdx.x == 0) shared_count = count;
  }
  __syncthreads();
  WaitForEarlierKernel();  // which may read what another wave has there
  const FeatureQueries queries = FeatureQueriesOf(decode, blockIdx.y, kv_head);
  const int heads = FeatureHeads(group_size), count = shared_count;
  if (threadIdx.x == 0) {
    *queries.count() = count;
    *queries.zeros() = {};
    if (item.features_read) atomicAdd(item.features_read, static_cast<unsigned long long>(count));
  }
  for (int i = threadIdx.x; i < count; i += kThreads) queries.features()[i] = list[i];
  for (int i = threadIdx.x; i < count * heads; i += kThreads) {
    const int head = i % heads;
    queries.numbers()[i] = head < group_size ? group.queries[head * head_dim + list[i / heads]] : 0.0f;
  }
}

}  // namespace

cudaError_t LaunchFeatureQueries(const FeatureQueriesLaunch& launch, cudaStream_t stream) {
  const DecodeLaunch& decode = launch.decode;
  if (decode.group_size < 1 || decode.group_size > kMaxGroup || decode.head_dim > kMostFeatures) {
    return cudaErrorNotSupported;
  }
  if (launch.num_items == 0) return cudaSuccess;
  return LaunchOverlapping(FeatureQueriesKernel, launch, dim3(decode.num_kv_heads, launch.num_items), kThreads,
                           decode.group_size * decode.head_dim * Group::kBytesOfNumber, stream);
}

}  // namespace santa::cuda
