// S2ANTA_FLASH (arXiv 2605.01910): one pass; each tile of 256 tokens has a fixed budget of draws, systematic on the
// tile's own softmax.
//
// Grid: (work, key/value head), as for EXACT. One warp does a whole tile by itself: the scores of its 256 tokens for
// every head of the group, the draws, and the gather of the union of the drawn value rows, each read once for the
// group. No barrier ties the warps together, so that while one draws, the others keep the memory busy.
#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/s2anta_flash.h"
#include "kernels/cuda/split_merge.cuh"
#include "kernels/cuda/warp_attention.cuh"
#include "kernels/sampling/draws.h"
#include "kernels/sampling/mass.h"
#include "kernels/sampling/tile_budgets.h"
#include "kernels/sampling/uniform.h"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTile = sampling::kMinTileSize;

// Column of a token in the tile's rows: a pad every 32 tokens keeps the lanes of one head in different banks.
__device__ __forceinline__ int Column(int token) { return token + token / 32; }

// A warp's memory, for a group padded to kHeads = 1, 2, 4, 8 or 16 heads.
template <int kHeads>
struct TileMemory {
  uint32_t value[kHeads][kTile + kTile / 32];  // scores (float bits, log2 units), then masses, then draw counts
  uint8_t list[kTile];                         // tokens with a draw, ascending
  float factor[kHeads];                        // the tile's mass against its own largest score, over its budget
  float max[kHeads];                           // that largest score
};

// Scores of the tile's tokens; -inf where a token is invisible.
template <typename T, int D, int kHeads, int kHeadBlocks>
__device__ __forceinline__ void ScoreTile(TileMemory<kHeads>& memory, const CacheView<D>& view, const DeviceItem& item,
                                          const RowFragment<D> (&q)[kHeadBlocks], int tile_begin, int lane) {
  RowFragment<D> k[2];
  LoadKeys<D>(k, view, view.Group(tile_begin), tile_begin, lane);
  const uint16_t* group = view.Group(tile_begin + kWarpTokens);
#pragma unroll 1
  for (int offset = 0; offset < kTile; offset += kWarpTokens) {
    float s[kHeadBlocks][4];
#pragma unroll
    for (int block = 0; block < kHeadBlocks; ++block) Scores<T, D>(s[block], k[0], k[1], q[block]);
    if (offset + kWarpTokens < kTile) {
      LoadKeys<D>(k, view, group, tile_begin + offset + kWarpTokens, lane);
      group = view.Group(tile_begin + offset + 2 * kWarpTokens);
    }
#pragma unroll
    for (int block = 0; block < kHeadBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int head = 8 * block + 2 * (lane % 4) + (i & 1), token = offset + lane / 4 + 4 * (i & 2);
        if (head < kHeads) {
          memory.value[head][Column(token)] =
              __float_as_uint(view.visible(tile_begin + token) ? Log2Score(s[block][i], item) : kNegativeInfinity);
        }
      }
    }
  }
  __syncwarp();
}

// Turns scores into draw counts. Each head has 32 / kHeads lanes, each with a run of the tile's tokens.
template <int kHeads>
__device__ __forceinline__ void DrawTile(TileMemory<kHeads>& memory, const DeviceItem& item, int first_head,
                                         int group_size, uint32_t budget, int tile, int lane) {
  constexpr int kLanes = 32 / kHeads, kRun = kTile / kLanes;
  const int head = lane / kLanes, part = lane % kLanes;
  uint32_t* row = memory.value[head] + Column(part * kRun);
  float max = kNegativeInfinity;
#pragma unroll 8
  for (int i = 0; i < kRun; ++i) max = fmaxf(max, __uint_as_float(row[Column(i)]));
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));

  uint64_t sum = 0;
#pragma unroll 8
  for (int i = 0; i < kRun; ++i) {
    const uint32_t mass = sampling::RowMass(exp2f(__uint_as_float(row[Column(i)]) - max));
    row[Column(i)] = mass;
    sum += mass;
  }
  uint64_t through = sum;  // of this lane's run and those before it
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, through, step, kLanes);
    if (part >= step) through += other;
  }
  const uint64_t total = __shfl_sync(~0u, through, kLanes - 1, kLanes);

  const sampling::DrawGrid grid = sampling::MakeDrawGrid(total, budget);
  const sampling::RandomStream stream =
      sampling::MakeRandomStream(item.seed, item.sampling_key, item.layer_index, item.position, first_head + head);
  const uint64_t offset = sampling::UniformBelow(sampling::Random64(stream, sampling::Purpose::kTile, tile), total);
  uint64_t cumulative = through - sum;
  sampling::SystematicCursor cursor(grid, offset, sampling::SystematicDrawsBelow(grid, cumulative, offset));
  const bool real = head < group_size;
#pragma unroll 4
  for (int i = 0; i < kRun; ++i) {
    cumulative += row[Column(i)];
    uint32_t count = 0;
    for (; cursor.position() < cumulative; cursor.Advance()) ++count;
    row[Column(i)] = real ? count : 0;
  }
  if (part == 0) {
    memory.max[head] = max;
    memory.factor[head] = static_cast<float>(static_cast<double>(total) / sampling::kMassOne / budget);
  }
  __syncwarp();
}

// Lists the tokens that some head drew; how many.
template <int kHeads>
__device__ __forceinline__ int ListDrawn(TileMemory<kHeads>& memory, int lane) {
  int listed = 0;
#pragma unroll
  for (int block = 0; block < kTile; block += 32) {
    uint32_t drawn = 0;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) drawn |= memory.value[head][Column(block + lane)];
    const uint32_t ballot = __ballot_sync(~0u, drawn != 0);
    if (drawn) memory.list[listed + __popc(ballot & ((1u << lane) - 1))] = block + lane;
    listed += __popc(ballot);
  }
  __syncwarp();
  return listed;
}

template <int D>
__device__ __forceinline__ void LoadListed(ValueFragment<D>& v, const CacheView<D>& view, const uint8_t* list,
                                           int listed, int at, int tile_begin, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int index = at + ValueToken(lane, i);
    LoadValueRow<D>(v, i, index < listed ? view.Row(tile_begin + list[index]) + view.value_offset : nullptr, lane);
  }
}

// Sums the listed value rows by their draw counts and adds the tile to the warp's running result.
template <typename T, int D, int kHeads>
__device__ __forceinline__ void GatherTile(const TileMemory<kHeads>& memory, const CacheView<D>& view, int listed,
                                           int tile_begin, int block, OutputFragment<D>& out, RunningSoftmax& softmax,
                                           uint32_t budget, int lane) {
  const int r = lane / 4, c = lane % 4, head = 8 * block + r;
  OutputFragment<D> tile = {};
  ValueFragment<D> v;
  LoadListed<D>(v, view, memory.list, listed, 0, tile_begin, lane);
#pragma unroll 1
  for (int at = 0; at < listed; at += kWarpTokens) {
    ValueFragment<D> next;
    LoadListed<D>(next, view, memory.list, listed, at + kWarpTokens, tile_begin, lane);
    float count[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int index = at + ValueToken(lane, i);
      count[i] = index < listed && head < kHeads ? memory.value[head][Column(memory.list[index])] : 0;
    }
    Accumulate<T, D>(tile, v, Pack<T>(count[0], count[1]), Pack<T>(count[2], count[3]));  // counts to 256 are exact
    v = next;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column_head = 8 * block + 2 * c + h;
    const float tile_max = column_head < kHeads ? memory.max[column_head] : 0;
    const float factor = column_head < kHeads ? memory.factor[column_head] : 0;
    const float max = fmaxf(softmax.max[h], tile_max);
    const float keep = Rescale(softmax.max[h], max), add = Rescale(tile_max, max) * factor;
    softmax.max[h] = max;
    softmax.sum[h] = softmax.sum[h] * keep + (r == 0 ? add * budget : 0);
#pragma unroll
    for (int j = 0; j < ValueFragment<D>::kSteps; ++j) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        out.o[j][b][h] = out.o[j][b][h] * keep + tile.o[j][b][h] * add;
        out.o[j][b][h + 2] = out.o[j][b][h + 2] * keep + tile.o[j][b][h + 2] * add;
      }
    }
  }
}

template <typename T, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarps, 3) S2antaFlashKernel(const __grid_constant__ DecodeLaunch launch) {
  constexpr int kHeadBlocks = kHeads > 8 ? 2 : 1;
  union Shared {
    TileMemory<kHeads> tile[kWarps];
    WarpResults<D, kWarps> results;
  };
  extern __shared__ __align__(16) unsigned char bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const int2 work = launch.work[blockIdx.x];
  const DeviceItem& item = launch.items[work.x];
  const int kv_head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  TileMemory<kHeads>& memory = shared.tile[warp];

  const CacheView<D> view(launch, item, work.y, kv_head);
  const sampling::Tiling tiling = sampling::MakeTiling(item.begin, item.end, item.sample_count);
  RowFragment<D> q[kHeadBlocks];
#pragma unroll
  for (int block = 0; block < kHeadBlocks; ++block) LoadQueries<D>(q[block], launch, item, kv_head, block, lane);

  RunningSoftmax softmax[kHeadBlocks];
  OutputFragment<D> out[kHeadBlocks] = {};
  unsigned rows_read = 0;
#pragma unroll 1
  for (int tile = view.begin / kTile + warp; tile * kTile < view.end; tile += kWarps) {
    const int tile_begin = tile * kTile;
    const uint32_t budget = sampling::FlashBudget(tiling, tile - tiling.first, item.sample_count);
    ScoreTile<T, D, kHeads, kHeadBlocks>(memory, view, item, q, tile_begin, lane);
    DrawTile<kHeads>(memory, item, kv_head * launch.group_size, launch.group_size, budget, tile, lane);
    const int listed = ListDrawn<kHeads>(memory, lane);
    rows_read += listed;
#pragma unroll
    for (int block = 0; block < kHeadBlocks; ++block) {
      GatherTile<T, D, kHeads>(memory, view, listed, tile_begin, block, out[block], softmax[block], budget, lane);
    }
    __syncwarp();
  }
  if (item.rows_read && lane == 0 && rows_read) atomicAdd(item.rows_read, static_cast<unsigned long long>(rows_read));

  const size_t partial = static_cast<size_t>(item.first_split + work.y) * launch.num_kv_heads + kv_head;
#pragma unroll
  for (int block = 0; block < kHeadBlocks; ++block) {
    MergeWarps<D, kWarps>(shared.results, out[block], softmax[block], launch, partial, block);
  }
  MergeSplits<D>(launch, item, work.x, kv_head);
}

template <typename T, int D, int kHeads>
cudaError_t Launch(const DecodeLaunch& launch, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(TileMemory<kHeads>) * kWarps > sizeof(WarpResults<D, kWarps>)
                                ? sizeof(TileMemory<kHeads>) * kWarps
                                : sizeof(WarpResults<D, kWarps>);
  const auto kernel = S2antaFlashKernel<T, D, kHeads>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
    return error;
  }
  kernel<<<dim3(launch.num_work, launch.num_kv_heads), 32 * kWarps, kBytes, stream>>>(launch);
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchGroup(const DecodeLaunch& launch, cudaStream_t stream) {
  if (launch.group_size <= 4) return Launch<T, 128, 4>(launch, stream);
  if (launch.group_size <= 8) return Launch<T, 128, 8>(launch, stream);
  return cudaErrorNotSupported;
}

}  // namespace

cudaError_t LaunchS2antaFlash(const DecodeLaunch& launch, cudaStream_t stream) {
  if (launch.head_dim != 128) return cudaErrorNotSupported;
  switch (launch.dtype) {
    case DType::kBFloat16:
      return LaunchGroup<__nv_bfloat16>(launch, stream);
    case DType::kFloat16:
      return LaunchGroup<__half>(launch, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda
