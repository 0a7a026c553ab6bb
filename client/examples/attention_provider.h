#ifndef SANTA_CLIENT_EXAMPLES_ATTENTION_PROVIDER_H_
#define SANTA_CLIENT_EXAMPLES_ATTENTION_PROVIDER_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace santa {

// One new token of one sequence in one layer.
struct AttentionStep {
  int64_t sequence = 0;
  int64_t position = 0;      // the tokens that the layer holds already
  const float* q = nullptr;  // [H][D]
  const float* k = nullptr;  // [H_kv][D], stored before the query looks
  const float* v = nullptr;
  float* o = nullptr;  // [H][D], written
};

// Who keeps the KV cache and answers decode attention: this process, or the attention server. Not thread safe.
class AttentionProvider {
 public:
  virtual ~AttentionProvider() = default;

  // A sequence with the parent's tokens that grows on its own. `sampling_key` (not 0) fixes its random draws.
  virtual absl::StatusOr<int64_t> Fork(int64_t parent, uint64_t sampling_key) = 0;
  virtual absl::Status Release(int64_t sequence) = 0;

  // At most one step of a sequence.
  virtual absl::Status Attend(int32_t layer, std::span<const AttentionStep> steps) = 0;
};

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_ATTENTION_PROVIDER_H_
