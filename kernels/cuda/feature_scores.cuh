// A warp's products of a tile of 256 tokens with a group's queries, of keys that lie feature by feature. A lane has
// eight neighbouring tokens and adds up one feature after the other: of K only these features are read, for all heads
// at once, 16 bytes of a 16-bit one by a lane.
#ifndef SANTA_KERNELS_CUDA_FEATURE_SCORES_CUH_
#define SANTA_KERNELS_CUDA_FEATURE_SCORES_CUH_

#include <cstdint>

#include "kernels/cuda/feature_queries.h"
#include "kernels/cuda/slab.cuh"
#include "kernels/cuda/tile_draws.cuh"

namespace santa::cuda {

// The visible tokens [begin, end) of one split, for one key/value head.
struct FeatureView {
  const uint8_t* k;  // the head's K in page 0
  const int32_t* page_table;
  size_t page_bytes;
  int page_shift;
  int begin, end;
};

template <typename Kv>
__device__ __forceinline__ FeatureView MakeFeatureView(const DecodeLaunch& launch, const DeviceItem& item, int begin,
                                                       int end, int kv_head) {
  const size_t head_bytes = (static_cast<size_t>(launch.head_dim) << launch.page_shift) * sizeof(Kv);
  return {static_cast<const uint8_t*>(item.layer) + kv_head * head_bytes,
          item.page_table,
          2 * launch.num_kv_heads * head_bytes,
          launch.page_shift,
          begin,
          end};
}

// kTokens neighbouring tokens of one feature.
template <typename Kv, int kTokens>
struct FeatureStrip {
  static constexpr int kWords = kTokens * static_cast<int>(sizeof(Kv)) / 4;
  uint32_t word[kWords];

  // Of keys that are read once.
  __device__ __forceinline__ void Load(const uint8_t* from) {
    if constexpr (kWords == 4) {
      const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from));
      word[0] = four.x, word[1] = four.y, word[2] = four.z, word[3] = four.w;
    } else if constexpr (kWords == 2) {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
      word[0] = two.x, word[1] = two.y;
    } else {
      static_assert(kWords == 1);
      word[0] = __ldcs(reinterpret_cast<const uint32_t*>(from));
    }
  }

  __device__ __forceinline__ void ToFloats(float (&x)[kTokens]) const {
    if constexpr (sizeof(Kv) == 1) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32_t low, high;
        Widen(word[i], low, high);
        ToPair<__half>(low, &x[4 * i]);
        ToPair<__half>(high, &x[4 * i + 2]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) ToPair<Kv>(word[i], &x[2 * i]);
    }
  }

 private:
  template <typename T>
  static __device__ __forceinline__ void ToPair(uint32_t packed, float* x) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      x[0] = __uint_as_float(packed << 16);
      x[1] = __uint_as_float(packed & 0xffff0000u);
    } else {
      x[0] = __half2float(__ushort_as_half(static_cast<uint16_t>(packed)));
      x[1] = __half2float(__ushort_as_half(static_cast<uint16_t>(packed >> 16)));
    }
  }
};

// A group's queries in shared memory, for a group padded to kHeads = FeatureHeads(group_size).
template <typename Kv, int kHeads>
class FeatureProducts {
 public:
  static constexpr int kTokens = 8;  // of a lane, a tile's in all: as many sums for each head, in registers
  static constexpr int kAtOnce = kHeads > 8 ? 4 : 8;  // features on their way

  static SANTA_HOST_DEVICE int SharedBytes(int head_dim) { return head_dim * (1 + kHeads) * 4; }

  // Copies them to `shared`. All threads call it, after WaitForEarlierKernel().
  __device__ FeatureProducts(unsigned char* shared, const DecodeLaunch& launch, int item, int kv_head)
      : queries_(reinterpret_cast<float*>(shared)),
        offsets_(reinterpret_cast<int*>(queries_ + launch.head_dim * kHeads)) {
    const FeatureQueries from = FeatureQueriesOf(launch, item, kv_head);
    zeros_ = reinterpret_cast<const uint8_t*>(from.zeros());
    count_ = *from.count();
    // Up to a multiple of kAtOnce, as head_dim is; zeros past the last.
    const int padded = (count_ + kAtOnce - 1) / kAtOnce * kAtOnce;
    for (int i = threadIdx.x; i < padded; i += blockDim.x) {
      offsets_[i] = i < count_ ? (from.features()[i] << launch.page_shift) * static_cast<int>(sizeof(Kv)) : 0;
    }
    for (int i = threadIdx.x; i < padded * kHeads; i += blockDim.x) {
      queries_[i] = i < count_ * kHeads ? from.numbers()[i] : 0.0f;
    }
    __syncthreads();
  }

  // Calls sink(head, token, products of four tokens from there on) for all fours of the tile and all kHeads heads, each
  // once in the warp. Nothing is read of a lane's tokens where none of them is visible: zeros.
  template <typename Sink>
  __device__ __forceinline__ void OfTile(const FeatureView& view, int tile_begin, int lane, const Sink& sink) const {
    const int first = kTokens * lane, token = tile_begin + first;
    static_assert(32 * kTokens == kTileTokens);
    const bool visible = token < view.end && token + kTokens > view.begin;
    const int32_t page = __ldg(view.page_table + (min(max(token, view.begin), view.end - 1) >> view.page_shift));
    const uint8_t* keys =
        view.k + page * view.page_bytes + (token & ((1 << view.page_shift) - 1)) * static_cast<int>(sizeof(Kv));
    float sums[kHeads][kTokens] = {};
#pragma unroll 1
    for (int f = 0; f < count_; f += kAtOnce) {
      FeatureStrip<Kv, kTokens> strips[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        // Without a branch, so that all are asked for before the first is there.
        const uint8_t* key = keys + offsets_[f + i];
        strips[i].Load(visible & (f + i < count_) ? key : zeros_);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float x[kTokens];
        strips[i].ToFloats(x);
#pragma unroll
        for (int quad = 0; quad < kHeads; quad += 4) {
          const float4 q = *reinterpret_cast<const float4*>(queries_ + (f + i) * kHeads + quad);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            sums[quad][t] = fmaf(q.x, x[t], sums[quad][t]);
            sums[quad + 1][t] = fmaf(q.y, x[t], sums[quad + 1][t]);
            sums[quad + 2][t] = fmaf(q.z, x[t], sums[quad + 2][t]);
            sums[quad + 3][t] = fmaf(q.w, x[t], sums[quad + 3][t]);
          }
        }
      }
    }
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
#pragma unroll
      for (int t = 0; t < kTokens; t += 4) {
        sink(head, first + t, make_float4(sums[head][t], sums[head][t + 1], sums[head][t + 2], sums[head][t + 3]));
      }
    }
  }

 private:
  float* queries_;  // [count][kHeads]
  int* offsets_;    // [count]: bytes from a page's first feature
  int count_;
  const uint8_t* zeros_;
};

// launcher.RunFeatures<Kv, FeatureHeads of the group>() for the launch's cache, or cudaErrorNotSupported.
template <typename Kv, typename Launcher>
cudaError_t DispatchFeatureHeads(const DecodeLaunch& launch, const Launcher& launcher) {
  if (launch.group_size < 1 || launch.group_size > kMaxGroup) return cudaErrorNotSupported;
  switch (FeatureHeads(launch.group_size)) {
    case 4:
      return launcher.template RunFeatures<Kv, 4>();
    case 8:
      return launcher.template RunFeatures<Kv, 8>();
    default:
      return launcher.template RunFeatures<Kv, 16>();
  }
}
template <typename Launcher>
cudaError_t DispatchFeatures(const DecodeLaunch& launch, const Launcher& launcher) {
  switch (launch.dtype) {
    case DType::kBFloat16:
      return DispatchFeatureHeads<__nv_bfloat16>(launch, launcher);
    case DType::kFloat16:
      return DispatchFeatureHeads<__half>(launch, launcher);
    case DType::kFloat8E4M3:
      return DispatchFeatureHeads<__nv_fp8_e4m3>(launch, launcher);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_FEATURE_SCORES_CUH_
