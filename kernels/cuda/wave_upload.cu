// Copies a wave's data and queries out of host memory, looks in the queries for numbers that are not finite, and stores
// new tokens.
//
// Grid: a row of blocks for the wave's data, one for each query, and as many as tokens take, whose threads are numbered
// through (kernels/cuda/kv_append.cuh). A warp brings kFetchPiece bytes, 16 bytes a lane.
// Queries come at any alignment: a lane reads the 16 aligned bytes in which its own begin, and gets the rest from the
// next lane. No shared memory, so that a block finds room beside those of a decode kernel that is at work.
#include "kernels/cuda/wave_upload.h"

#include <algorithm>

#include "kernels/cuda/device_clock.cuh"
#include "kernels/cuda/kv_append.cuh"

namespace santa::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
static_assert(kFetchPiece == 32 * sizeof(uint4));

__device__ __forceinline__ uint64_t MakeFault(uint32_t element, uint32_t bits) {
  return static_cast<uint64_t>(element) << 32 | bits;
}

// The 16 bytes from `misaligned` on in 32 of them.
__device__ __forceinline__ void Realign(uint32_t (&words)[8], unsigned misaligned) {
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = misaligned & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = misaligned & 4 ? words[i + 1] : words[i];
  const unsigned bits = misaligned % 4 * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = static_cast<uint32_t>((static_cast<uint64_t>(words[i + 1]) << 32 | words[i]) >> bits);
  }
}

// Makes 0 of what is not finite in a word of numbers, the first of them number `element` of the query; the first fault,
// or `fault` where there is one already.
__device__ __forceinline__ uint64_t TakeFaults(uint32_t& word, DType dtype, uint32_t element, uint64_t fault) {
  if (dtype == DType::kFloat32) {
    if ((word & 0x7fffffff) < 0x7f800000) return fault;
    if (fault == kNoFault) fault = MakeFault(element, word);
    word = 0;
    return fault;
  }
  const uint32_t least = dtype == DType::kBFloat16 ? 0x7f80 : 0x7c00;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t bits = word >> (16 * half) & 0xffff;
    if ((bits & 0x7fff) < least) continue;
    if (fault == kNoFault) fault = MakeFault(element + half, bits);
    word &= 0xffff0000u >> (16 * half);
  }
  return fault;
}

// The piece of a query that begins at byte `begin`.
__device__ __forceinline__ void Fetch(const QueryFetch& fetch, int begin, int lane) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(fetch.from) + begin;
  const unsigned misaligned = from % sizeof(uint4);
  const auto* vectors = reinterpret_cast<const uint4*>(from - misaligned);
  const int num_vectors = (misaligned + fetch.bytes - begin + sizeof(uint4) - 1) / sizeof(uint4);  // to the query's end
  const uint4 mine = lane < num_vectors ? vectors[lane] : uint4{};
  const uint4 last = lane == 31 && num_vectors > 32 ? vectors[32] : uint4{};
  const auto next = [&](uint32_t of_mine, uint32_t of_last) {
    const uint32_t of_next = __shfl_sync(~0u, of_mine, (lane + 1) % 32);
    return lane == 31 ? of_last : of_next;
  };
  uint32_t words[8] = {mine.x,
                       mine.y,
                       mine.z,
                       mine.w,
                       next(mine.x, last.x),
                       next(mine.y, last.y),
                       next(mine.z, last.z),
                       next(mine.w, last.w)};
  Realign(words, misaligned);

  const int at = begin + lane * static_cast<int>(sizeof(uint4));
  uint64_t fault = kNoFault;
  if (at < fetch.bytes) {
    const int numbers = fetch.dtype == DType::kFloat32 ? 1 : 2;  // in a word
#pragma unroll
    for (int i = 0; i < 4; ++i) fault = TakeFaults(words[i], fetch.dtype, (at / 4 + i) * numbers, fault);
    static_cast<uint4*>(fetch.to)[at / sizeof(uint4)] = {words[0], words[1], words[2], words[3]};
  }
  if (!__any_sync(~0u, fault != kNoFault)) return;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, fault, step);
    fault = other < fault ? other : fault;
  }
  if (lane == 0) fetch.faults[begin / kFetchPiece] = fault;
}

template <typename Source>
__device__ __forceinline__ void StoreFrom(const KvAppendLaunch& tokens, unsigned index) {
  const auto ready = [] {};
  switch (tokens.stored) {
    case DType::kBFloat16:
      return AppendOnePiece<Source, __nv_bfloat16, false>(tokens, index, ready);
    case DType::kFloat16:
      return AppendOnePiece<Source, __half, false>(tokens, index, ready);
    default:
      return AppendOnePiece<Source, __nv_fp8_e4m3, false>(tokens, index, ready);
  }
}

__device__ __forceinline__ void Store(const KvAppendLaunch& tokens, unsigned index) {
  switch (tokens.source) {
    case DType::kFloat32:
      return StoreFrom<float>(tokens, index);
    case DType::kBFloat16:
      return StoreFrom<__nv_bfloat16>(tokens, index);
    default:
      return StoreFrom<__half>(tokens, index);
  }
}

__global__ void __launch_bounds__(kThreads) WaveUploadKernel(const __grid_constant__ WaveUpload upload) {
  const int lane = threadIdx.x % 32, begin = (blockIdx.x * kWarps + threadIdx.x / 32) * kFetchPiece;
  if (blockIdx.y == 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *upload.began = DeviceClock();
    const int at = begin + lane * static_cast<int>(sizeof(uint4));
    if (at >= upload.packed_bytes) return;
    static_cast<uint4*>(upload.to)[at / sizeof(uint4)] = static_cast<const uint4*>(upload.packed)[at / sizeof(uint4)];
    return;
  }
  const int number = static_cast<int>(blockIdx.y) - 1;
  if (number >= upload.num_fetches) {
    return Store(upload.tokens, ((number - upload.num_fetches) * gridDim.x + blockIdx.x) * kThreads + threadIdx.x);
  }
  const QueryFetch fetch = number < kFetchesInLaunch ? upload.first[number] : upload.fetches[number];
  if (begin < fetch.bytes) Fetch(fetch, begin, lane);
}

}  // namespace

cudaError_t LaunchWaveUpload(const WaveUpload& upload, cudaStream_t stream) {
  const int pieces = std::max(1, FetchPieces(std::max(upload.packed_bytes, upload.most_fetched_bytes)));
  const int blocks = (pieces + kWarps - 1) / kWarps;  // of a row
  const auto of_tokens = static_cast<int>((AppendThreads(upload.tokens) + kThreads - 1) / kThreads);
  const dim3 grid(blocks, 1 + upload.num_fetches + (of_tokens + blocks - 1) / blocks);
  WaveUploadKernel<<<grid, kThreads, 0, stream>>>(upload);
  return cudaGetLastError();
}

}  // namespace santa::cuda
