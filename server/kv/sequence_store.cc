#include "server/kv/sequence_store.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace santa {
namespace {

// Invariant: pages and table have ceil(longest layer / page_size) entries, so that every page of a table holds tokens.
struct Sequence {
  SequenceHandle handle;
  std::string tenant;
  std::vector<int64_t> lengths;
  std::vector<PageRef> pages;
  std::vector<int32_t> table;  // the ids of `pages`, kept apart so that a plan copies one contiguous run
  uint64_t sampling_key = 0;
  int64_t truncations = 0;
  absl::Duration lease;
  absl::Time expires;
  absl::Time due;  // where it stands in the lease queue; at most `expires`

  int64_t complete() const { return *std::min_element(lengths.begin(), lengths.end()); }
  int64_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
};

// Never 0. From the kernel's generator, so that one tenant cannot derive another's handles from its own.
uint64_t RandomNonZero() {
  uint64_t value = 0;
  if (getrandom(&value, sizeof(value), 0) != sizeof(value)) {
    value = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()) * 0x9e3779b97f4a7c15u;
  }
  return value == 0 ? 1 : value;
}

// Under the caller's lock use_count() can only be too high (a page dropped elsewhere this moment): a copy too many
// then, never a shared page written.
bool IsShared(const PageRef& page) { return page.use_count() > 1; }

}  // namespace

struct SequenceStore::State {
  State(int32_t layers, int32_t tokens_per_page, const StoreLimits& store_limits, PagePool* page_pool)
      : num_layers(std::max(layers, 1)), page_size(tokens_per_page), limits(store_limits), pool(page_pool) {}

  const int32_t num_layers;
  const int32_t page_size;
  const StoreLimits limits;
  PagePool* const pool;

  // Guards all below. Sequences and pages are destroyed outside of it: a long table takes its time to give back.
  std::mutex mutex;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences;
  std::map<std::string, std::set<uint64_t>, std::less<>> ids_of_tenant;
  // One entry for each sequence, at Sequence::due. A renewal does not move it: Expire does, when it finds it there.
  std::set<std::pair<absl::Time, uint64_t>> lease_queue;
  uint64_t next_id = 1;

  int64_t PagesFor(int64_t tokens) const { return (tokens + page_size - 1) / page_size; }

  // The sequence or NOT_FOUND. Says no more than that: a tenant learns nothing of another's.
  absl::StatusOr<Sequence*> Find(std::string_view tenant, const SequenceHandle& handle, absl::Time now) {
    const auto it = sequences.find(handle.id);
    if (it == sequences.end() || it->second->handle != handle || it->second->tenant != tenant ||
        it->second->expires <= now) {
      return NotFound(handle);
    }
    return it->second.get();
  }

  // As Find, and renews the lease.
  absl::StatusOr<Sequence*> Use(std::string_view tenant, const SequenceHandle& handle, absl::Time now) {
    absl::StatusOr<Sequence*> found = Find(tenant, handle, now);
    if (found.ok()) (*found)->expires = std::max((*found)->expires, now + (*found)->lease);
    return found;
  }

  static absl::Status NotFound(const SequenceHandle& handle) {
    return absl::NotFoundError(absl::StrCat("no sequence of id ", handle.id, " and generation ", handle.generation,
                                            ": it was released, or its lease ran out, or it never was"));
  }

  absl::Status CheckLayer(int32_t layer) const {
    if (layer >= 0 && layer < num_layers) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("layer is ", layer, "; allowed is [0, ", num_layers, ")"));
  }

  absl::StatusOr<Sequence*> UseLayer(std::string_view tenant, const SequenceHandle& handle, int32_t layer,
                                     absl::Time now) {
    if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
    return Use(tenant, handle, now);
  }

  void PlanRead(const Sequence& sequence, int32_t layer, ReadPlan* plan) const {
    plan->length = sequence.lengths[layer];
    plan->sampling_key = sequence.sampling_key;
    plan->truncations = sequence.truncations;
    plan->page_table.assign(sequence.table.begin(), sequence.table.begin() + PagesFor(plan->length));
  }

  // The sequence, if the range may be written to it as far as positions go.
  absl::StatusOr<Sequence*> UseRange(const TokenRange& range, absl::Time now) {
    if (range.position < 0 || range.count < 0) {
      return absl::InvalidArgumentError(absl::StrCat("position is ", range.position, " and the number of tokens ",
                                                     range.count, "; neither may be negative"));
    }
    absl::StatusOr<Sequence*> found = UseLayer(range.tenant, range.handle, range.layer, now);
    if (!found.ok()) return found;
    const int64_t length = (*found)->lengths[range.layer];
    if (range.position > length) {
      return absl::OutOfRangeError(absl::StrCat("position is ", range.position, " but layer ", range.layer,
                                                " has length ", length, ": the next token goes there"));
    }
    if (range.count > limits.max_tokens_per_sequence - range.position) {
      return absl::OutOfRangeError(absl::StrCat(
          "tokens [", range.position, ", ", range.position, " + ", range.count, ") pass the ",
          limits.max_tokens_per_sequence, " that a sequence may have; layer ", range.layer, " has length ", length));
    }
    return found;
  }

  absl::Status CheckLease(absl::Duration lease) const {
    if (lease > absl::ZeroDuration() && lease <= limits.max_lease) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("lease_seconds is ", absl::ToDoubleSeconds(lease),
                                                   "; allowed is (0, ", absl::ToDoubleSeconds(limits.max_lease), "]"));
  }

  absl::Status CheckRoom() const {
    if (static_cast<int64_t>(sequences.size()) < limits.max_sequences) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the server holds ", sequences.size(), " sequences already, as many as it may"));
  }

  // Adds a sequence; the caller has checked lease and room.
  Sequence* Add(std::string_view tenant, absl::Duration lease, uint64_t sampling_key, absl::Time now) {
    auto owned = std::make_unique<Sequence>();
    Sequence* sequence = owned.get();
    sequence->handle = {.id = next_id++, .generation = RandomNonZero()};
    sequence->tenant = std::string(tenant);
    sequence->lengths.assign(num_layers, 0);
    sequence->sampling_key = sampling_key != 0 ? sampling_key : RandomNonZero();
    sequence->lease = lease;
    sequence->expires = sequence->due = now + lease;
    const uint64_t id = sequence->handle.id;
    lease_queue.emplace(sequence->due, id);
    ids_of_tenant[sequence->tenant].insert(id);
    sequences.emplace(id, std::move(owned));
    return sequence;
  }

  // Takes a sequence that exists out of the books; the caller destroys it after unlocking.
  std::unique_ptr<Sequence> Remove(uint64_t id) {
    const auto it = sequences.find(id);
    std::unique_ptr<Sequence> sequence = std::move(it->second);
    sequences.erase(it);
    lease_queue.erase({sequence->due, id});
    const auto tenant = ids_of_tenant.find(sequence->tenant);
    tenant->second.erase(id);
    if (tenant->second.empty()) ids_of_tenant.erase(tenant);
    return sequence;
  }

  SequenceInfo Info(const Sequence& sequence, absl::Time now) const {
    SequenceInfo info;
    info.handle = sequence.handle;
    info.lengths = sequence.lengths;
    info.sampling_key = sequence.sampling_key;
    info.time_left = sequence.expires - now;
    info.lease = sequence.lease;
    info.num_pages = static_cast<int64_t>(sequence.pages.size());
    return info;
  }

  // Makes tokens [begin, end) of the sequence writable: copies of shared pages, new pages past the table's end. All or
  // nothing.
  absl::Status MakeWritable(int64_t begin, int64_t end, Sequence* sequence, std::vector<PageCopy>* copies) {
    const int64_t last = PagesFor(end);
    const auto existing = static_cast<int64_t>(sequence->pages.size());
    std::vector<int64_t> shared;
    for (int64_t i = begin / page_size; i < std::min(existing, last); ++i) {
      if (IsShared(sequence->pages[i])) shared.push_back(i);
    }
    const int64_t needed = static_cast<int64_t>(shared.size()) + std::max<int64_t>(last - existing, 0);
    if (needed == 0) return absl::OkStatus();
    std::vector<PageRef> fresh;
    fresh.reserve(needed);
    if (absl::Status status = pool->Allocate(needed, &fresh); !status.ok()) return status;
    size_t next = 0;
    for (const int64_t i : shared) {
      copies->push_back({.from = sequence->table[i], .to = fresh[next]->id()});
      sequence->table[i] = fresh[next]->id();
      sequence->pages[i] = std::move(fresh[next++]);
    }
    for (; next < fresh.size(); ++next) {
      sequence->table.push_back(fresh[next]->id());
      sequence->pages.push_back(std::move(fresh[next]));
    }
    return absl::OkStatus();
  }
};

int64_t SequenceInfo::num_tokens() const {
  return lengths.empty() ? 0 : *std::min_element(lengths.begin(), lengths.end());
}

SequenceStore::SequenceStore(int32_t num_layers, int32_t page_size, const StoreLimits& limits, PagePool* pool)
    : state_(std::make_unique<State>(num_layers, page_size, limits, pool)) {}

SequenceStore::~SequenceStore() = default;

absl::StatusOr<SequenceInfo> SequenceStore::Create(std::string_view tenant, absl::Duration lease, uint64_t sampling_key,
                                                   absl::Time now) {
  if (lease == absl::ZeroDuration()) lease = state_->limits.default_lease;
  if (absl::Status status = state_->CheckLease(lease); !status.ok()) return status;
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (absl::Status status = state_->CheckRoom(); !status.ok()) return status;
  return state_->Info(*state_->Add(tenant, lease, sampling_key, now), now);
}

absl::StatusOr<SequenceInfo> SequenceStore::Fork(std::string_view tenant, const SequenceHandle& parent_handle,
                                                 std::optional<int64_t> num_tokens, absl::Duration lease,
                                                 uint64_t sampling_key, absl::Time now) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  absl::StatusOr<Sequence*> found = state_->Use(tenant, parent_handle, now);
  if (!found.ok()) return found.status();
  const Sequence& parent = **found;
  if (lease == absl::ZeroDuration()) lease = parent.lease;
  if (absl::Status status = state_->CheckLease(lease); !status.ok()) return status;
  const int64_t keep = num_tokens.value_or(parent.complete());
  if (keep < 0 || keep > parent.complete()) {
    return absl::OutOfRangeError(absl::StrCat("num_tokens is ", keep, "; allowed is [0, ", parent.complete(),
                                              "], the parent's complete length"));
  }
  if (absl::Status status = state_->CheckRoom(); !status.ok()) return status;
  Sequence* child = state_->Add(tenant, lease, sampling_key != 0 ? sampling_key : parent.sampling_key, now);
  const int64_t pages = state_->PagesFor(keep);
  child->pages.assign(parent.pages.begin(), parent.pages.begin() + pages);
  child->table.assign(parent.table.begin(), parent.table.begin() + pages);
  child->lengths.assign(state_->num_layers, keep);
  return state_->Info(*child, now);
}

absl::StatusOr<SequenceInfo> SequenceStore::Truncate(std::string_view tenant, const SequenceHandle& handle,
                                                     int64_t num_tokens, absl::Time now) {
  std::vector<PageRef> dropped;  // outlives the lock
  std::lock_guard<std::mutex> lock(state_->mutex);
  absl::StatusOr<Sequence*> found = state_->Use(tenant, handle, now);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  if (num_tokens < 0 || num_tokens > sequence.longest()) {
    return absl::OutOfRangeError(absl::StrCat("num_tokens is ", num_tokens, "; allowed is [0, ", sequence.longest(),
                                              "], the length of the longest layer"));
  }
  if (num_tokens < sequence.longest()) ++sequence.truncations;
  for (int64_t& length : sequence.lengths) length = std::min(length, num_tokens);
  const int64_t pages = state_->PagesFor(num_tokens);
  dropped.assign(std::make_move_iterator(sequence.pages.begin() + pages),
                 std::make_move_iterator(sequence.pages.end()));
  sequence.pages.resize(pages);
  sequence.table.resize(pages);
  return state_->Info(sequence, now);
}

absl::Status SequenceStore::Release(std::string_view tenant, const SequenceHandle& handle) {
  std::unique_ptr<Sequence> released;  // outlives the lock
  std::lock_guard<std::mutex> lock(state_->mutex);
  const auto it = state_->sequences.find(handle.id);
  if (it == state_->sequences.end() || it->second->handle != handle || it->second->tenant != tenant) {
    return State::NotFound(handle);
  }
  released = state_->Remove(handle.id);
  return absl::OkStatus();
}

absl::StatusOr<SequenceInfo> SequenceStore::Get(std::string_view tenant, const SequenceHandle& handle, absl::Time now) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  absl::StatusOr<Sequence*> found = state_->Use(tenant, handle, now);
  if (!found.ok()) return found.status();
  return state_->Info(**found, now);
}

std::vector<SequenceInfo> SequenceStore::List(std::string_view tenant, uint64_t after_id, int limit,
                                              absl::Time now) const {
  std::vector<SequenceInfo> list;
  std::lock_guard<std::mutex> lock(state_->mutex);
  const auto ids = state_->ids_of_tenant.find(tenant);
  if (ids == state_->ids_of_tenant.end()) return list;
  for (auto it = ids->second.upper_bound(after_id);
       it != ids->second.end() && static_cast<int64_t>(list.size()) < limit; ++it) {
    const Sequence& sequence = *state_->sequences.at(*it);
    if (sequence.expires > now) list.push_back(state_->Info(sequence, now));
  }
  return list;
}

int64_t SequenceStore::Expire(absl::Time now) {
  std::vector<std::unique_ptr<Sequence>> expired;  // outlives the lock
  std::lock_guard<std::mutex> lock(state_->mutex);
  auto& queue = state_->lease_queue;
  while (!queue.empty() && queue.begin()->first <= now) {
    const uint64_t id = queue.begin()->second;
    Sequence& sequence = *state_->sequences.at(id);
    if (sequence.expires <= now) {
      expired.push_back(state_->Remove(id));
    } else {  // used since: due again when that use's lease ends
      queue.erase(queue.begin());
      sequence.due = sequence.expires;
      queue.emplace(sequence.due, id);
    }
  }
  return static_cast<int64_t>(expired.size());
}

int64_t SequenceStore::size() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return static_cast<int64_t>(state_->sequences.size());
}

SequenceStore::Batch::Batch(SequenceStore* store, absl::Time now)
    : state_(store->state_.get()), lock_(state_->mutex), now_(now) {}

absl::Status SequenceStore::Batch::Read(std::string_view tenant, const SequenceHandle& handle, int32_t layer,
                                        ReadPlan* plan) {
  absl::StatusOr<Sequence*> found = state_->UseLayer(tenant, handle, layer, now_);
  if (!found.ok()) return found.status();
  state_->PlanRead(**found, layer, plan);
  return absl::OkStatus();
}

absl::Status SequenceStore::Batch::Peek(std::string_view tenant, const SequenceHandle& handle, int32_t layer,
                                        ReadPlan* plan) {
  if (absl::Status status = state_->CheckLayer(layer); !status.ok()) return status;
  const absl::StatusOr<Sequence*> found = state_->Find(tenant, handle, now_);
  if (!found.ok()) return found.status();
  state_->PlanRead(**found, layer, plan);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SequenceStore::Batch::FindRepeated(const TokenRange& range, std::vector<int32_t>* page_table) {
  absl::StatusOr<Sequence*> found = state_->UseRange(range, now_);
  if (!found.ok()) return found.status();
  const Sequence& sequence = **found;
  const int64_t repeated = std::min(sequence.lengths[range.layer] - range.position, range.count);
  if (repeated > 0) {
    const int64_t pages = state_->PagesFor(range.position + repeated);
    page_table->assign(sequence.table.begin(), sequence.table.begin() + pages);
  }
  return repeated;
}

absl::Status SequenceStore::Batch::Append(const TokenRange& range, int64_t compared, AppendPlan* plan) {
  plan->copies.clear();
  absl::StatusOr<Sequence*> found = state_->UseRange(range, now_);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  int64_t& length = sequence.lengths[range.layer];
  const int64_t end = range.position + range.count;
  plan->repeated = std::min(length - range.position, range.count);
  plan->appended = range.count - plan->repeated;
  if (plan->repeated > compared) {
    return absl::AbortedError(absl::StrCat("layer ", range.layer, " grew to length ", length,
                                           " while the tokens from position ", range.position, " were compared"));
  }
  if (plan->appended > 0) {
    absl::Status status = state_->MakeWritable(length, end, &sequence, &plan->copies);
    if (!status.ok()) return status;
    length = end;
  }
  plan->sampling_key = sequence.sampling_key;
  plan->truncations = sequence.truncations;
  plan->page_table.assign(sequence.table.begin(), sequence.table.begin() + state_->PagesFor(end));
  return absl::OkStatus();
}

}  // namespace santa
