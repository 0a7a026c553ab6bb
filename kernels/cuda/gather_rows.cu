// The weighted sum of the drawn rows, and the answer.
//
// Grid: (key/value head, work), as for the scores. A warp takes a block of 256 tokens at a time. Sums of a split's
// warps, then of an item's splits, are plain sums in a fixed order.
#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_sums.cuh"
#include "kernels/cuda/stored_launch.cuh"
#include "kernels/cuda/tile_draws.cuh"
#include "kernels/cuda/tile_gather.cuh"

namespace santa::cuda {
namespace {

// Slabs of a warp's ring: 8 KiB.
template <typename Kv, int D>
constexpr int kSlabs = 8192 / Slab<Kv, D>::kBytes > 1 ? 8192 / Slab<Kv, D>::kBytes : 1;

template <typename Kv, int D, int kHeads>
struct alignas(128) WarpMemory {
  uint8_t values[kSlabs<Kv, D> * Slab<Kv, D>::kBytes];
  uint32_t value[kHeads][kTileTokens + 4];  // of the listed tokens; the pad keeps heads in different banks
  uint8_t list[kTileTokens];
};

// So many that a block fits the 99 KiB of every GPU's multiprocessor.
template <typename Kv, int D, int kHeads>
constexpr int kWarpsOf = 4 * sizeof(WarpMemory<Kv, D, kHeads>) <= 96 * 1024 ? 4 : 2;

template <typename Kv, int D, int kHeads>
union Shared {
  WarpMemory<Kv, D, kHeads> warp[kWarpsOf<Kv, D, kHeads>];
  float sums[kWarpsOf<Kv, D, kHeads>][8][D + 4];
  float answers[kHeads * D];
};

// Starts copying what a block drew.
template <typename Kv, int D, int kHeads>
__device__ __forceinline__ void CopyDrawn(WarpMemory<Kv, D, kHeads>& memory, const StoredArrays& arrays, int first_head,
                                          int heads, int kv_head, int block, int listed, int lane) {
  if (lane < kTileTokens / 16) {
    CopyScratch16(SharedAddress(memory.list + 16 * lane), arrays.list(kv_head, block) + 16 * lane, 16 * lane < listed);
  }
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    // Zeros past the heads and the end of the list.
    const float* from = arrays.scores(first_head + min(head, heads - 1), block);
    for (int entry = 4 * lane; entry < kTileTokens && entry < listed; entry += 128) {
      CopyScratch16(SharedAddress(&memory.value[head][entry]), from + entry, head < heads);
    }
  }
  CommitCopies();
}

// Whether the block's numbers are weights: of S2ANTA_FLASH, whose tiles have each their own, and where all rows are
// read.
__device__ __forceinline__ bool HasWeights(Method method) {
  return method == Method::kS2antaFlash || method == Method::kExact;
}

// Not by weights alone, which say nothing of chances. A draw alone tells nothing.
__device__ __forceinline__ bool TellsError(Method method, const DeviceItem& item) {
  return !HasWeights(method) && (method != Method::kSanta || item.sample_count > 1);
}

// What DrawRows left of the split's t and pairs, which go with the steps of the block's first warp; NaN where nothing
// is told.
template <int kHeads>
__device__ __forceinline__ sampling::StepSums OfRows(const DecodeLaunch& launch, const DeviceItem& item, bool told,
                                                     int split, int kv_head) {
  constexpr int kLanes = TileMemory<kHeads>::kLanes;
  const int head = threadIdx.x / kLanes;
  if (threadIdx.x % kLanes != 0 || head >= launch.group_size) return {};
  if (!told) return {.t = NAN};
  return launch.partial_errors[Partials(launch).Of(item, split, kv_head, head)];
}

template <typename Kv, int D, int kHeads>
__global__ void __launch_bounds__(32 * kWarpsOf<Kv, D, kHeads>, kHeads > 8 || D > 128 ? 2 : 4)
    GatherRowsKernel(const __grid_constant__ StoredLaunch launch) {
  constexpr int kBlocks = kHeads > 8 ? 2 : 1, kWarps = kWarpsOf<Kv, D, kHeads>;
  extern __shared__ __align__(1024) unsigned char bytes[];
  Shared<Kv, D, kHeads>& shared = *reinterpret_cast<Shared<Kv, D, kHeads>*>(bytes);
  LetLaterKernelStart();
  const WorkUnit work = launch.decode.work[blockIdx.y];
  const DeviceItem& item = launch.decode.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_size = launch.decode.group_size;
  WarpMemory<Kv, D, kHeads>& mine = shared.warp[warp];
  const CacheView<Kv, D> view(launch.decode, item, work, kv_head);
  const StoredView stored(launch.decode, item, launch.stored[work.item]);
  WaitForEarlierKernel();  // what was read up to here came from the host

  const Method method = launch.stored[work.item].method;
  const bool wants_error = item.relative_standard_error != nullptr,
             tells_error = wants_error && TellsError(method, item);
  const uint32_t independent = tells_error && method == Method::kSanta ? item.sample_count : 0;
  const bool pairs_rows = tells_error && independent == 0;
  OutputFragment<D> out[kBlocks] = {};
  NormSums<Kv, D, kHeads> norms;
  WarpErrors<kHeads> errors;
  const int* num_listed = stored.arrays.num_listed(kv_head);
#pragma unroll 1
  for (int tile = view.begin / kTileTokens + warp; tile * kTileTokens < view.end; tile += kWarps) {
    const int block = tile - stored.lines.first_block;
    const int listed = num_listed[block];
    if (listed == 0) continue;
    __syncwarp();
    CopyDrawn<Kv, D, kHeads>(mine, stored.arrays, kv_head * group_size, group_size, kv_head, block, listed, lane);
    WaitCopies<0>();
    const auto value = [&mine](int head, int entry) { return mine.value[head][entry]; };
    const auto draws = [method](uint32_t value) {
      return HasWeights(method) ? __uint_as_float(value) : static_cast<float>(DrawsOf(value));
    };
    const auto weight = [&](int column, int entry) {
      return ColumnWeight<kHeads>(column, entry, pairs_rows, value, draws);
    };
    PairSums<Kv, D, kHeads> pairs;
    if (pairs_rows) pairs.Start(out, item.seed + tile, lane);
    const auto beside = [&](uint32_t slab, int at) {
      if (independent != 0) {
        norms.Add(slab, weight, listed, at, lane);
      } else if (pairs_rows) {
        pairs.Add(slab, value, listed, at, lane);
      }
    };
    const SlabRing<kSlabs<Kv, D>> ring{SharedAddress(mine.values)};
    GatherListed<Kv, D, kHeads, false>(out, mine.list, listed, weight, beside, ring, view, tile * kTileTokens, lane);
    if (pairs_rows) errors.AddSteps(pairs, out);
  }
  WaitCopies<0>();
  if (independent != 0) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) errors.steps[block][h] = norms.Sum(block, h, lane);
    }
  } else if (wants_error) {
    errors.of_rows = OfRows<kHeads>(launch.decode, item, tells_error, work.split, kv_head);
  }
  const HeadSum* sums = stored.arrays.head_sum(0);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    AddWarps<Kv, D, kWarps>(shared.sums, out[block], errors, launch.decode, item, sums, independent, work.split,
                            kv_head, block);
  }
  if (item.num_splits > 1) {
    unsigned* ticket = launch.decode.tickets + 2 * (work.item * launch.decode.num_kv_heads + kv_head);
    AddSplits<D>(shared.answers, Partials(launch.decode), item, sums, independent, ticket, 0, kv_head);
  }
}

struct Launcher {
  const StoredLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return DispatchHeads<Kv, D, kBlocks>(launch.decode.group_size, *this);
  }

  template <typename Kv, int D, int kHeads>
  cudaError_t RunHeads() const {
    return LaunchOverlapping(GatherRowsKernel<Kv, D, kHeads>, launch,
                             dim3(launch.decode.num_kv_heads, launch.decode.num_work), 32 * kWarpsOf<Kv, D, kHeads>,
                             sizeof(Shared<Kv, D, kHeads>), stream);
  }
};

}  // namespace

cudaError_t LaunchGatherRows(const StoredLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
