#include "client/examples/script.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/status/status.h"
#include "client/examples/decoder.h"

namespace santa {
namespace {

int32_t Pick(const float* logits, int64_t n, double temperature, std::mt19937_64& random) {
  const int32_t best = MostLikely(logits, n);
  if (temperature <= 0) return best;
  std::vector<double> cumulative;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) cumulative.push_back(sum += std::exp((logits[i] - logits[best]) / temperature));
  const double point = static_cast<double>(random() >> 11) * 0x1p-53 * sum;
  return static_cast<int32_t>(std::upper_bound(cumulative.begin(), cumulative.end() - 1, point) - cumulative.begin());
}

// Feeds each script its next byte in lockstep until all are done.
absl::Status Decode(const LlamaModel& model, AttentionProvider& attention, std::span<const int64_t> sequences,
                    int64_t position, std::span<const Script> scripts, std::vector<ScriptResult>& results) {
  const int64_t vocab = model.config().vocab_size;
  std::vector<std::mt19937_64> random(scripts.size());
  for (int64_t step = 0;; ++step) {
    std::vector<DecodeToken> tokens;
    std::vector<size_t> owners;
    for (size_t i = 0; i < scripts.size(); ++i) {
      if (step >= NumSteps(scripts[i])) continue;
      const auto forced = static_cast<int64_t>(scripts[i].forced.size());
      const char byte = step < forced ? scripts[i].forced[step] : results[i].generated[step - forced];
      tokens.push_back({sequences[i], position + step, static_cast<uint8_t>(byte)});
      owners.push_back(i);
    }
    if (tokens.empty()) return absl::OkStatus();
    const absl::StatusOr<std::vector<float>> logits = DecodeStep(model, tokens, attention);
    if (!logits.ok()) return logits.status();
    for (size_t t = 0; t < tokens.size(); ++t) {
      const Script& script = scripts[owners[t]];
      ScriptResult& result = results[owners[t]];
      const float* row = logits->data() + static_cast<int64_t>(t) * vocab;
      const auto forced = static_cast<int64_t>(script.forced.size());
      if (script.keep_logits && step < forced) result.logits.insert(result.logits.end(), row, row + vocab);
      if (step >= forced - 1 && static_cast<int64_t>(result.generated.size()) < script.generate) {
        result.generated += static_cast<char>(Pick(row, vocab, script.temperature, random[owners[t]]));
      }
    }
  }
}

}  // namespace

int64_t NumSteps(const Script& script) {
  return static_cast<int64_t>(script.forced.size()) + std::max<int64_t>(0, script.generate - 1);
}

int32_t MostLikely(const float* logits, int64_t n) {
  return static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
}

double Bits(const float* logits, int64_t n, int32_t token) {
  const double highest = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - highest);
  return (std::log(sum) + highest - logits[token]) / std::log(2.0);
}

std::vector<int32_t> ToTokens(const std::string& bytes) {
  std::vector<int32_t> tokens;
  tokens.reserve(bytes.size());
  for (const char byte : bytes) tokens.push_back(static_cast<uint8_t>(byte));
  return tokens;
}

absl::StatusOr<std::vector<ScriptResult>> RunScripts(const LlamaModel& model, AttentionProvider& attention,
                                                     int64_t parent, int64_t position, uint64_t first_sampling_key,
                                                     std::span<const Script> scripts) {
  if (model.config().vocab_size != 256) return absl::InvalidArgumentError("scripts need a vocabulary of bytes");
  std::vector<ScriptResult> results(scripts.size());
  std::vector<int64_t> sequences;
  absl::Status status;
  for (size_t i = 0; i < scripts.size() && status.ok(); ++i) {
    const absl::StatusOr<int64_t> sequence = attention.Fork(parent, first_sampling_key + i);
    status = sequence.status();
    if (sequence.ok()) sequences.push_back(*sequence);
  }
  if (status.ok()) status = Decode(model, attention, sequences, position, scripts, results);
  for (const int64_t sequence : sequences) {
    if (absl::Status released = attention.Release(sequence); status.ok()) status = std::move(released);
  }
  if (!status.ok()) return status;
  return results;
}

}  // namespace santa
