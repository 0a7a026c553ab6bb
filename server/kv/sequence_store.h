// Sequences and their page tables: create, append, fork with copy-on-write, truncate, release, lease.
//
// Pure bookkeeping: knows page ids and token counts, never the memory behind a page nor the wire.
//
// A sequence has one page table for all its layers and a length for each layer (they differ while a step passes through
// the model). It belongs to a tenant, has a lease that every use renews, and a generation (random, so that a handle
// cannot be guessed); the handle of a sequence that is gone, that has expired, or that is another tenant's, is
// NOT_FOUND. Ids are never used again.
#ifndef SANTA_SERVER_KV_SEQUENCE_STORE_H_
#define SANTA_SERVER_KV_SEQUENCE_STORE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
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

// Tokens [position, position + count) of one layer of a sequence.
struct TokenRange {
  std::string_view tenant;
  SequenceHandle handle;
  int32_t layer = 0;
  int64_t position = 0;
  int64_t count = 0;
};

// What a write of a TokenRange does.
struct AppendPlan {
  int64_t repeated = 0;             // leading tokens that are stored already and have been compared: do not store them
  int64_t appended = 0;             // tokens after those: store them
  std::vector<PageCopy> copies;     // copy these pages before any append of the batch (copy-on-write)
  std::vector<int32_t> page_table;  // covers all position + count tokens
  uint64_t sampling_key = 0;
  int64_t truncations = 0;  // as in ReadPlan
};

struct ReadPlan {
  std::vector<int32_t> page_table;  // covers `length` tokens
  int64_t length = 0;               // of the layer
  uint64_t sampling_key = 0;
  // How often the sequence has lost tokens. As long as it stays the same, so do the tokens below `length`, whichever
  // pages they move to.
  int64_t truncations = 0;
};

// Thread safe. `now` is an argument so that leases can be tested.
class SequenceStore {
 public:
  // `pool` outlives the store.
  SequenceStore(int32_t num_layers, int32_t page_size, const StoreLimits& limits, PagePool* pool);
  ~SequenceStore();
  SequenceStore(const SequenceStore&) = delete;
  SequenceStore& operator=(const SequenceStore&) = delete;

  // lease 0: the default. sampling_key 0: the store picks one.
  // RESOURCE_EXHAUSTED: max_sequences live already. INVALID_ARGUMENT: lease outside (0, max_lease].
  absl::StatusOr<SequenceInfo> Create(std::string_view tenant, absl::Duration lease, uint64_t sampling_key,
                                      absl::Time now);
  // num_tokens absent: all complete tokens. lease, sampling_key 0: the parent's. OUT_OF_RANGE past the complete length.
  // RESOURCE_EXHAUSTED, INVALID_ARGUMENT as of Create. A token that the batch being run appends may be among them.
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

  class Batch;

  // Releases every sequence whose lease has run out; how many. Costs O(log n) for each of those, and for each that was
  // used again since it was last due; nothing for the others.
  int64_t Expire(absl::Time now);
  int64_t size() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Plans the reads and writes of one batch. Holds the store's lock while it lives: keep it short, and call no other
// method of the store meanwhile. Every use but Peek renews the lease, failed ones too.
//
// All writes of a batch must be planned by one Batch. A fork between two of them could share a page that the batch is
// still to write; the second plan would then move the sequence to a copy which the first one's tokens never reach.
// Within one Batch a page that a plan may write stays private, whichever layer comes next.
//
// The page tables of a plan hold until the batch ends, provided that a PagePool::Hold lives from before the Batch until
// then. A vector of a plan that is passed in again is reused.
class SequenceStore::Batch {
 public:
  Batch(SequenceStore* store, absl::Time now);
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // The layer as it is now; plan->length tells how much of a range is stored already. NOT_FOUND; INVALID_ARGUMENT: no
  // such layer.
  absl::Status Read(std::string_view tenant, const SequenceHandle& handle, int32_t layer, ReadPlan* plan);

  // As Read, for the server's own use: renews no lease.
  absl::Status Peek(std::string_view tenant, const SequenceHandle& handle, int32_t layer, ReadPlan* plan);

  // How many leading tokens of the range are stored already; when there are any, `page_table` gets the pages that hold
  // them, and only a caller that has compared them may go on to Append. Errors as of Append, but for
  // RESOURCE_EXHAUSTED.
  absl::StatusOr<int64_t> FindRepeated(const TokenRange& range, std::vector<int32_t>* page_table);

  // Decides the write of a range, takes the pages that it needs and sets the layer's length to the range's end if that
  // is further: the caller stores the tokens before anything reads them. `compared` leading tokens are known to equal
  // what is stored. Nothing but the lease has changed when it fails.
  // NOT_FOUND; INVALID_ARGUMENT: no such layer, position or count < 0; OUT_OF_RANGE: position above the layer's length
  // (which the message names), or the end past max_tokens_per_sequence; RESOURCE_EXHAUSTED: no free page; ABORTED: more
  // than `compared` tokens are stored.
  absl::Status Append(const TokenRange& range, int64_t compared, AppendPlan* plan);

 private:
  State* const state_;
  const std::unique_lock<std::mutex> lock_;
  const absl::Time now_;
};

}  // namespace santa

#endif  // SANTA_SERVER_KV_SEQUENCE_STORE_H_
