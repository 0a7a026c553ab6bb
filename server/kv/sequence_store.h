// Sequences and their page tables: create, append, fork with copy-on-write, truncate, release, lease.
//
// Pure bookkeeping: knows page ids and token counts, never the memory behind a page nor the wire.
//
// A sequence has one page table for all its layers and a length for each layer (they differ while a step passes through
// the model). It belongs to a tenant, has a lease that every use renews, and a generation; the handle of a sequence
// that is gone, or of another tenant's, is NOT_FOUND.
#ifndef SANTA_SERVER_KV_SEQUENCE_STORE_H_
#define SANTA_SERVER_KV_SEQUENCE_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/kv/page_pool.h"

namespace santa {

struct SequenceHandle {
  uint64_t id = 0;
  uint64_t generation = 0;
  friend bool operator==(const SequenceHandle&, const SequenceHandle&) = default;
};

struct SequenceInfo {
  SequenceHandle handle;
  std::vector<int64_t> lengths;  // [num_layers]
  uint64_t sampling_key = 0;
  absl::Duration time_left;  // until the lease expires
  absl::Duration lease;
  int64_t num_pages = 0;

  int64_t num_tokens() const;  // tokens stored in every layer
};

struct StoreLimits {
  int64_t max_sequences = 0;
  int64_t max_tokens_per_sequence = 0;
  absl::Duration default_lease;
  absl::Duration max_lease;
};

// What a write of tokens [position, position + count) of one layer does, as decided by PrepareAppend.
struct AppendPlan {
  int64_t repeated = 0;             // leading tokens that are stored already: compare them, do not store them
  int64_t appended = 0;             // tokens after those: store them
  std::vector<PageCopy> copies;     // copy these pages first (copy-on-write)
  std::vector<int32_t> page_table;  // covers all position + count tokens
  uint64_t sampling_key = 0;
};

struct ReadPlan {
  std::vector<int32_t> page_table;
  int64_t length = 0;  // of the layer
  uint64_t sampling_key = 0;
};

// Thread safe. `now` is an argument so that leases can be tested.
class SequenceStore {
 public:
  // `pool` outlives the store.
  SequenceStore(int32_t num_layers, int32_t page_size, const StoreLimits& limits, PagePool* pool);
  ~SequenceStore();

  // lease 0: the default. sampling_key 0: the store picks one.
  // RESOURCE_EXHAUSTED: max_sequences live already. INVALID_ARGUMENT: lease outside (0, max_lease].
  absl::StatusOr<SequenceInfo> Create(std::string_view tenant, absl::Duration lease, uint64_t sampling_key,
                                      absl::Time now);
  // num_tokens absent: all complete tokens. lease, sampling_key 0: the parent's. OUT_OF_RANGE past the complete length.
  absl::StatusOr<SequenceInfo> Fork(std::string_view tenant, const SequenceHandle& parent,
                                    std::optional<int64_t> num_tokens, absl::Duration lease, uint64_t sampling_key,
                                    absl::Time now);
  // Drops the tokens at positions >= num_tokens in every layer. OUT_OF_RANGE past the longest layer.
  absl::StatusOr<SequenceInfo> Truncate(std::string_view tenant, const SequenceHandle& handle, int64_t num_tokens,
                                        absl::Time now);
  absl::Status Release(std::string_view tenant, const SequenceHandle& handle);
  absl::StatusOr<SequenceInfo> Get(std::string_view tenant, const SequenceHandle& handle, absl::Time now);
  // Up to `limit` of the tenant's sequences with id > after_id, in order of id. Renews no lease.
  std::vector<SequenceInfo> List(std::string_view tenant, uint64_t after_id, int limit, absl::Time now) const;

  // Device thread. Decides a write, allocates what it needs and advances the layer's length by plan.appended; nothing
  // has changed when it fails. Renews the lease.
  // NOT_FOUND; OUT_OF_RANGE: position above the layer's length, or past max_tokens_per_sequence (message: the length);
  // RESOURCE_EXHAUSTED: no free page.
  absl::StatusOr<AppendPlan> PrepareAppend(std::string_view tenant, const SequenceHandle& handle, int32_t layer,
                                           int64_t position, int64_t count, absl::Time now);
  // Device thread. The table of a layer that is only read. Renews the lease. NOT_FOUND.
  absl::StatusOr<ReadPlan> PrepareRead(std::string_view tenant, const SequenceHandle& handle, int32_t layer,
                                       absl::Time now);

  // Releases every sequence whose lease has run out; how many.
  int64_t Expire(absl::Time now);
  int64_t size() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace santa

#endif  // SANTA_SERVER_KV_SEQUENCE_STORE_H_
