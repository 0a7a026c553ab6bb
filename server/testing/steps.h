// Steps for tests of the engine: they own their tensors, and name a token by a number.
#ifndef SANTA_SERVER_TESTING_STEPS_H_
#define SANTA_SERVER_TESTING_STEPS_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kernels/attention.h"
#include "server/engine/step.h"
#include "server/kv/sequence_store.h"

namespace santa {

// H = 4, H_kv = 2, D = 8, fp32; pages of 4 tokens, fewer than a real backend takes, so that tests reach many soon.
KvLayout TestLayout(int32_t num_layers);

inline constexpr StoreLimits kTestLimits = {.max_sequences = 100,
                                            .max_tokens_per_sequence = 1000,
                                            .default_lease = absl::Hours(1),
                                            .max_lease = absl::Hours(1)};

// What token `id` has at a place of its k or v. Exact in fp32 for ids below 2^18, and no two ids agree anywhere.
float TokenValue(int id, bool value, int32_t kv_head, int32_t d);

class TestStep {
 public:
  TestStep(const KvLayout& layout, std::string tenant, int32_t layer);

  // Each adds an item. Append: tokens only. Attend: query only. AppendAndAttend: the query is at the last of the
  // tokens.
  TestStep& Append(const SequenceHandle& sequence, int64_t position, const std::vector<int>& ids);
  TestStep& Attend(const SequenceHandle& sequence, int64_t position);
  TestStep& AppendAndAttend(const SequenceHandle& sequence, int64_t position, const std::vector<int>& ids);

  Step& step() { return step_; }
  const StepItem& item(size_t index) const { return step_.items[index]; }
  absl::StatusCode code(size_t index) const { return item(index).status.code(); }
  // The output of a query, [H][D].
  const std::vector<float>& o(size_t index) const { return tensors_[index].o; }
  const std::vector<float>& lse(size_t index) const { return tensors_[index].lse; }

 private:
  struct Tensors {
    std::vector<float> k, v, q, o, lse;
  };
  void AddTokens(int64_t position, const std::vector<int>& ids, Tensors* tensors, StepItem* item) const;
  void AddQuery(int64_t position, Tensors* tensors, StepItem* item) const;

  const KvLayout layout_;
  Step step_;
  std::deque<Tensors> tensors_;  // does not move them as it grows
};

// What FakeBackend answers for a query that sees these tokens: [H][D].
std::vector<float> MeanOfTokens(const KvLayout& layout, const std::vector<int>& ids);

}  // namespace santa

#endif  // SANTA_SERVER_TESTING_STEPS_H_
