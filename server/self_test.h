// What a server proves of itself before it serves: known tokens through engine, page tables and device, held against
// attention by its definition.
#ifndef SANTA_SERVER_SELF_TEST_H_
#define SANTA_SERVER_SELF_TEST_H_

#include <span>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "server/engine/engine.h"
#include "server/kv/sequence_store.h"

namespace santa {

struct SelfTestPlan {
  KvLayout layout;
  KvScales scales;                  // of the cache, as the backend has them
  std::span<const Method> methods;  // that the backend supports
  int64_t max_tokens = 0;           // that the cache and the store's limits have room for, >= 1
};

// Stores a sequence of a page and a half in the first and the last layer, attends to it with every method, and releases
// it again. Runs in the engine's background; waits for it.
// INTERNAL: an answer that is not attention, named with method, layer and place. Else what the store or the engine say.
absl::Status RunSelfTest(const SelfTestPlan& plan, Engine* engine, SequenceStore* store);

}  // namespace santa

#endif  // SANTA_SERVER_SELF_TEST_H_
