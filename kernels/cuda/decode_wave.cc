#include "kernels/cuda/decode_wave.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/exact.h"
#include "kernels/cuda/feature_queries.h"
#include "kernels/cuda/group_draw.h"
#include "kernels/cuda/query_convert.h"
#include "kernels/cuda/s2anta_flash.h"
#include "kernels/cuda/s2anta_prop.h"
#include "kernels/cuda/stored_scores.h"
#include "kernels/cuda/wave_upload.h"
#include "kernels/sampling/score.h"

namespace santa::cuda {
namespace {

constexpr size_t kMostByKernel = size_t{64} << 10;  // of what is packed: more than that comes by a copy

// Pages [first, first + count) of an item's table are what the kernels look at.
struct TableSlice {
  int64_t first;
  int64_t count;
};

TableSlice SliceOf(const ItemPlan& plan, int32_t page_size) {
  const int64_t first = plan.begin / page_size;
  return {first, (plan.end - 1) / page_size - first + 1};
}

}  // namespace

absl::StatusOr<DecodeWave> DecodeWave::Allocate(const KvLayout& layout, const WaveLimits& limits) {
  DecodeWave wave;
  wave.layout_ = layout;
  wave.limits_ = limits;
  const size_t numbers_bytes = wave.query_bytes(DType::kFloat32);
  const size_t heads_bytes = sizeof(float) * layout.num_query_heads;
  Regions regions;
  regions.Add(sizeof(DeviceItem) * limits.items);
  regions.Add(sizeof(StoredItem) * limits.items);
  regions.Add(sizeof(GroupArrays) * limits.items);
  regions.Add(sizeof(int32_t) * limits.items);
  regions.Add(sizeof(WorkUnit) * limits.splits);
  // Each table begins on 16 bytes.
  regions.Add(sizeof(int32_t) * (limits.table_entries + 4 * static_cast<size_t>(limits.items)));
  regions.Add(heads_bytes * limits.items);
  // Packed or fetched: between the two there may be a gap for alignment.
  regions.Add((numbers_bytes + 16) * limits.items + 256);
  regions.Add(sizeof(QueryFetch) * limits.items);
  regions.Add(sizeof(ReadCounts) * limits.items);
  regions.Add(sizeof(uint64_t) * FetchPieces(static_cast<int>(numbers_bytes)) * limits.items);
  regions.Add(heads_bytes * limits.items);
  regions.Add(heads_bytes * limits.items);
  regions.Add((numbers_bytes + 16) * limits.items);
  wave.word_at_ = regions.Add(sizeof(WaveWord));
  absl::StatusOr<PinnedMemory> pinned = AllocatePinned(regions.bytes(), "queries and answers");
  if (!pinned.ok()) return pinned.status();
  wave.pinned_ = *std::move(pinned);
  absl::StatusOr<DeviceMemory> device = AllocateDevice(regions.bytes(), "queries and answers");
  if (!device.ok()) return device.status();
  wave.device_ = *std::move(device);
  *wave.word() = {};
  absl::StatusOr<Event> uploaded = MakeEvent();
  if (!uploaded.ok()) return uploaded.status();
  wave.uploaded_ = *std::move(uploaded);
  wave.plans_.reserve(limits.items);
  wave.outputs_.reserve(limits.items);
  wave.order_.reserve(limits.items);
  return wave;
}

size_t DecodeWave::PlanItems(std::span<const DecodeItem> items) {
  plans_.clear();
  int64_t units = 0;
  int64_t entries = 0;
  int64_t stored = 0;
  for (const DecodeItem& item : items) {
    if (plans_.size() == static_cast<size_t>(limits_.items)) break;
    const ItemPlan plan = PlanItem(item, layout_);
    units += plan.num_units();
    entries += SliceOf(plan, layout_.page_size).count;
    stored += StoredBytes(plan, item, layout_);
    if (units > limits_.splits || entries > limits_.table_entries || stored > limits_.stored_bytes) break;
    plans_.push_back(plan);
  }
  return plans_.size();
}

// Decides where each region lies, and each item's answer.
void DecodeWave::Place(std::span<const DecodeItem> items) {
  size_t units = 0;
  size_t entries = 0;
  size_t query_total = 0, fetched_total = 0, faults_total = 0, o_total = 0;
  outputs_.clear();
  converts_queries_ = false;
  num_fetches_ = most_fetched_bytes_ = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const DecodeItem& item = items[i];
    units += plans_[i].num_units();
    entries += (SliceOf(plans_[i], layout_.page_size).count + 3) / 4 * 4;
    const size_t bytes = query_bytes(item.io_dtype);
    converts_queries_ |= item.io_dtype != QueryType(layout_.dtype);
    outputs_.push_back({.o = item.o,
                        .o_bytes = bytes,
                        .o_at = o_total,
                        .lse = item.lse,
                        .relative_standard_error = item.relative_standard_error,
                        .statistics = item.statistics,
                        .mapped = item.maps_answer,
                        .query_fault = item.query_fault,
                        .faults_at = faults_total,
                        .io_dtype = item.io_dtype});
    const size_t aligned = (bytes + 15) / 16 * 16;
    o_total += aligned;
    if (item.query_fault == nullptr) {
      query_total += aligned;
      continue;
    }
    fetched_total += aligned;
    outputs_.back().num_faults = FetchPieces(static_cast<int>(bytes));
    faults_total += sizeof(uint64_t) * outputs_.back().num_faults;
    ++num_fetches_;
    most_fetched_bytes_ = std::max(most_fetched_bytes_, static_cast<int32_t>(bytes));
  }
  Regions regions;
  items_at_ = regions.Add(sizeof(DeviceItem) * items.size());
  stored_at_ = regions.Add(sizeof(StoredItem) * items.size());
  arrays_at_ = regions.Add(sizeof(GroupArrays) * items.size());
  numbers_at_ = regions.Add(sizeof(int32_t) * items.size());
  work_at_ = regions.Add(sizeof(WorkUnit) * units);
  tables_at_ = regions.Add(sizeof(int32_t) * entries);
  sinks_at_ = regions.Add(sizeof(float) * layout_.num_query_heads * items.size());
  queries_at_ = regions.Add(query_total);
  rows_at_ = regions.Add(sizeof(ReadCounts) * items.size());
  upload_bytes_ = (rows_at_ + sizeof(ReadCounts) * items.size() + 15) / 16 * 16;
  fetched_at_ = regions.Add(fetched_total);
  fetches_at_ = regions.Add(sizeof(QueryFetch) * num_fetches_);
  faults_at_ = regions.Add(faults_total);
  lse_at_ = regions.Add(sizeof(float) * layout_.num_query_heads * items.size());
  errors_at_ = regions.Add(sizeof(float) * layout_.num_query_heads * items.size());
  const size_t o_at = regions.Add(o_total);
  for (Output& output : outputs_) {
    output.o_at += o_at;
    output.faults_at += faults_at_;
  }
}

// Structures are made where they go: one that is made elsewhere and copied has to wait, between the two, for the lines
// that were written before it, which come back from the device one by one.
void DecodeWave::Pack(std::span<const DecodeItem> items, const KvCache& cache) {
  const size_t heads_bytes = sizeof(float) * layout_.num_query_heads;
  size_t table_at = tables_at_;
  size_t query_at = queries_at_;
  size_t fetched_at = fetched_at_;
  size_t fetch_at = fetches_at_;
  int32_t first_split = 0;
  counts_rows_ = false;
  std::memset(host_at(rows_at_), 0, sizeof(ReadCounts) * items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const DecodeItem& item = items[i];
    const ItemPlan& plan = plans_[i];
    const TableSlice slice = SliceOf(plan, layout_.page_size);
    std::memcpy(host_at(table_at), item.page_table + slice.first, sizeof(int32_t) * slice.count);
    const size_t bytes = query_bytes(item.io_dtype);
    size_t& q_at = item.query_fault == nullptr ? query_at : fetched_at;
    if (item.query_fault == nullptr) {
      std::memcpy(host_at(q_at), item.q, bytes);
    } else {
      auto* const faults = reinterpret_cast<uint64_t*>(host_at(outputs_[i].faults_at));
      std::fill_n(faults, outputs_[i].num_faults, kNoFault);
      new (host_at(fetch_at)) QueryFetch{.from = item.q,
                                         .to = device_at(q_at),
                                         .faults = faults,
                                         .bytes = static_cast<int32_t>(bytes),
                                         .dtype = item.io_dtype};
      fetch_at += sizeof(QueryFetch);
    }
    if (item.sink_logits != nullptr) std::memcpy(host_at(sinks_at_ + heads_bytes * i), item.sink_logits, heads_bytes);
    const bool draws_rows = !ReadsAllRows(plan.kernel), draws_scores = plan.score_draws > 0;
    counts_rows_ |= item.statistics != nullptr && (draws_rows || draws_scores);
    ReadCounts* counts = item.statistics == nullptr ? nullptr : reinterpret_cast<ReadCounts*>(device_at(rows_at_)) + i;
    // What nobody is to see stays on the device.
    const auto answer_at = [&](void* wanted, size_t at) -> void* {
      return wanted == nullptr ? device_at(at) : item.maps_answer ? wanted : host_at(at);
    };
    new (host_at(items_at_ + sizeof(DeviceItem) * i)) DeviceItem{
        .layer = cache.layer(item.layer),
        .sketch = cache.sketch(item.layer),
        // Of the table only the slice is there; the kernels count pages from the sequence's start.
        .page_table = reinterpret_cast<const int32_t*>(device_at(table_at)) - slice.first,
        .q = device_at(q_at),
        .o = answer_at(item.o, outputs_[i].o_at),
        .lse = static_cast<float*>(answer_at(item.lse, lse_at_ + heads_bytes * i)),
        .sinks = item.sink_logits == nullptr ? nullptr
                                             : reinterpret_cast<const float*>(device_at(sinks_at_ + heads_bytes * i)),
        .kv_scales = cache.scales(item.layer),
        .relative_standard_error = item.relative_standard_error == nullptr || draws_scores
                                       ? nullptr
                                       : reinterpret_cast<float*>(host_at(errors_at_ + heads_bytes * i)),
        .rows_read = counts != nullptr && draws_rows ? &counts->value_rows : nullptr,
        .seed = item.options.seed,
        .sampling_key = item.sampling_key,
        .position = plan.end - 1,
        .begin = plan.begin,
        .end = plan.end,
        .first_split = first_split,
        .num_splits = plan.splits.count,
        .layer_index = item.layer,
        .sample_count = plan.sample_count,
        .target_relative_error = plan.target_relative_error,
        .scale = sampling::EffectiveScale(item.options.scale, layout_.head_dim),
        .soft_cap = item.options.soft_cap,
        .io_dtype = item.io_dtype,
        .score_draws = plan.score_draws,
        .features_read = counts != nullptr && draws_scores ? &counts->key_features : nullptr};
    if (item.statistics != nullptr) {
      // Where rows, or features of keys, are drawn, Deliver adds theirs.
      *item.statistics = MakeStatistics(layout_, item, draws_rows ? 0 : int64_t{plan.visible()} * layout_.num_kv_heads,
                                        draws_scores ? std::optional<int64_t>(0) : std::nullopt);
    }
    first_split += plan.splits.count;
    table_at += (slice.count + 3) / 4 * 4 * sizeof(int32_t);
    q_at += (bytes + 15) / 16 * 16;
  }
  OrderWork(plans_, order_, reinterpret_cast<WorkUnit*>(host_at(work_at_)), ranges_);
}

// What the kernels of stored scores need beside the items.
void DecodeWave::PackStored(std::span<const DecodeItem> items, uint8_t* scratch) {
  num_stored_ = 0;
  num_pilots_.fill(0);
  long_lines_ = false;
  most_prop_splits_ = 0;
  longest_split_ = 0;
  most_rows_ = 0;
  has_targets_ = false;
  for (size_t i = 0; i < items.size(); ++i) {
    const ItemPlan& plan = plans_[i];
    const AttentionOptions& options = items[i].options;
    uint8_t* const mine = scratch;
    scratch += StoredBytes(plan, items[i], layout_);
    if (DrawsByGroup(plan.kernel)) {
      const GroupArrays arrays = ArraysOf(mine, options.method, layout_, plan);
      std::memcpy(host_at(arrays_at_ + sizeof(arrays) * i), &arrays, sizeof(arrays));
      longest_split_ = std::max(longest_split_, plan.splits.tokens);
      most_rows_ = std::max(
          most_rows_, plan.has_target() ? plan.visible() : static_cast<int32_t>(plan.sample_count) + layout_.page_size);
      has_targets_ |= plan.has_target();
    }
    if (!StoresScores(plan.kernel)) continue;
    const StoredItem stored = {
        .method = StoredMethod(plan, items[i]), .budget_rounding = options.budget_rounding, .scratch = mine};
    std::memcpy(host_at(stored_at_ + sizeof(stored) * i), &stored, sizeof(stored));
    if (plan.kernel == Kernel::kS2antaProp) {
      most_prop_splits_ = std::max(most_prop_splits_, plan.splits.count);
    }
    if (plan.kernel != Kernel::kStoredScores) continue;
    const auto number = static_cast<int32_t>(i);
    std::memcpy(host_at(numbers_at_ + sizeof(number) * num_stored_), &number, sizeof(number));
    ++num_stored_;
    long_lines_ |= NeedsLongLines(options.method, plan.begin, plan.end, plan.sample_count);
  }
  // The order has those of one kernel one after another; those with a pilot are its last.
  for (size_t i = 0; i < items.size(); ++i) {
    if (!HasPilot(plans_[order_[i]].kernel)) continue;
    std::memcpy(host_at(numbers_at_ + sizeof(int32_t) * i), &order_[i], sizeof(int32_t));
    ++num_pilots_[static_cast<size_t>(plans_[order_[i]].kernel)];
  }
}

absl::StatusOr<size_t> DecodeWave::Fill(std::span<const DecodeItem> items, const KvCache& cache,
                                        const DecodeScratch& scratch) {
  const size_t count = PlanItems(items);
  if (count == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_tokens is ", items[0].num_tokens, "; it must fit the cache's pages"));
  }
  Place(items.first(count));
  Pack(items.first(count), cache);
  PackStored(items.first(count), scratch.stored());
  return count;
}

absl::Status DecodeWave::Queue(const DecodeScratch& scratch, const KvAppendLaunch& tokens, cudaStream_t stream,
                               cudaStream_t uploads) {
  absl::Status status = QueueUpload(tokens, uploads);
  // Not on one stream, where a kernel would overlap the end of the upload, even with an event in between: kernels take
  // what was uploaded for there before they wait.
  if (status.ok()) status = ToStatus(cudaEventRecord(uploaded_.get(), uploads), "cudaEventRecord");
  if (status.ok()) status = ToStatus(cudaStreamWaitEvent(stream, uploaded_.get()), "cudaStreamWaitEvent");
  if (status.ok()) status = QueueKernels(scratch, stream);
  if (!status.ok()) return status;
  static_assert(sizeof(ReadCounts) == sizeof(uint4));
  ++number_;
  return ToStatus(LaunchWaveEnd({.word = word(),
                                 .number = number_,
                                 .began = reinterpret_cast<const uint64_t*>(device_at(word_at_)),
                                 .last_end = scratch.last_end(),
                                 .counts = reinterpret_cast<const uint4*>(device_at(rows_at_)),
                                 .counts_to = reinterpret_cast<uint4*>(host_at(rows_at_)),
                                 .num_counts = counts_rows_ ? static_cast<int32_t>(plans_.size()) : 0},
                                stream),
                  "LaunchWaveEnd");
}

bool DecodeWave::ended() const { return std::atomic_ref(word()->ended).load(std::memory_order_acquire) == number_; }

absl::Status DecodeWave::QueueUpload(const KvAppendLaunch& tokens, cudaStream_t stream) {
  WaveUpload upload;
  upload.tokens = tokens;
  upload.began = reinterpret_cast<uint64_t*>(device_at(word_at_));
  upload.num_fetches = num_fetches_;
  upload.most_fetched_bytes = most_fetched_bytes_;
  upload.fetches = reinterpret_cast<const QueryFetch*>(host_at(fetches_at_));
  std::copy_n(upload.fetches, std::min(num_fetches_, kFetchesInLaunch), upload.first);
  absl::Status status;
  if (upload_bytes_ <= kMostByKernel) {
    upload.packed = pinned_.get();
    upload.to = device_.get();
    upload.packed_bytes = static_cast<int32_t>(upload_bytes_);
  } else {
    status = ToStatus(cudaMemcpyAsync(device_.get(), pinned_.get(), upload_bytes_, cudaMemcpyHostToDevice, stream),
                      "cudaMemcpyAsync");
  }
  return status.ok() ? ToStatus(LaunchWaveUpload(upload, stream), "LaunchWaveUpload") : status;
}

absl::Status DecodeWave::QueueKernels(const DecodeScratch& scratch, cudaStream_t stream) {
  absl::Status status;
  auto* items = reinterpret_cast<DeviceItem*>(device_at(items_at_));
  DecodeLaunch launch = scratch.launch(layout_);
  launch.items = items;
  if (layout_.key_order == KeyOrder::kFeatureMajor) {
    launch.feature_queries = static_cast<uint8_t*>(scratch.queries());
    status =
        ToStatus(LaunchFeatureQueries({.decode = launch, .num_items = static_cast<int32_t>(plans_.size())}, stream),
                 "LaunchFeatureQueries");
  } else if (converts_queries_) {
    status = ToStatus(LaunchQueryConvert({.items = items,
                                          .num_items = static_cast<int32_t>(plans_.size()),
                                          .converted = scratch.queries(),
                                          .num_numbers = layout_.num_query_heads * layout_.head_dim,
                                          .type = QueryType(layout_.dtype)},
                                         stream),
                      "LaunchQueryConvert");
  }
  const auto of = [&](Kernel kernel) {
    const WorkRange range = ranges_[static_cast<size_t>(kernel)];
    launch.work = reinterpret_cast<const WorkUnit*>(device_at(work_at_)) + range.first;
    launch.num_work = range.count;
    return range.count > 0;
  };
  if (status.ok() && of(Kernel::kExact)) status = ToStatus(LaunchExact(launch, stream), "LaunchExact");
  if (status.ok() && of(Kernel::kS2antaFlash))
    status = ToStatus(LaunchS2antaFlash(launch, stream), "LaunchS2antaFlash");
  const auto* stored = reinterpret_cast<const StoredItem*>(device_at(stored_at_));
  if (status.ok() && of(Kernel::kS2antaProp)) {
    status = ToStatus(LaunchS2antaProp({.decode = launch, .stored = stored, .most_splits = most_prop_splits_}, stream),
                      "LaunchS2antaProp");
  }
  if (status.ok() && of(Kernel::kStoredScores)) {
    status = ToStatus(LaunchStoredScores({.decode = launch,
                                          .stored = stored,
                                          .numbers = reinterpret_cast<const int32_t*>(device_at(numbers_at_)),
                                          .num_items = num_stored_,
                                          .long_lines = long_lines_},
                                         stream),
                      "LaunchStoredScores");
  }
  if (status.ok() && of(Kernel::kAllRows)) {
    status = ToStatus(LaunchAllRows({.decode = launch, .stored = stored}, stream), "LaunchAllRows");
  }
  const auto* pilots = reinterpret_cast<const int32_t*>(device_at(numbers_at_)) + plans_.size() -
                       std::accumulate(num_pilots_.begin(), num_pilots_.end(), 0);
  for (const Kernel kernel : kGroupKernels) {
    if (!status.ok() || !of(kernel)) continue;
    const int32_t num_pilots = num_pilots_[static_cast<size_t>(kernel)];
    status = ToStatus(LaunchGroupDraw({.decode = launch,
                                       .arrays = reinterpret_cast<const GroupArrays*>(device_at(arrays_at_)),
                                       .method = GroupMethod(kernel),
                                       .sketch = layout_.sketch,
                                       .longest_split = longest_split_,
                                       .most_rows = most_rows_,
                                       .has_targets = has_targets_,
                                       .pilots = num_pilots > 0 ? pilots : nullptr,
                                       .num_pilots = num_pilots},
                                      stream),
                      "LaunchGroupDraw");
    pilots += num_pilots;
  }
  return status;
}

}  // namespace santa::cuda
