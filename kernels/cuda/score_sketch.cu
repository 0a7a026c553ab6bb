// SKETCHED's scores: the sketch of K of every full page once, codes of 8 bits to scratch. The tokens of a page that is
// not full have no sketch: their scores are exact.
//
// Grid: (key/value head, work). A block takes some splits; each warp takes every kWarps-th block of 64 tokens of one
// after the other, whose sketch asynchronous copies bring into a ring of its own, a few blocks ahead. Codes become
// halves 1024 + code (or 1024
// + 16 code) by one logic instruction and enter the product as they are; the columns' steps are multiplied into the
// queries, and two more products of the queries bring what is to be added: the columns' smallest numbers, and what the
// 1024 have added.
#include <algorithm>

#include "kernels/cuda/cache_view.cuh"
#include "kernels/cuda/group_inclusion.cuh"
#include "kernels/cuda/group_launch.cuh"
#include "kernels/cuda/group_scores.cuh"
#include "kernels/cuda/key_rows.cuh"
#include "kernels/cuda/sketch_layout.h"

namespace santa::cuda {
namespace {

// As many as there is shared memory for, whatever the page size.
template <int D>
constexpr int kWarps = D <= 128 ? 8 : 4;
constexpr int kStages = 3;
constexpr uint32_t kHalves1024 = 0x64006400;

// A block of 64 tokens of one head: parts of one page, or several whole ones, each with its codes and columns.
template <int D>
struct Geometry {
  int part_tokens, parts;

  explicit __host__ __device__ Geometry(int page_shift)
      : part_tokens(page_shift < 6 ? 1 << page_shift : sampling::kCodeBlock),
        parts(sampling::kCodeBlock / part_tokens) {}
  __host__ __device__ int part_bytes() const { return part_tokens / 16 * SketchSlabBytes(D) + SketchColumnBytes(D); }
  __host__ __device__ int stage_bytes() const { return parts * part_bytes(); }
};

__device__ __forceinline__ uint32_t Multiply(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// The group's queries in half precision, the largest element in [16, 32), with the factor that this took.
template <int D, int kBlocks>
__device__ __forceinline__ float LoadScaledQueries(uint2 (&q)[kBlocks][D / 16], const DecodeLaunch& launch,
                                                   const DeviceItem& item, int kv_head, int lane) {
  const int r = lane / 4, c = lane % 4;
  const bool bf16 = launch.dtype == DType::kBFloat16;
  float largest = 0;
  float2 pairs[2];
  const auto load = [&](int block, int step) {
    const int head = 8 * block + r;
    const auto* row =
        static_cast<const uint16_t*>(item.q) + static_cast<size_t>(kv_head * launch.group_size + head) * D;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint16_t* at = row + 16 * step + 2 * c + 8 * i;
      const uint32_t two = head < launch.group_size ? *reinterpret_cast<const uint32_t*>(at) : 0;
      pairs[i] = bf16 ? __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&two))
                      : __half22float2(*reinterpret_cast<const __half2*>(&two));
    }
  };
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      load(block, step);
#pragma unroll
      for (int i = 0; i < 2; ++i) largest = fmaxf(largest, fmaxf(fabsf(pairs[i].x), fabsf(pairs[i].y)));
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  // A power of two, from the exponent alone; 1 for a query of zeros.
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
  const float factor =
      exponent == 0 ? 1.0f : __uint_as_float(static_cast<uint32_t>(max(1, 127 + 4 - (exponent - 127))) << 23);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      load(block, step);
      q[block][step] = {Pack<__half>(pairs[0].x * factor, pairs[0].y * factor),
                        Pack<__half>(pairs[1].x * factor, pairs[1].y * factor)};
    }
  }
  return factor;
}

// One page's queries: multiplied by its columns' steps, and what is to be added to every score.
template <int D, int kBlocks>
struct PageQueries {
  uint2 q[kBlocks][D / 16];
  float add[kBlocks][2];  // of heads 8 block + 2c, + 1

  __device__ __forceinline__ PageQueries(const uint2 (&plain)[kBlocks][D / 16], const unsigned char* columns,
                                         int lane) {
    float low[kBlocks][4] = {}, excess[kBlocks][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint4 column = reinterpret_cast<const uint4*>(columns)[4 * step + lane % 4];
      const uint32_t upper = Multiply(column.y, 0x2c002c00);  // 1 / 16: those codes are 16 times too large
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const uint2 mine = plain[block][step];
        q[block][step] = {Multiply(mine.x, column.x), Multiply(mine.y, upper)};
        Mma<__half>(low[block], column.z, column.z, column.w, column.w, mine.x, mine.y);
        Mma<__half>(excess[block], kHalves1024, kHalves1024, kHalves1024, kHalves1024, q[block][step].x,
                    q[block][step].y);
      }
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      add[block][0] = low[block][0] - excess[block][0];
      add[block][1] = low[block][1] - excess[block][1];
    }
  }
};

// Dot products of a slab's sketch.
template <int D, int kBlocks>
__device__ __forceinline__ void ScoreSlab(float (&s)[kBlocks][4], const unsigned char* codes,
                                          const PageQueries<D, kBlocks>& page, int lane) {
  constexpr int kOfLoad = StepsOfLoad(D);
  using Load = std::conditional_t<kOfLoad == 4, uint4, uint2>;
  float even[kBlocks][4] = {}, odd[kBlocks][4] = {};
#pragma unroll
  for (int load = 0; load < D / 16 / kOfLoad; ++load) {
    const Load words = reinterpret_cast<const Load*>(codes)[load * 32 + lane];
#pragma unroll
    for (int i = 0; i < kOfLoad; ++i) {
      const uint32_t word = reinterpret_cast<const uint32_t*>(&words)[i], upper = word >> 8;
      const uint32_t a0 = (word & 0x000f000f) | kHalves1024, a2 = (word & 0x00f000f0) | kHalves1024;
      const uint32_t a1 = (upper & 0x000f000f) | kHalves1024, a3 = (upper & 0x00f000f0) | kHalves1024;
      const int step = load * kOfLoad + i;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        Mma<__half>(i % 2 ? odd[block] : even[block], a0, a1, a2, a3, page.q[block][step].x, page.q[block][step].y);
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[block][i] = even[block][i] + odd[block][i] + page.add[block][i & 1];
  }
}

// Where the sketches of one head's pages lie.
template <int D>
struct SketchView {
  const uint8_t* sketch;
  const int32_t* page_table;
  size_t page_bytes;    // of all heads
  int page_shift, end;  // end: of full pages

  __device__ SketchView(const DecodeLaunch& launch, const DeviceItem& item, int kv_head)
      : sketch(static_cast<const uint8_t*>(item.sketch) + kv_head * SketchHeadBytes(D, 1 << launch.page_shift)),
        page_table(item.page_table),
        page_bytes(launch.num_kv_heads * SketchHeadBytes(D, 1 << launch.page_shift)),
        page_shift(launch.page_shift),
        end(FullPagesEnd(item, launch.page_shift)) {}

  // Starts copying what there is of a block into a stage.
  __device__ __forceinline__ void CopyBlock(uint32_t stage, const Geometry<D>& geometry, int block, int lane) const {
    if (geometry.parts > 1) return CopyPages(stage, geometry, block, lane);
    const int token = block * sampling::kCodeBlock;
    if (token >= end) return;
    const uint8_t* page = sketch + __ldg(page_table + (token >> page_shift)) * page_bytes;
    const uint8_t* codes = page + (token & ((1 << page_shift) - 1)) / 16 * SketchSlabBytes(D) + 16 * lane;
    const uint8_t* columns = page + (1 << page_shift) / 16 * SketchSlabBytes(D) + 16 * lane;
    constexpr int kCodeBytes = kBlockSlabs * SketchSlabBytes(D);
    static_assert(kCodeBytes % (16 * 32) == 0);
#pragma unroll
    for (int at = 0; at < kCodeBytes; at += 16 * 32) StreamAsync16(stage + 16 * lane + at, codes + at, true);
#pragma unroll
    for (int at = 0; at < SketchColumnBytes(D); at += 16 * 32) {
      if (at + 16 * lane < SketchColumnBytes(D)) StreamAsync16(stage + kCodeBytes + 16 * lane + at, columns + at, true);
    }
  }

 private:
  // Of pages shorter than a block.
  __device__ __forceinline__ void CopyPages(uint32_t stage, const Geometry<D>& geometry, int block, int lane) const {
    for (int part = 0; part < geometry.parts; ++part) {
      const int token = block * sampling::kCodeBlock + part * geometry.part_tokens;
      if (token >= end) break;
      const uint8_t* page = sketch + __ldg(page_table + (token >> page_shift)) * page_bytes;
      const int in_page = token & ((1 << page_shift) - 1);
      const uint8_t* codes = page + in_page / 16 * SketchSlabBytes(D);
      const uint8_t* columns = page + (1 << page_shift) / 16 * SketchSlabBytes(D);
      const uint32_t to = stage + part * geometry.part_bytes();
      const int code_bytes = geometry.part_tokens / 16 * SketchSlabBytes(D);
      for (int at = 16 * lane; at < code_bytes; at += 16 * 32) StreamAsync16(to + at, codes + at, true);
      for (int at = 16 * lane; at < SketchColumnBytes(D); at += 16 * 32) {
        StreamAsync16(to + code_bytes + at, columns + at, true);
      }
    }
  }
};

// Exact dot products of a slab whose tokens have no sketch.
template <int kBlocks>
struct SlabScores {
  float s[kBlocks][4];
};
template <typename Kv, int D, int kBlocks>
__device__ __noinline__ SlabScores<kBlocks> ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item,
                                                         const BlockSplits& splits, int kv_head, int token, int lane) {
  const CacheView<Kv, D> view(launch, item, {.begin = splits.begin, .end = splits.end}, kv_head);
  KeyRows<Kv, D> rows;
  LoadSlabRows(rows, view, token, lane);
  QueryFragment<D> q[kBlocks];
  LoadRowQueries<Kv, D, kBlocks>(q, launch, item, kv_head, lane);
  SlabScores<kBlocks> scores;
  ScoreRows<Kv, D, kBlocks>(scores.s, rows, q);
  return scores;
}
template <int D, int kBlocks>
__device__ __forceinline__ SlabScores<kBlocks> ScoreExactly(const DecodeLaunch& launch, const DeviceItem& item,
                                                            const BlockSplits& splits, int kv_head, int token,
                                                            int lane) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return ScoreExactly<__nv_bfloat16, D, kBlocks>(launch, item, splits, kv_head, token, lane);
    case DType::kFloat16:
      return ScoreExactly<__half, D, kBlocks>(launch, item, splits, kv_head, token, lane);
    default:
      return ScoreExactly<__nv_fp8_e4m3, D, kBlocks>(launch, item, splits, kv_head, token, lane);
  }
}

template <int D, int kBlocks, int kRows>
__global__ void __launch_bounds__(32 * kWarps<D>, kBlocks == 1 && D <= 128 ? 2 : 1)
    ScoreSketchKernel(const __grid_constant__ GroupLaunch group) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  const DecodeLaunch& launch = group.decode;
  __shared__ SplitSums<kWarps<D>, 8 * kBlocks> shared;
  if (!BlockSplits::IsFirst(group)) return WaitForEarlierKernel();
  const int item_index = launch.work[blockIdx.y].item;
  const DeviceItem& item = launch.items[item_index];
  const BlockSplits splits(group, item);
  const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const SketchView<D> sketches(launch, item, kv_head);
  const GroupArrays arrays = group.arrays[item_index];
  const Geometry<D> geometry(launch.page_shift);
  const int stage_bytes = geometry.stage_bytes();
  unsigned char* ring = bytes + warp * kStages * stage_bytes;

  BlockCursor<kWarps<D>> cursor(splits, warp), ahead = cursor;
  int ahead_at = 0, at = 0;
  const auto next = [stage_bytes](int stage_at) {
    return stage_at + stage_bytes == kStages * stage_bytes ? 0 : stage_at + stage_bytes;
  };
  const auto copy_ahead = [&] {
    if (!ahead.done()) {
      sketches.CopyBlock(SharedAddress(ring) + ahead_at, geometry, ahead.block, lane);
      ahead.Advance(splits, warp);
    }
    ahead_at = next(ahead_at);
    CommitCopies();
  };
  WaitForEarlierKernel();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy_ahead();
  uint2 q[kBlocks][D / 16];
  const float factor = LoadScaledQueries<D, kBlocks>(q, launch, item, kv_head, lane);
  const float soft_cap = item.soft_cap * kLog2E, scale = Scorer(item, kv_head).scale / factor;
  WarpSums<kBlocks> sums;
  int split = 0;  // that the sums are of
#pragma unroll 1
  for (; !cursor.done(); cursor.Advance(splits, warp), at = next(at)) {
    for (; split < cursor.split; ++split) KeepSums<kRows>(shared, sums, split, warp, lane);
    copy_ahead();
    WaitCopies<kStages - 1>();
    const unsigned char* stage = ring + at;
    const int block = cursor.block, first = block * sampling::kCodeBlock;
    BlockScores<kBlocks, kRows> s;
    const auto take = [&](int slab, const float(&dots)[kBlocks][4]) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) Share<kRows>(dots[b], s[slab][b], lane);
    };
    const auto score = [&](const PageQueries<D, kBlocks>& page, int slab, const unsigned char* codes) {
      float dots[kBlocks][4];
      ScoreSlab<D, kBlocks>(dots, codes, page, lane);
      take(slab, dots);
    };
    if (geometry.parts == 1 && first < sketches.end) {
      const PageQueries<D, kBlocks> page(q, stage + kBlockSlabs * SketchSlabBytes(D), lane);
#pragma unroll
      for (int slab = 0; slab < kBlockSlabs; ++slab) score(page, slab, stage + slab * SketchSlabBytes(D));
    } else {
#pragma unroll
      for (int slab = 0; slab < kBlockSlabs; ++slab) {
        const int token = first + slab * kSlabRows;
        if (token < sketches.end) {
          const int part = slab * kSlabRows / geometry.part_tokens;
          const unsigned char* codes = stage + part * geometry.part_bytes();
          const PageQueries<D, kBlocks> page(q, codes + geometry.part_tokens / 16 * SketchSlabBytes(D), lane);
          score(page, slab, codes + (slab - part * geometry.part_tokens / kSlabRows) * SketchSlabBytes(D));
        } else {
          float dots[kBlocks][4] = {};
          if (token < splits.end) {
            const SlabScores<kBlocks> exact = ScoreExactly<D, kBlocks>(launch, item, splits, kv_head, token, lane);
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
              for (int i = 0; i < 4; ++i) dots[b][i] = exact.s[b][i] * factor;
            }
          }
          take(slab, dots);
        }
      }
    }
    __syncwarp();  // the stage has been read
    ScaleBlock<kBlocks, kRows>(s, scale, soft_cap, first, splits.begin, splits.end, lane);
    WriteBlock<uint8_t, kBlocks, kRows>(s, arrays.codes(kv_head, block), arrays.block_max(kv_head, block), sums,
                                        launch.group_size, lane);
  }
  for (; split < splits.count; ++split) KeepSums<kRows>(shared, sums, split, warp, lane);
  WaitCopies<0>();
  LetLaterKernelStart();
  FinishSplits(shared, arrays, kv_head, splits.work->split, splits.count, launch.group_size);
}

struct Launcher {
  const GroupLaunch& launch;
  cudaStream_t stream;

  template <typename Kv, int D, int kBlocks>
  cudaError_t Run() const {  // one kernel for all types of cache
    const int shared_bytes = kWarps<D> * kStages * Geometry<D>(launch.decode.page_shift).stage_bytes();
    const auto kernel = kBlocks == 1 && launch.decode.group_size <= 4 ? ScoreSketchKernel < D, kBlocks,
               kBlocks == 1 ? 1 : 2 > : ScoreSketchKernel<D, kBlocks, 2>;
    return LaunchGroup(kernel, launch, 32 * kWarps<D>, shared_bytes, stream);
  }
};

}  // namespace

cudaError_t LaunchScoreSketch(const GroupLaunch& launch, cudaStream_t stream) {
  return Dispatch(launch.decode, Launcher{launch, stream});
}

}  // namespace santa::cuda
