// Where the kernels that go by a pilot have a warp's scores from: the sketch of K or K itself. Both give QuadScores
// (kernels/cuda/sketch_products.cuh).
#ifndef SANTA_KERNELS_CUDA_SCORE_STREAMS_CUH_
#define SANTA_KERNELS_CUDA_SCORE_STREAMS_CUH_

#include <algorithm>
#include <utility>

#include "kernels/cuda/sketch_scores.cuh"

namespace santa::cuda {

inline constexpr int kKeyBits = 4;     // of a key's code, where values have no sketch
inline constexpr int kPilotQuads = 2;  // of the largest group that has a pilot

// Dot products of single slabs from the sketch, and of tokens without one from K. kBits: of a key's code, and of a
// value's if values have a sketch.
template <int D, int kBits>
class SketchSlabs {
  using Geometry = SketchGeometry<D, kBits>;

 public:
  static constexpr bool kQueriesInRegisters = false;
  using Queries = SketchQueries<D, kPilotQuads>;  // in shared memory

  __device__ SketchSlabs(const GroupLaunch& group, const DeviceItem& item, int kv_head, Queries& queries)
      : launch_(group.decode),
        item_(item),
        kv_head_(kv_head),
        queries_(queries),
        sketches_(group.decode, item, kv_head, SketchesValues(group.sketch) ? kBits : 0) {}

  static __host__ __device__ constexpr int SlabBytes() { return Geometry::kSlabBytes + Geometry::kColumnBytes; }
  // Asks for the queries.
  __device__ __forceinline__ void AskForQueries(int) { early_.Ask(launch_, item_, kv_head_); }
  // The factor that dot products come in. scale: the item's. All threads call it, and __syncthreads() afterwards.
  __device__ __forceinline__ float TakeQueries(float scale) {
    return factor_ = early_.template Fill<kBits>(queries_, launch_, scale);
  }
  // The page of a slab's tokens, for Copy.
  __device__ __forceinline__ int32_t PageOf(int token) const {
    return token < sketches_.end ? __ldg(sketches_.page_table + (max(token, sketches_.begin) >> sketches_.page_shift))
                                 : 0;
  }
  // L2 is not asked to drop first what is copied: the next kernel goes through all of the sketch.
  __device__ __forceinline__ void Copy(uint32_t to, int32_t page, int token, int lane) const {
    if (token >= sketches_.end) return;
    const uint8_t* sketch = sketches_.sketch + page * sketches_.page_bytes + 16 * lane;
    const uint8_t* codes = sketch + (token & ((1 << sketches_.page_shift) - 1)) / kSlabRows * Geometry::kSlabBytes;
    const uint8_t* columns = sketch + (1 << sketches_.page_shift) / kSlabRows * Geometry::kSlabBytes;
    to += 16 * lane;
#pragma unroll
    for (int at = 0; at < Geometry::kSlabBytes; at += 16 * 32) CopyAsync16(to + at, codes + at);
    static_assert(Geometry::kSlabBytes % (16 * 32) == 0 && Geometry::kColumnBytes <= 16 * 32);
    if (16 * lane < Geometry::kColumnBytes) CopyAsync16(to + Geometry::kSlabBytes, columns);
  }
  // Of kSlabs slabs one after the other, of the tokens from tokens[i] on; what has no sketch is scored from K.
  template <int kSlabs>
  __device__ __forceinline__ void Score(float (&s)[kSlabs][2], const unsigned char* slabs, int quad,
                                        const int (&tokens)[kSlabs], int lane) const {
    // First all as if they had one.
    [&]<int... kI>(std::integer_sequence<int, kI...>) {
      const PageQueries<D, kBits> pages[] = {
          {queries_, quad, slabs + kI * SlabBytes() + Geometry::kSlabBytes, lane}...};
      ScoreSlabs<D, kBits>(s, slabs, SlabBytes(), pages, lane);
    }
    (std::make_integer_sequence<int, kSlabs>());
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) {
      if (tokens[i] < sketches_.end) continue;
      const float2 exact = ScoreExactly<D>(launch_, item_, item_.begin, item_.end, kv_head_, quad, tokens[i], lane);
      s[i][0] = Hold(exact.x * factor_);
      s[i][1] = Hold(exact.y * factor_);
    }
  }

 private:
  const DecodeLaunch& launch_;
  const DeviceItem& item_;
  const int kv_head_;
  Queries& queries_;
  const SketchView<D, kBits> sketches_;
  EarlyQueries<D, kPilotQuads> early_;
  float factor_ = 1;
};

// Likewise from K, of tokens [begin, end).
template <typename Kv, int D, int kQuads = kPilotQuads>
class KeySlabs {
 public:
  static constexpr bool kQueriesInRegisters = true;
  struct Queries {};

  __device__ KeySlabs(const DecodeLaunch& launch, const DeviceItem& item, int kv_head, int begin, int end)
      : launch_(launch), item_(item), kv_head_(kv_head), view_(launch, item, {.begin = begin, .end = end}, kv_head) {}
  __device__ KeySlabs(const GroupLaunch& group, const DeviceItem& item, int kv_head, Queries&)
      : KeySlabs(group.decode, item, kv_head, item.begin, item.end) {}

  static __host__ __device__ constexpr int SlabBytes() { return Slab<Kv, D>::kBytes; }
  __device__ __forceinline__ void AskForQueries(int lane) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const int head = kQuad * quad + lane / 8;  // in the even columns
      const auto* row = static_cast<const uint16_t*>(item_.q) + (kv_head_ * launch_.group_size + head) * D;
      LoadQuery<Kv, D>(q_[quad][0], lane / 4 % 2 == 0 && head < launch_.group_size ? row : nullptr, lane);
    }
  }
  __device__ __forceinline__ float TakeQueries(float) { return 1; }
  __device__ __forceinline__ int32_t PageOf(int token) const { return view_.PageOf(token); }
  __device__ __forceinline__ void Copy(uint32_t to, int32_t page, int token, int lane) const {
    CopySlab(to, view_, view_.Row(page, token), token, lane);
  }
  __device__ __forceinline__ void Copy(uint32_t to, int token, int lane) const { Copy(to, PageOf(token), token, lane); }
  template <int kSlabs>
  __device__ __forceinline__ void Score(float (&s)[kSlabs][2], const unsigned char* slabs, int quad,
                                        const int (&)[kSlabs], int lane) const {
#pragma unroll
    for (int i = 0; i < kSlabs; ++i) Score(s[i], slabs + i * SlabBytes(), quad, lane);
  }
  __device__ __forceinline__ void Score(float (&s)[2], const unsigned char* slab, int quad, int lane) const {
    float both[1][4];
    Scores<Kv, D, 1>(both, SharedAddress(slab), q_[quad], lane);
    s[0] = Hold(both[0][0]);
    s[1] = Hold(both[0][2]);
  }

 private:
  const DecodeLaunch& launch_;
  const DeviceItem& item_;
  const int kv_head_;
  const CacheView<Kv, D> view_;
  QueryFragment<D> q_[kQuads][1];
};

// Where pages hold whole blocks of 64 tokens: a block's codes, and the columns of its page.
template <int D, int kBits>
struct WholeBlock {
  using Geometry = SketchGeometry<D, kBits>;
  static constexpr int kCodeBytes = kBlockSlabs * Geometry::kSlabBytes, kBytes = kCodeBytes + Geometry::kColumnBytes;

  // Starts copying the one that begins with `token`, part of that page. offset: 0 for keys, SketchPartBytes for values.
  static __device__ __forceinline__ void Copy(uint32_t to, const SketchView<D, kBits>& sketches, int32_t page,
                                              int token, size_t offset, int lane) {
    const uint8_t* of_page = sketches.sketch + page * sketches.page_bytes + offset + 16 * lane;
    const int page_tokens = 1 << sketches.page_shift;
    const uint8_t* codes = of_page + (token & (page_tokens - 1)) * (Geometry::kSlabBytes / kSlabRows);
    constexpr int kStep = 16 * 32;
    to += 16 * lane;
    [&]<int... kAt>(std::integer_sequence<int, kAt...>) { (StreamAsync16At<kStep * kAt>(to, codes), ...); }
    (std::make_integer_sequence<int, kCodeBytes / kStep>());
    static_assert(kCodeBytes % kStep == 0 && Geometry::kColumnBytes <= kStep);
    if (16 * lane < Geometry::kColumnBytes) {
      StreamAsync16At<0>(to + kCodeBytes, of_page + page_tokens * (Geometry::kSlabBytes / kSlabRows));
    }
  }

  // The dot products of the group's first quad, of kAtOnce slabs in turns.
  template <int kAtOnce = kBlockSlabs, int kQuads>
  static __device__ __forceinline__ void Score(QuadScores& s, const SketchQueries<D, kQuads>& queries,
                                               const unsigned char* block, int lane) {
    const PageQueries<D, kBits> page[] = {{queries, 0, block + kCodeBytes, lane}};
#pragma unroll
    for (int slab = 0; slab < kBlockSlabs; slab += kAtOnce) {
      auto& some = reinterpret_cast<float(&)[kAtOnce][2]>(s[slab]);
      ScoreSlabs<D, kBits>(some, block + slab * Geometry::kSlabBytes, Geometry::kSlabBytes, page, lane);
    }
  }
};

// The blocks of 64 tokens of [begin, end) that a warp takes, one after the other from `first` on, `step` tokens apart;
// asynchronous copies are ahead of the products, once Begin has started the first.
template <int D>
class SketchBlocks {
 public:
  using Queries = SketchQueries<D, kPilotQuads>;
  static constexpr int kShortRing = 2, kLongRing = 4;  // blocks
  static constexpr int kQuads = kPilotQuads;           // of a group, at most
  static constexpr int kAtOnce = 3;                    // thread blocks of a multiprocessor
  static constexpr bool kOfAllTokens = false, kHasCommon = true;

  // Stages of rows (kernels/cuda/row_sums.cuh) that there is room for where the rings were.
  static __host__ __device__ int RowStages(const GroupLaunch& group) { return group.few_blocks ? 2 : 1; }
  static __host__ __device__ int RingBytes(const GroupLaunch& group) {
    return RingOf(group) * SketchGeometry<D, kKeyBits>(group.decode.page_shift).stage_bytes();
  }
  __device__ SketchBlocks(const GroupLaunch& group, const DeviceItem& item, int kv_head, int, int first, int end,
                          int step, const unsigned char* ring, Queries& queries, int lane)
      : launch_(group.decode),
        item_(item),
        kv_head_(kv_head),
        sketches_(group.decode, item, kv_head, 0),
        geometry_(group.decode.page_shift),
        queries_(queries),
        ring_(ring),
        stages_(RingOf(group)),
        end_(end),
        step_(step),
        ahead_(first),
        page_(PageOf(lane)) {}

  __device__ __forceinline__ void Begin(int lane) {
#pragma unroll 1
    for (int i = 0; i < stages_ - 1; ++i) CopyAhead<false>(lane);
  }

  // As of SketchSlabs.
  __device__ float LoadQueries(float scale, int) {
    return LoadSketchQueries<kKeyBits>(queries_, launch_, item_, kv_head_, 0, scale);
  }

  // The dot products of the next block, which begins with `first`: of as many quads as the group has. kCommon: pages
  // hold whole blocks, and the group is of one quad.
  template <bool kCommon>
  __device__ __forceinline__ void Next(QuadScores (&s)[kPilotQuads], int first, int lane) {
    CopyAhead<kCommon>(lane);
    if (stages_ == kShortRing) {
      WaitCopies<kShortRing - 1>();
    } else {
      WaitCopies<kLongRing - 1>();
    }
    if constexpr (kCommon) {
      WholeBlock<D, kKeyBits>::Score(s[0], queries_, ring_ + at_ * WholeBlock<D, kKeyBits>::kBytes, lane);
    } else {
#pragma unroll
      for (int quad = 0; quad < kPilotQuads; ++quad) {
        if (kQuad * quad >= launch_.group_size) break;
        ScoreSketched<D, kKeyBits>(s[quad], queries_, geometry_, ring_ + at_ * geometry_.stage_bytes(), quad, first,
                                   end_, lane);
      }
    }
    at_ = After(at_);
    __syncwarp();  // the stage has been read
  }

 private:
  static __host__ __device__ int RingOf(const GroupLaunch& group) { return group.few_blocks ? kLongRing : kShortRing; }
  __device__ __forceinline__ int After(int stage) const { return stage + 1 == stages_ ? 0 : stage + 1; }
  // Of the block that is so many after the next to be copied.
  __device__ __forceinline__ int32_t PageOf(int block) const {
    return sketches_.PageOf(geometry_, (ahead_ + block * step_) / sampling::kCodeBlock);
  }
  template <bool kCommon>
  __device__ __forceinline__ void CopyAhead(int lane) {
    if (ahead_ < end_) {
      if (num_copied_ == 32) {
        page_ = PageOf(lane);
        num_copied_ = 0;
      }
      const int32_t page = __shfl_sync(~0u, page_, num_copied_++);
      if constexpr (kCommon) {
        WholeBlock<D, kKeyBits>::Copy(SharedAddress(ring_) + ahead_at_ * WholeBlock<D, kKeyBits>::kBytes, sketches_,
                                      page, ahead_, 0, lane);
      } else {
        sketches_.CopyBlock(SharedAddress(ring_) + ahead_at_ * geometry_.stage_bytes(), geometry_,
                            ahead_ / sampling::kCodeBlock, page, 0, lane);
      }
      ahead_ += step_;
    }
    ahead_at_ = After(ahead_at_);
    CommitCopies();
  }

  const DecodeLaunch& launch_;
  const DeviceItem& item_;
  const int kv_head_;
  const SketchView<D, kKeyBits> sketches_;
  const SketchGeometry<D, kKeyBits> geometry_;
  Queries& queries_;
  const unsigned char* ring_;
  const int stages_, end_, step_;
  int ahead_, ahead_at_ = 0, at_ = 0;
  int32_t page_;        // of 32 blocks one after the other, one a lane, so that no copy waits for its page's number
  int num_copied_ = 0;  // of these
};

template <typename Kv, int D, int kMostQuads>
class KeyBlocks {
 public:
  struct Queries {};
  static constexpr int kQuads = kMostQuads;
  static constexpr int kAtOnce = kQuads == 1 ? 4 : 3;
  static constexpr int kRing = std::min(12, (kAtOnce == 4 ? 8192 : 12288) / Slab<Kv, D>::kBytes);  // slabs
  static constexpr bool kOfAllTokens = true;  // whether its softmax is the answer's
  static constexpr bool kHasCommon = false;

  static __host__ __device__ int RowStages(const GroupLaunch&) { return 2; }
  static __host__ __device__ int RingBytes(const GroupLaunch&) { return kRing * Slab<Kv, D>::kBytes; }
  __device__ KeyBlocks(const GroupLaunch& group, const DeviceItem& item, int kv_head, int begin, int first, int end,
                       int step, const unsigned char* ring, Queries&, int)
      : group_size_(group.decode.group_size),
        slabs_(group.decode, item, kv_head, begin, end),
        ring_(ring),
        end_(end),
        step_(step),
        ahead_(first) {}

  __device__ __forceinline__ void Begin(int lane) {
#pragma unroll 1
    for (int i = 0; i < kRing; ++i) CopyAhead(lane);
  }

  __device__ __forceinline__ float LoadQueries(float scale, int lane) {
    slabs_.AskForQueries(lane);
    return slabs_.TakeQueries(scale);
  }

  template <bool>
  __device__ __forceinline__ void Next(QuadScores (&s)[kQuads], int first, int lane) {
#pragma unroll
    for (int slab = 0; slab < kBlockSlabs; ++slab) {
      WaitCopies<kRing - 1>();
      __syncwarp();
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        if (kQuad * quad >= group_size_) break;
        slabs_.Score(s[quad][slab], ring_ + at_ * Slab<Kv, D>::kBytes, quad, lane);
      }
      at_ = (at_ + 1) % kRing;
      __syncwarp();
      CopyAhead(lane);
    }
  }

 private:
  // Slab after slab of one block, then of the next.
  __device__ __forceinline__ void CopyAhead(int lane) {
    if (ahead_ < end_) {
      slabs_.Copy(SharedAddress(ring_) + ahead_at_ * Slab<Kv, D>::kBytes, ahead_ + slab_ * kSlabRows, lane);
      slab_ = (slab_ + 1) % kBlockSlabs;
      if (slab_ == 0) ahead_ += step_;
    }
    ahead_at_ = (ahead_at_ + 1) % kRing;
    CommitCopies();
  }

  const int group_size_;
  KeySlabs<Kv, D, kQuads> slabs_;
  const unsigned char* ring_;
  const int end_, step_;
  int ahead_, slab_ = 0, ahead_at_ = 0, at_ = 0;
};

}  // namespace santa::cuda

#endif  // SANTA_KERNELS_CUDA_SCORE_STREAMS_CUH_
