// Runs batches of steps, one after another: plans each in the sequence store, then calls the backend.
#ifndef SANTA_SERVER_ENGINE_BATCH_RUNNER_H_
#define SANTA_SERVER_ENGINE_BATCH_RUNNER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/sequence_layer.h"
#include "server/engine/step.h"
#include "server/kv/page_pool.h"
#include "server/kv/sequence_store.h"

namespace santa {

// Not thread safe but for Finish: the device thread's. Other threads may use the store meanwhile.
//
// A batch goes through four stages; the store is locked in the first and the third only:
//   1. find which of the items' tokens are stored already (a retry repeats them);
//   2. compare those with what is stored, before the batch writes anything;
//   3. plan all writes and reads: positions are checked anew, as the sequence may have been truncated or released
//   since;
//   4. copy pages, append, decode. Decoding comes last, so that a step attends to the tokens it brings.
// An item that fails in one stage is left out of the later ones.
//
// A device that takes more than one batch at a time (Backend::max_decodes_in_flight) does the decoding of the last
// stage while the next batch begins. Nothing else changes: what a batch reads and writes it reads and writes in the
// order in which batches began, so that pages it gave up may be written for another sequence by the next.
class BatchRunner {
 public:
  // A batch on its way.
  struct Run {
    std::vector<Step*> steps;
    absl::Duration device_time;

   private:
    friend class BatchRunner;
    absl::Status status;
    bool decoding = false;  // AwaitDecode is due
    int32_t num_items = 0;
  };

  BatchRunner(Backend* backend, SequenceStore* store, PagePool* pool);
  ~BatchRunner();

  // The stages above, but for the end of the decoding. Finish must follow, for runs in the order in which they began.
  void Begin(absl::Time now, Run* run);

  // Waits for the decoding, then fills the items of the steps, the steps' device_time and batch_items, and the run's
  // device_time: what the device says it worked, or where it does not say, the time spent in the backend.
  // Not OK when the device failed: UNAVAILABLE with its reason, which is then also the status of every item that had
  // not failed before. May be called by one other thread than calls Begin, at the same time.
  absl::Status Finish(Run* run);

 private:
  struct Work;

  void Collect(const std::vector<Step*>& steps);
  void FindRepeats(absl::Time now);
  absl::Status CompareRepeats();
  absl::Status NameFirstDifference(const Work& work);
  void Plan(absl::Time now);
  void PlanItem(SequenceStore::Batch* batch, Work* work);
  absl::Status Execute(bool* decoding);

  Backend* const backend_;
  SequenceStore* const store_;
  PagePool* const pool_;

  // Kept from batch to batch for their memory.
  std::vector<std::unique_ptr<Work>> works_;  // the first num_works_ are of this batch
  size_t num_works_ = 0;
  absl::flat_hash_set<SequenceLayer> seen_;
  std::vector<Work*> repeats_;
  std::vector<PageCopy> copies_;
  std::vector<KvAppend> appends_;
  std::vector<DecodeItem> decodes_;
  std::unique_ptr<bool[]> matches_;
  size_t matches_size_ = 0;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_BATCH_RUNNER_H_
