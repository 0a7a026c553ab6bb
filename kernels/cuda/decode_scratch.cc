#include "kernels/cuda/decode_scratch.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <utility>

#include "kernels/cuda/feature_queries.h"
#include "kernels/cuda/stored_scores.h"

namespace santa::cuda {
namespace {

constexpr int64_t kMaxItems = 256;
constexpr int64_t kQueryBytes = int64_t{64} << 20;     // of a wave's queries
constexpr int64_t kPartialBytes = int64_t{128} << 20;  // of a wave's partial results
constexpr int64_t kTableEntries = int64_t{1} << 18;

}  // namespace

GroupArrays ArraysOf(uint8_t* scratch, Method method, const KvLayout& layout, const ItemPlan& plan) {
  return {scratch,
          method,
          layout.sketch,
          plan.has_target(),
          HasPilot(plan.kernel),
          layout.num_kv_heads,
          layout.group_size(),
          layout.head_dim,
          plan.begin,
          plan.end,
          plan.splits.count,
          plan.splits.tokens,
          plan.sample_count};
}

Method StoredMethod(const ItemPlan& plan, const DecodeItem& item) {
  return ReadsAllRows(plan.kernel) ? Method::kExact : item.options.method;
}

int64_t StoredBytes(const ItemPlan& plan, const DecodeItem& item, const KvLayout& layout) {
  if (DrawsByGroup(plan.kernel)) {
    return ArraysOf(nullptr, item.options.method, layout, plan).bytes();
  }
  if (!StoresScores(plan.kernel)) return 0;
  return StoredScratchBytes(StoredMethod(plan, item), layout.num_query_heads, plan.begin, plan.end, plan.sample_count);
}

WaveLimits WaveLimits::For(const KvLayout& layout, int32_t num_pages) {
  const int64_t numbers = static_cast<int64_t>(layout.num_query_heads) * layout.head_dim;
  const int64_t most_tokens =
      std::min<int64_t>(static_cast<int64_t>(num_pages) * layout.page_size, std::numeric_limits<int32_t>::max());
  const int64_t one_item = CutSplits(Kernel::kExact, layout, 0, static_cast<int32_t>(most_tokens)).count + 128;
  const int64_t affordable = kPartialBytes / (numbers * 4 + layout.num_query_heads * 20);
  const int64_t items = std::clamp<int64_t>(kQueryBytes / (numbers * 4), 1, kMaxItems);
  // SANTA with as many draws as there may be wants most, or where heads are wide a draw for a group.
  int64_t stored = StoredScratchBytes(Method::kSanta, layout.num_query_heads, 255, 255 + most_tokens,
                                      static_cast<uint32_t>(std::min<int64_t>(most_tokens, kMaxSampleCount)));
  for (const Method method : {Method::kCoordinated, Method::kSketched}) {
    stored = std::max(stored, ArraysOf(nullptr, method, layout,
                                       {.begin = 63,
                                        .end = static_cast<int32_t>(63 + most_tokens),
                                        .splits = {.tokens = kMaxBlockTokens, .count = static_cast<int32_t>(one_item)},
                                        .target_relative_error = 1})
                                  .bytes());
  }
  return {.items = static_cast<int32_t>(items),
          .splits = static_cast<int32_t>(std::clamp(affordable, one_item, one_item * items)),
          .table_entries = std::max<int64_t>(kTableEntries, num_pages),
          .stored_bytes = std::clamp(kStoredBytes, stored, stored * items)};
}

size_t QueryScratchBytes(const KvLayout& layout) {
  if (layout.key_order == KeyOrder::kFeatureMajor) {
    return layout.num_kv_heads * FeatureQueries::Bytes(layout.group_size(), layout.head_dim);
  }
  return size_t{2} * layout.num_query_heads * layout.head_dim;  // of 16 bits
}

absl::StatusOr<DecodeScratch> DecodeScratch::Allocate(const KvLayout& layout, const WaveLimits& limits,
                                                      cudaStream_t stream) {
  const size_t numbers = static_cast<size_t>(layout.num_query_heads) * layout.head_dim;
  const std::string purpose = "partial results";
  DecodeScratch scratch;
  scratch.num_tickets_ = size_t{2} * limits.items * layout.num_kv_heads;
  const size_t ticket_bytes = sizeof(unsigned) * (scratch.num_tickets_ + 1);  // and next_unit
  for (const auto& [memory, bytes] :
       {std::pair{&scratch.partial_o_, numbers * sizeof(float) * limits.splits},
        std::pair{&scratch.partial_max_sum_, sizeof(float2) * layout.num_query_heads * limits.splits},
        std::pair{&scratch.partial_errors_, sizeof(sampling::StepSums) * layout.num_query_heads * limits.splits},
        std::pair{&scratch.tickets_, ticket_bytes}, std::pair{&scratch.last_end_, sizeof(uint64_t)},
        std::pair{&scratch.queries_, QueryScratchBytes(layout) * limits.items},
        std::pair{&scratch.stored_, static_cast<size_t>(limits.stored_bytes)}}) {
    absl::StatusOr<DeviceMemory> allocated = AllocateDevice(bytes, purpose);
    if (!allocated.ok()) return allocated.status();
    *memory = *std::move(allocated);
  }
  for (const auto& [memory, bytes] :
       {std::pair{scratch.tickets_.get(), ticket_bytes}, std::pair{scratch.last_end_.get(), sizeof(uint64_t)}}) {
    if (absl::Status status = ToStatus(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync"); !status.ok()) {
      return status;
    }
  }
  return scratch;
}

DecodeLaunch DecodeScratch::launch(const KvLayout& layout) const {
  return {.partial_o = static_cast<float*>(partial_o_.get()),
          .partial_max_sum = static_cast<float2*>(partial_max_sum_.get()),
          .partial_errors = static_cast<sampling::StepSums*>(partial_errors_.get()),
          .tickets = static_cast<unsigned*>(tickets_.get()),
          .next_unit = static_cast<unsigned*>(tickets_.get()) + num_tickets_,
          .num_kv_heads = layout.num_kv_heads,
          .group_size = layout.group_size(),
          .head_dim = layout.head_dim,
          .page_shift = std::countr_zero(static_cast<uint32_t>(layout.page_size)),
          .dtype = layout.dtype};
}

}  // namespace santa::cuda
