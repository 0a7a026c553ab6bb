#include "client/examples/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/examples/decoder.h"
#include "client/examples/local_attention.h"

namespace santa {
namespace {

constexpr double kTemperature = 0.6;  // of the text that is written for people

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The continuation first, then a question for each key.
std::vector<Script> MakeScripts(const Passage& passage) {
  std::vector<Script> scripts = {
      {.forced = passage.continuation.substr(0, passage.continuation.size() - 1), .generate = 0, .keep_logits = true}};
  for (const PassKey& key : passage.keys) {
    scripts.push_back({.forced = key.question, .generate = static_cast<int64_t>(key.answer.size())});
  }
  return scripts;
}

void AddScores(const Passage& passage, int64_t vocab, const std::vector<ScriptResult>& results,
               const std::vector<ScriptResult>& local, MethodScore& score) {
  const std::vector<float>& logits = results[0].logits;
  for (size_t i = 0; i + 1 < passage.continuation.size(); ++i) {
    const auto next = static_cast<uint8_t>(passage.continuation[i + 1]);
    const int64_t row = static_cast<int64_t>(i) * vocab;
    const double bits = Bits(logits.data() + row, vocab, next);
    const double difference = bits - Bits(local[0].logits.data() + row, vocab, next);
    score.bits += bits;
    score.squared_differences += difference * difference;
    ++score.scored_bytes;
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    const double difference = std::abs(static_cast<double>(logits[i]) - local[0].logits[i]);
    score.largest_logit_difference = std::max(score.largest_logit_difference, difference);
  }
  for (size_t i = 0; i < passage.keys.size(); ++i) {
    ++score.keys_asked;
    score.keys_right += results[i + 1].generated == passage.keys[i].answer;
    score.answers_as_local += results[i + 1].generated == local[i + 1].generated;
  }
}

}  // namespace

double MethodScore::relative_standard_error(const MethodScore& local) const {
  const auto n = static_cast<double>(scored_bytes);
  const double mean = (bits - local.bits) / n;
  return std::sqrt(std::max(0.0, squared_differences / n - mean * mean) / n) / local.bits_per_byte();
}

Evaluation::Evaluation(const LlamaModel* model, ServerAttention* server, EvaluationOptions options)
    : model_(model), server_(server), options_(std::move(options)) {
  local_.name = "LOCAL";
  for (const MethodChoice& choice : options_.methods) {
    scores_.emplace_back();
    scores_.back().name = MethodName(choice.method);
    if (choice.score_draws > 0) absl::StrAppend(&scores_.back().name, " R=", choice.score_draws);
    scores_.back().samples = choice.samples;
  }
}

absl::StatusOr<std::vector<ScriptResult>> Evaluation::Run(const Passage& passage, AttentionProvider& attention,
                                                          int64_t parent, std::span<const Script> scripts,
                                                          int64_t first_byte, MethodScore& score) const {
  const auto position = static_cast<int64_t>(passage.prompt.size());
  const uint64_t sampling_key = 1 + 1000003 * static_cast<uint64_t>(passages_);
  auto start = Clock::now();
  absl::StatusOr<std::vector<ScriptResult>> results =
      RunScripts(*model_, attention, parent, position, sampling_key, scripts);
  if (!results.ok()) return results.status();
  score.seconds += SecondsSince(start);
  for (const Script& script : scripts) score.steps += NumSteps(script);

  if (passages_ == 0 && options_.generate > 1) {
    const Script writing[] = {{.forced = std::string(1, static_cast<char>(first_byte)),
                               .generate = options_.generate - 1,
                               .temperature = kTemperature}};
    start = Clock::now();
    const absl::StatusOr<std::vector<ScriptResult>> written =
        RunScripts(*model_, attention, parent, position, sampling_key, writing);
    if (!written.ok()) return written.status();
    score.generate_seconds = SecondsSince(start);
    score.generated = writing[0].forced + (*written)[0].generated;
  }
  return results;
}

absl::Status Evaluation::AddPassage(const Passage& passage) {
  const int64_t vocab = model_->config().vocab_size;
  KvHistory history(model_->config(), server_->dtype());
  auto start = Clock::now();
  const absl::StatusOr<std::vector<float>> logits = Prefill(*model_, ToTokens(passage.prompt), history);
  if (!logits.ok()) return logits.status();
  const double prefill_seconds = SecondsSince(start);
  start = Clock::now();
  const absl::StatusOr<int64_t> parent = server_->Upload(history, 1);
  if (!parent.ok()) return parent.status();
  options_.progress(absl::StrFormat("%s: prefilled %d bytes in %.1f s, uploaded in %.1f s", passage.name,
                                    passage.prompt.size(), prefill_seconds, SecondsSince(start)));

  const std::vector<Script> scripts = MakeScripts(passage);
  const int64_t first_byte = MostLikely(logits->data(), vocab);
  LocalAttention local_attention(model_->config().num_query_heads, &model_->pool());
  const int64_t local_parent = local_attention.Add(std::move(history));
  const auto local = Run(passage, local_attention, local_parent, scripts, first_byte, local_);
  if (!local.ok()) return local.status();
  AddScores(passage, vocab, *local, *local, local_);

  for (size_t i = 0; i < scores_.size(); ++i) {
    v1::AttentionOptions options;
    options.set_method(options_.methods[i].method);
    options.set_sample_count(options_.methods[i].samples);
    options.set_score_draws(options_.methods[i].score_draws);
    if (options_.methods[i].method != v1::METHOD_EXACT) options.set_seed(options_.seed);
    server_->set_options(options);
    server_->TakeStatistics();
    const auto results = Run(passage, *server_, *parent, scripts, first_byte, scores_[i]);
    if (!results.ok()) return results.status();
    AddScores(passage, vocab, *results, *local, scores_[i]);
    const ReadStatistics reads = server_->TakeStatistics();
    scores_[i].reads.value_rows_read += reads.value_rows_read;
    scores_[i].reads.visible_value_rows += reads.visible_value_rows;
    scores_[i].reads.kv_bytes_read += reads.kv_bytes_read;
    scores_[i].reads.dense_kv_bytes += reads.dense_kv_bytes;
    const MethodScore& score = scores_[i];
    options_.progress(absl::StrFormat("%s: %s, S = %d: %.4f bits per byte, %d of %d pass keys so far", passage.name,
                                      score.name, score.samples, score.bits_per_byte(), score.keys_right,
                                      score.keys_asked));
  }
  ++passages_;
  return server_->Release(*parent);
}

}  // namespace santa
