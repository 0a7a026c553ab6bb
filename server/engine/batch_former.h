// Chooses which queued steps make the next batch.
#ifndef SANTA_SERVER_ENGINE_BATCH_FORMER_H_
#define SANTA_SERVER_ENGINE_BATCH_FORMER_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "server/engine/sequence_layer.h"
#include "server/engine/step.h"

namespace santa {

// Not thread safe.
class BatchFormer {
 public:
  // max_batch_items >= 1.
  explicit BatchFormer(int32_t max_batch_items) : max_batch_items_(max_batch_items) {}

  // Moves steps out of `queue`, which keeps its order, to the end of `batch` and of `dropped`.
  //
  // - A batch works at most once on a layer of a sequence, and work on it keeps its order: a step that meets one ahead
  //   of it there, in the batch or still waiting, waits for the next batch; other steps may pass it. Different layers
  //   of a sequence do not depend on each other, so they may share a batch.
  // - A step is never split: it waits as a whole. That keeps `done` a single moment, and costs little as a step seldom
  //   has more than one reason to wait.
  // - When the next step would take the batch past max_batch_items, the batch is closed: no step starves for being
  // large.
  //   A step that is larger by itself is a batch of its own.
  //
  // Steps cancelled or past their deadline go to `dropped`, their items' status set, wherever in the queue they are.
  void Form(absl::Time now, std::vector<Step*>* queue, std::vector<Step*>* batch, std::vector<Step*>* dropped);

 private:
  const int32_t max_batch_items_;
  absl::flat_hash_set<SequenceLayer> busy_;
};

}  // namespace santa

#endif  // SANTA_SERVER_ENGINE_BATCH_FORMER_H_
