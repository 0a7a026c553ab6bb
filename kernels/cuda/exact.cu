// EXACT: paged split-KV decode attention (flash-decoding with a log-sum-exp merge), reading each byte of K and V once.
//
// Grid: (key/value head, work): one block for each split of each item. A split is a run of tokens whose bounds depend
// on the item's own visible tokens alone. Each warp takes every kWarps-th slab of 16 tokens and has a ring of slabs of
// its own, K and V in turn, that asynchronous copies fill ahead of it: no barrier ties the warps together before the
// merge.
#include "kernels/cuda/exact.h"

#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_merge.cuh"

namespace santa::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kStride = kWarps * kSlabRows;  // tokens between a warp's slabs

// Slabs of a warp's ring: 20 KiB in flight, which two blocks a multiprocessor have room for.
template <typename Kv, int D>
constexpr int kSlabs = std::max(3, std::min(12, 20480 / Slab<Kv, D>::kBytes));

template <typename Kv, int D>
constexpr int kRingBytes = kSlabs<Kv, D>* Slab<Kv, D>::kBytes;
template <typename Kv, int D>
constexpr int kSharedBytes = kWarps* std::max<int>(kRingBytes<Kv, D>, sizeof(WarpResult<D, 8>));

// Turns scores into weights 2^(s - max), after raising max (and scaling what was summed) where a score exceeds it.
template <int D>
__device__ __forceinline__ void Weigh(float (&s)[4], RunningSoftmax& softmax, OutputFragment<D>& out) {
  float raised[2] = {fmaxf(s[0], s[2]), fmaxf(s[1], s[3])};
  if (__any_sync(~0u, raised[0] > softmax.max[0] || raised[1] > softmax.max[1])) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      raised[h] = fmaxf(raised[h], softmax.max[h]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) raised[h] = fmaxf(raised[h], __shfl_xor_sync(~0u, raised[h], step));
      const float factor = Rescale(softmax.max[h], raised[h]);
      softmax.max[h] = raised[h];
      softmax.sum[h] *= factor;
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        out.o[j][h] *= factor;
        out.o[j][h + 2] *= factor;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    s[i] = Exp2(s[i] - softmax.max[i & 1]);
    softmax.sum[i & 1] += s[i];
  }
}

// A warp's loads, ahead of its products: slab after slab, K and V of a group of 16 tokens in turn.
template <typename Kv, int D>
struct Loader {
  const CacheView<Kv, D>& view;
  uint32_t ring;
  int lane;
  int token;  // of the next slab
  int32_t page;
  const uint8_t* rows = nullptr;  // K of the group whose V comes next
  int slot = 0;

  __device__ __forceinline__ void Keys() {
    if (token < view.end) {
      rows = view.Row(page, token);
      page = view.PageOf(token + kStride);
      CopySlab(ring + slot, view, rows, token, lane);
    }
    Close();
  }
  __device__ __forceinline__ void Values() {
    if (token < view.end) CopySlab(ring + slot, view, rows + view.value_offset, token, lane);
    token += kStride;
    Close();
  }

 private:
  __device__ __forceinline__ void Close() {
    CommitCopies();
    slot += Slab<Kv, D>::kBytes;
    if (slot == kSlabs<Kv, D> * Slab<Kv, D>::kBytes) slot = 0;
  }
};

template <typename Kv, int D, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, 2) ExactKernel(const __grid_constant__ DecodeLaunch launch) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  constexpr int kWait = kSlabs<Kv, D> - 1;
  constexpr bool kEven = kSlabs<Kv, D> % 2 == 0;
  const WorkUnit work = launch.work[blockIdx.y];
  const DeviceItem& item = launch.items[work.item];
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4;

  const CacheView<Kv, D> view(launch, item, work, kv_head);
  const uint32_t ring = SharedAddress(bytes) + warp * (kSharedBytes<Kv, D> / kWarps);
  int token = view.begin / kSlabRows * kSlabRows + warp * kSlabRows;
  Loader<Kv, D> loader{view, ring, lane, token, view.PageOf(token)};
  WaitForEarlierKernel();  // what was read up to here came from the host
#pragma unroll
  for (int i = 0; i < kSlabs<Kv, D>; ++i) i % 2 == 0 ? loader.Keys() : loader.Values();
  QueryFragment<D> q[kBlocks];
  LoadQueries<Kv, D, kBlocks>(q, launch, item, kv_head, lane);
  const Scorer scorer(item, kv_head);

  int slot = 0;
  const auto next_slot = [&] {
    slot += Slab<Kv, D>::kBytes;
    if (slot == kRingBytes<Kv, D>) slot = 0;
    __syncwarp();
  };
  RunningSoftmax softmax[kBlocks];
  OutputFragment<D> out[kBlocks] = {};
#pragma unroll 1
  for (; token < view.end; token += kStride) {
    float s[kBlocks][4];
    WaitCopies<kWait>();
    Scores<Kv, D, kBlocks>(s, ring + slot, q, lane);
    next_slot();
    kEven ? loader.Keys() : loader.Values();
    WeightFragment p[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[block][i] = view.visible(token + r + 4 * (i & 2)) ? scorer(s[block][i]) : kNegativeInfinity;
      }
      Weigh<D>(s[block], softmax[block], out[block]);
      p[block] = {Transpose8x8(Pack<Compute<Kv>>(s[block][0], s[block][1])),
                  Transpose8x8(Pack<Compute<Kv>>(s[block][2], s[block][3]))};
    }
    WaitCopies<kWait>();
    Accumulate<Kv, D, kBlocks>(out, ring + slot, p, lane);
    next_slot();
    kEven ? loader.Values() : loader.Keys();
  }

  WaitCopies<0>();
  LetLaterKernelStart();
  SplitPlace place(launch, item, work.item, kv_head);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    MergeWarps<Kv, D, kWarps, 8>(bytes, kSharedBytes<Kv, D> / kWarps, out[block], softmax[block], launch, item,
                                 work.split, kv_head, block);
  }
  MergeSplits<D, kWarps, kSharedBytes<Kv, D>>(bytes, launch, item, kv_head, place);
}

struct Launcher {
  const DecodeLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {
    return LaunchDecode(ExactKernel<Kv, D, kBlocks>, launch, 32 * kWarps, kSharedBytes<Kv, D>, stream);
  }
};

}  // namespace

cudaError_t LaunchExact(const DecodeLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch, Launcher{launch, stream});
}

}  // namespace santa::cuda
