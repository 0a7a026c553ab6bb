// The end of the kernels that read a group's rows (kernels/cuda/group_draw.h): the splits' partial results become the
// answers of its heads.
#ifndef SANTA_KERNELS_CUDA_GROUP_ANSWER_CUH_
#define SANTA_KERNELS_CUDA_GROUP_ANSWER_CUH_

#include <cmath>

#include "kernels/cuda/group_list.cuh"
#include "kernels/sampling/standard_error.h"
#include "kernels/sampling/target_error.h"

namespace santa::cuda {

// Keeps what the pilot's answer of a head says: its squared error and norm. Whether it misses the target.
__device__ inline bool MissesTarget(PilotAnswer* pilot, int head, float target, float squared_error,
                                    float squared_norm) {
  // What a noisy estimate adds to its own norm is taken off, but never all.
  const float norm = fmaxf(squared_norm - squared_error, 0.05f * squared_norm);
  const float aim = static_cast<float>(sampling::kTargetMargin) * target, allowed = aim * aim * norm;
  pilot->allowed[head] = allowed / squared_error;
  return squared_error > allowed;
}

// For Answer: what the sums over all splits tell of a head's error, by differences from the mean.
template <int D, int kBlocks>
struct SpreadErrors {
  const AnswerShared<kBlocks>& shared;
  const float* const vectors;
  const int group_size;
  const bool ratio;

  // o sum t w^2 v, and |sum t z|^2: of four dimensions from d on, of which x are the answer's.
  __device__ __forceinline__ float2 Of(int head, int d, const float (&x)[4]) const {
    const float* t_wv = vectors + (group_size + head) * D + d;
    const float* t_w2v = t_wv + group_size * D;
    float2 sums = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums.x = fmaf(x[i], t_w2v[i], sums.x);
      const float y = t_wv[i] - (ratio ? shared.number[kSumTW][head] * x[i] : 0.0f);
      sums.y = fmaf(y, y, sums.y);
    }
    return sums;
  }
  // The squared error, against the reference of chance. norm: |o|^2.
  __device__ __forceinline__ float Squared(int head, float2 sums, float norm) const {
    // z = w (v - o) of a ratio, and w v of a sum.
    float squares = shared.number[kSumTW2V2][head];
    if (ratio) squares += shared.number[kSumTW2][head] * norm - 2 * sums.x;
    return sampling::SquaredError(
        {.t = shared.number[kSumT][head], .t_squared = shared.number[kSumTT][head], .z_squared = squares}, sums.y);
  }
};
__device__ __forceinline__ void AddTo(float& sum, float more) { sum += more; }
__device__ __forceinline__ void AddTo(float2& sum, float2 more) { sum = {sum.x + more.x, sum.y + more.y}; }
__device__ __forceinline__ float2 WarpSum(float2 sum) { return {WarpSum(sum.x), WarpSum(sum.y)}; }

// The answers of those of a group's `heads`, bit by bit, from the sums over all splits, of which `vectors` has sum w v
// first; nothing tells the error of the `unread` ones. Errors: SpreadErrors, or what is like it. Whether what the
// thread answered misses the target of a pilot. All threads call it.
template <int D, int kBlocks, typename Errors>
__device__ __forceinline__ bool Answer(const BlockTask& task, const AnswerShared<kBlocks>& shared, const float* vectors,
                                       const Errors& errors, unsigned heads, unsigned unread) {
  const int lane = threadIdx.x % 32, group_size = task.group_size();
  const bool ratio = task.sketched(), wants_error = task.wants_error();
  const DeviceItem& item = task.item;
  const AnswerWriter answer(task.group.decode, item, task.kv_head);
  bool misses = false;
  for (int head = threadIdx.x / 32; head < group_size; head += kGatherWarps) {
    if ((heads >> head & 1) == 0) continue;
    const float reference = shared.reference[0][kOfAll][head], sink = answer.Sink(head);
    const float z = ratio ? shared.number[kSumW][head] : 1.0f;
    const float own = reference + (task.weighs_by_keys() ? 0.0f : shared.lse[head]);  // what the sums are taken against
    const float lse = ratio && z > 0 ? own : shared.lse[head];  // without any row: what chose none
    const float max = fmaxf(lse, sink), scale = Rescale(own, max), sum = z * Rescale(lse, max) + Rescale(sink, max);
    // What the sums are multiplied by, and of a sum with a sink the answer too.
    const float inverse = !ratio ? Rescale(own, lse) : z > 0 ? scale / sum : 0.0f;
    float norm = 0;  // |o|^2
    decltype(errors.Of(0, 0, {0, 0, 0, 0})) of_errors = {};
    for (int d = 4 * lane; d < D; d += 4 * 32) {
      const float4 mine = *reinterpret_cast<const float4*>(vectors + head * D + d);
      // Without any row there is nothing to divide by, and nothing to divide.
      answer.template WriteOutput<D>(head, d, scale * mine, z > 0 ? sum : 1.0f);
      const float x[4] = {mine.x * inverse, mine.y * inverse, mine.z * inverse, mine.w * inverse};
      norm += SquaredNorm({x[0], x[1], x[2], x[3]});
      if (wants_error) AddTo(of_errors, errors.Of(head, d, x));
    }
    norm = WarpSum(norm);
    of_errors = WarpSum(of_errors);
    if (lane != 0) continue;
    if (z > 0) {
      answer.WriteLse(head, max, sum);
    } else {
      answer.WriteLse(head, lse, 1.0f);
    }
    if (!wants_error) continue;
    const float unit = inverse * Rescale(shared.reference[0][kOfChance][head], reference);
    float error = unit * unit * errors.Squared(head, of_errors, norm);
    if (unread >> head & 1) error = NAN;
    if (item.relative_standard_error != nullptr) {
      item.relative_standard_error[answer.first_head + head] = sampling::RelativeError(error, norm);
    }
    if (task.pilot()) {
      misses |= MissesTarget(task.arrays.pilot(task.kv_head), head, item.target_relative_error, error, norm);
    }
  }
  return misses;
}

// Adds up the runs' partial results into shared memory, against the largest of their references, which go to
// shared.reference[0]: vectors [num_vectors][G][D], numbers [G] each. 32 runs at a time.
template <int D, int kBlocks>
__device__ void AddSplits(const GroupArrays& arrays, int kv_head, int group_size, GatherShared<kBlocks>& shared,
                          float* vectors, int num_vectors) {
  const int num_runs = arrays.num_runs(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int quads = group_size * D / 4;  // of a vector
  const int num_sums = (num_vectors == 1 ? 1 : kPartialSums) * group_size;
  // Of 32 runs a warp has eight, and a lane one of their numbers of one head: all eight on their way at once.
  constexpr int kOfWarp = 32 / kGatherWarps;
  const auto load = [&](float(&of)[kOfWarp], int from, int number, bool wanted, float otherwise) {
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
      const int split = from + kOfWarp * warp + i;
      of[i] = wanted && split < num_runs ? __ldcg(arrays.partial(kv_head, split) + arrays.partial_numbers() + number)
                                         : otherwise;
    }
  };
  const bool has_reference = lane < kReferences * group_size;
  const int reference = has_reference ? lane / group_size : 0, head_of_reference = lane % group_size;
  float references[kOfWarp];
  const auto load_references = [&](int from) {
    load(references, from, kPartialSums * group_size + lane, has_reference, kNegativeInfinity);
  };
  float max = kNegativeInfinity;
  const auto raise = [&] {
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) max = fmaxf(max, references[i]);
  };
  for (int from = (num_runs - 1) / 32 * 32; from > 0; from -= 32) {
    load_references(from);
    raise();
  }
  load_references(0);
  raise();
  if (has_reference) shared.warp_max[reference][warp][head_of_reference] = max;
  __syncthreads();
  if (has_reference) {
#pragma unroll
    for (int w = 0; w < kGatherWarps; ++w) max = fmaxf(max, shared.warp_max[reference][w][head_of_reference]);
    if (warp == 0) shared.reference[0][reference][head_of_reference] = max;
  }
  for (int from = 0; from < num_runs; from += 32) {
    if (from > 0) {
      load_references(from);
      __syncthreads();  // factors and sums have been read
    }
    if (has_reference) {
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        shared.factor[reference][kOfWarp * warp + i][head_of_reference] = Rescale(references[i], max);
      }
    }
    __syncwarp();
    for (int number = lane; number < num_sums; number += 32) {
      float mine[kOfWarp];
      load(mine, from, number, true, 0.0f);
      const int which = number / group_size, head = number % group_size;
      const bool counted = which == kSumT || which == kSumTT, squared = which == kSumTW2 || which == kSumTW2V2;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        const float factor = shared.factor[which == kSumW ? kOfAll : kOfChance][kOfWarp * warp + i][head];
        sum += (counted ? 1.0f : squared ? factor * factor : factor) * mine[i];
      }
      shared.by_warp[which][warp][head] = sum;
    }
    __syncthreads();
    for (int number = threadIdx.x; number < num_sums; number += kGatherThreads) {
      const int which = number / group_size, head = number % group_size;
      float sum = from == 0 ? 0.0f : shared.number[which][head];
#pragma unroll
      for (int w = 0; w < kGatherWarps; ++w) sum += shared.by_warp[which][w][head];
      shared.number[which][head] = sum;
    }
    const int count = min(32, num_runs - from);
    const auto sum_at = [&](int vector, int quad) -> float4& {
      return *reinterpret_cast<float4*>(vectors + 4 * (vector * quads + quad));
    };
    for (int quad = threadIdx.x; quad < quads; quad += kGatherThreads) {
      float4 sum = from == 0 ? float4{} : sum_at(0, quad);
#pragma unroll 16
      for (int i = 0; i < count; ++i) {
        sum += shared.factor[kOfAll][i][quad / (D / 4)] *
               __ldcg(reinterpret_cast<const float4*>(arrays.partial(kv_head, from + i)) + quad);
      }
      sum_at(0, quad) = sum;
    }
    for (int quad = threadIdx.x; num_vectors > 1 && quad < quads; quad += kGatherThreads) {
      float4 once = from == 0 ? float4{} : sum_at(1, quad), squared = from == 0 ? float4{} : sum_at(2, quad);
#pragma unroll 16
      for (int i = 0; i < count; ++i) {
        const float factor = shared.factor[kOfChance][i][quad / (D / 4)];
        const uint4 words = __ldcg(reinterpret_cast<const uint4*>(arrays.partial(kv_head, from + i)) + quads + quad);
        const float2 x = ErrorSums(words.x), y = ErrorSums(words.y), z = ErrorSums(words.z), w = ErrorSums(words.w);
        once += factor * float4{x.x, y.x, z.x, w.x};
        squared += factor * factor * float4{x.y, y.y, z.y, w.y};
      }
      sum_at(1, quad) = once;
      sum_at(2, quad) = squared;
    }
  }
  __syncthreads();
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_GROUP_ANSWER_CUH_
