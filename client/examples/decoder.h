// Running the model: a prompt in one go with local attention, then token by token with any provider's.
#ifndef SANTA_CLIENT_EXAMPLES_DECODER_H_
#define SANTA_CLIENT_EXAMPLES_DECODER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/examples/attention_provider.h"
#include "client/examples/kv_history.h"
#include "client/examples/llama_model.h"

namespace santa {

// Runs the tokens, which follow those that the history holds, through the model; their keys and values are added to the
// history. Returns the logits of the last `want_logits` tokens, [want_logits][vocab].
// INVALID_ARGUMENT: no tokens, one outside the vocabulary, want_logits above their number.
absl::StatusOr<std::vector<float>> Prefill(const LlamaModel& model, std::span<const int32_t> tokens, KvHistory& history,
                                           int64_t want_logits = 1);

struct DecodeToken {
  int64_t sequence = 0;  // of the provider
  int64_t position = 0;
  int32_t token = 0;
};

// One token of each of several sequences. Returns logits, [tokens][vocab]. A sequence's logits do not depend on the
// others, if the provider's attention does not.
absl::StatusOr<std::vector<float>> DecodeStep(const LlamaModel& model, std::span<const DecodeToken> tokens,
                                              AttentionProvider& attention);

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_DECODER_H_
