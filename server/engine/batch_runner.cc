#include "server/engine/batch_runner.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace santa {

// One item on its way through the stages; its status tells whether it is still in.
struct BatchRunner::Work {
  Step* step = nullptr;
  StepItem* item = nullptr;
  int64_t repeated = 0;               // leading tokens that were stored when the batch began
  std::vector<int32_t> repeat_table;  // where
  AppendPlan append;                  // of an item that has tokens, or nothing but them
  ReadPlan read;                      // of one that only reads

  bool ok() const { return item->status.ok(); }
  bool writes() const { return item->tokens.count != 0 || item->q == nullptr; }
  TokenRange range() const {
    return {.tenant = step->tenant,
            .handle = item->sequence,
            .layer = step->layer,
            .position = item->tokens.position,
            .count = item->tokens.count};
  }
};

namespace {

// What the store cannot know of an item.
absl::Status CheckItem(const Backend& backend, const StepItem& item) {
  const NewTokens& tokens = item.tokens;
  if (tokens.count > 0 && (tokens.k == nullptr || tokens.v == nullptr)) {
    return absl::InvalidArgumentError("tokens without k or v");
  }
  if (item.q == nullptr) return absl::OkStatus();
  if (item.o == nullptr || item.lse == nullptr) return absl::InvalidArgumentError("a query without room for o or lse");
  if (item.position < 0) {
    return absl::InvalidArgumentError(absl::StrCat("position is ", item.position, "; it may not be negative"));
  }
  if (tokens.count > 0 && tokens.position >= 0 && item.position - tokens.position >= tokens.count) {
    return absl::InvalidArgumentError(absl::StrCat("the query's position is ", item.position,
                                                   ", past its own tokens, which are ", tokens.count, " from position ",
                                                   tokens.position));
  }
  // Any number may come as a position; what is past every cache is refused with the layer's length later on.
  constexpr int64_t kPastEveryCache = int64_t{1} << 48;
  return backend.Supports(item.options, std::min(item.position, kPastEveryCache) + 1);
}

// `count` of the tokens, from the one at index `first`.
KvAppend Slice(const KvLayout& layout, int32_t layer, const NewTokens& tokens, int64_t first, int64_t count,
               const int32_t* page_table) {
  const size_t row_bytes = static_cast<size_t>(layout.num_kv_heads) * layout.head_dim * SizeOf(tokens.dtype);
  const size_t offset = static_cast<size_t>(first) * row_bytes;
  return {.layer = layer,
          .page_table = page_table,
          .position = tokens.position + first,
          .num_tokens = count,
          .dtype = tokens.dtype,
          .k = static_cast<const char*>(tokens.k) + offset,
          .v = static_cast<const char*>(tokens.v) + offset,
          .mapped = tokens.mapped};
}

}  // namespace

BatchRunner::BatchRunner(Backend* backend, SequenceStore* store, PagePool* pool)
    : backend_(backend), store_(store), pool_(pool) {}

BatchRunner::~BatchRunner() = default;

void BatchRunner::Begin(absl::Time now, Run* run) {
  Collect(run->steps);
  run->num_items = static_cast<int32_t>(num_works_);
  run->decoding = false;
  // From before the first page table is taken until the device has its copies: from then on its own order keeps later
  // writes behind.
  const PagePool::Hold hold(pool_);
  FindRepeats(now);
  absl::Time started = absl::Now();
  run->status = CompareRepeats();
  run->device_time = absl::Now() - started;
  if (!run->status.ok()) return;
  Plan(now);
  started = absl::Now();
  run->status = Execute(&run->decoding);
  run->device_time += absl::Now() - started;
}

absl::Status BatchRunner::Finish(Run* run) {
  if (run->decoding) {
    double device_seconds = -1;
    run->status = backend_->AwaitDecode(&device_seconds);
    if (device_seconds >= 0) run->device_time = absl::Seconds(device_seconds);
  }
  absl::Status status;
  if (!run->status.ok()) {
    status = absl::UnavailableError(absl::StrCat("the device failed: ", run->status.ToString()));
  }
  for (Step* step : run->steps) {
    for (StepItem& item : step->items) {
      // One for each item: the steps go to different threads, which should share nothing.
      if (!status.ok() && item.status.ok()) item.status = absl::UnavailableError(status.message());
      if (!item.status.ok()) {
        item.query_fault = {};
      } else if (item.query_fault.element >= 0) {
        item.status = QueryIsNotFinite(item.query_fault);
      }
    }
    step->device_time = run->device_time;
    step->batch_items = run->num_items;
  }
  return status;
}

void BatchRunner::Collect(const std::vector<Step*>& steps) {
  num_works_ = 0;
  seen_.clear();
  for (Step* step : steps) {
    for (StepItem& item : step->items) {
      item.tokens_appended = 0;
      item.statistics = {};
      item.query_fault = {};
      item.status = CheckItem(*backend_, item);
      // The batch former keeps steps apart, so this can only be within a step.
      if (!seen_.insert({item.sequence, step->layer}).second) {
        item.status = absl::InvalidArgumentError(
            absl::StrCat("sequence ", item.sequence.id, " comes more than once in the step"));
      }
      if (num_works_ == works_.size()) works_.push_back(std::make_unique<Work>());
      Work& work = *works_[num_works_++];
      work.step = step;
      work.item = &item;
      work.repeated = 0;
    }
  }
}

void BatchRunner::FindRepeats(absl::Time now) {
  repeats_.clear();
  SequenceStore::Batch batch(store_, now);
  for (size_t i = 0; i < num_works_; ++i) {
    Work& work = *works_[i];
    if (!work.ok() || !work.writes()) continue;
    const absl::StatusOr<int64_t> repeated = batch.FindRepeated(work.range(), &work.repeat_table);
    work.item->status = repeated.status();
    if (!repeated.ok() || *repeated == 0) continue;
    work.repeated = *repeated;
    repeats_.push_back(&work);
  }
}

absl::Status BatchRunner::CompareRepeats() {
  if (repeats_.empty()) return absl::OkStatus();
  appends_.clear();
  for (const Work* work : repeats_) {
    appends_.push_back(
        Slice(backend_->layout(), work->step->layer, work->item->tokens, 0, work->repeated, work->repeat_table.data()));
  }
  const size_t count = repeats_.size();
  if (matches_size_ < count) {
    matches_ = std::make_unique<bool[]>(count);
    matches_size_ = count;
  }
  const std::span<bool> matches(matches_.get(), count);
  if (absl::Status status = backend_->Compare(appends_, matches); !status.ok()) return status;
  for (size_t i = 0; i < count; ++i) {
    if (matches[i]) continue;
    if (absl::Status status = NameFirstDifference(*repeats_[i]); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status BatchRunner::NameFirstDifference(const Work& work) {
  std::vector<KvAppend> tokens;
  for (int64_t t = 0; t < work.repeated; ++t) {
    tokens.push_back(Slice(backend_->layout(), work.step->layer, work.item->tokens, t, 1, work.repeat_table.data()));
  }
  const auto matches = std::make_unique<bool[]>(tokens.size());
  const std::span<bool> span(matches.get(), tokens.size());
  if (absl::Status status = backend_->Compare(tokens, span); !status.ok()) return status;
  const int64_t different = std::find(span.begin(), span.end(), false) - span.begin();
  work.item->status = absl::FailedPreconditionError(
      absl::StrCat("position ", work.item->tokens.position + different, " of layer ", work.step->layer,
                   " holds another token already: a retry must carry the same k and v"));
  return absl::OkStatus();
}

void BatchRunner::Plan(absl::Time now) {
  SequenceStore::Batch batch(store_, now);
  for (size_t i = 0; i < num_works_; ++i) {
    if (works_[i]->ok()) PlanItem(&batch, works_[i].get());
  }
}

void BatchRunner::PlanItem(SequenceStore::Batch* batch, Work* work) {
  StepItem& item = *work->item;
  if (work->writes()) {
    item.status = batch->Append(work->range(), work->repeated, &work->append);
    if (item.status.ok()) item.tokens_appended = work->append.appended;
    item.truncations = work->append.truncations;
    return;
  }
  const Step& step = *work->step;
  item.status = step.background ? batch->Peek(step.tenant, item.sequence, step.layer, &work->read)
                                : batch->Read(step.tenant, item.sequence, step.layer, &work->read);
  item.truncations = work->read.truncations;
  if (item.status.ok() && item.position >= work->read.length) {
    item.status =
        absl::OutOfRangeError(absl::StrCat("position is ", item.position, " but layer ", work->step->layer,
                                           " has length ", work->read.length, ": without k and v it must be below"));
  }
}

absl::Status BatchRunner::Execute(bool* decoding) {
  copies_.clear();
  appends_.clear();
  decodes_.clear();
  for (size_t i = 0; i < num_works_; ++i) {
    const Work& work = *works_[i];
    if (!work.ok()) continue;
    StepItem& item = *work.item;
    if (work.writes() && work.append.appended > 0) {
      copies_.insert(copies_.end(), work.append.copies.begin(), work.append.copies.end());
      appends_.push_back(Slice(backend_->layout(), work.step->layer, item.tokens, work.append.repeated,
                               work.append.appended, work.append.page_table.data()));
    }
    if (item.q == nullptr) continue;
    decodes_.push_back({.layer = work.step->layer,
                        .page_table = work.writes() ? work.append.page_table.data() : work.read.page_table.data(),
                        .num_tokens = item.position + 1,
                        .sampling_key = work.writes() ? work.append.sampling_key : work.read.sampling_key,
                        .options = item.options,
                        .sink_logits = item.sink_logits,
                        .io_dtype = item.io_dtype,
                        .q = item.q,
                        .o = item.o,
                        .lse = item.lse,
                        .statistics = &item.statistics,
                        .relative_standard_error = item.relative_standard_error.data(),
                        .query_fault = item.maps_query ? &item.query_fault : nullptr,
                        .maps_answer = item.maps_answer});
  }
  if (!copies_.empty()) {
    if (absl::Status status = backend_->CopyPages(copies_); !status.ok()) return status;
  }
  if (!appends_.empty()) {
    if (absl::Status status = backend_->Append(appends_); !status.ok()) return status;
  }
  if (decodes_.empty()) return absl::OkStatus();
  absl::Status status = backend_->BeginDecode(decodes_);
  *decoding = status.ok();
  return status;
}

}  // namespace santa
