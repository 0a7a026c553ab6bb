#include "server/self_test.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/engine/step.h"

namespace santa {
namespace {

constexpr char kTenant[] = "self-test";
constexpr uint32_t kScoreDraws = 16;

// Numbers that every storage type holds exactly, fp8 too: rounding is then no matter, and bounds may be tight.
uint32_t Hash(int64_t token, int32_t head, int32_t d) {
  auto x = static_cast<uint32_t>(token * 7919 + head * 104729 + d * 31 + 1);
  x ^= x >> 15;
  x *= 0x2c1b3c6dU;
  x ^= x >> 12;
  return x;
}
float Key(int64_t token, int32_t head, int32_t d) {
  return static_cast<float>(static_cast<int>(Hash(token, head, d) % 15) - 7) / 8;
}
float Value(int64_t token, int32_t head, int32_t d) {
  return 1 + static_cast<float>(Hash(token, head, d + 4096) % 8) / 8;
}
float QueryValue(int32_t head, int32_t d) {
  return static_cast<float>(static_cast<int>(Hash(-1, head, d) % 15) - 7) / 8;
}

struct Answer {
  std::vector<float> o;
  std::vector<float> lse;
};

// The scale that a cache has for a head of a layer: times that, the numbers above are what it can store.
float ScaleOf(const std::vector<float>& scales, const KvLayout& layout, int32_t layer, int32_t head) {
  return scales.empty() ? 1 : scales[static_cast<size_t>(layer) * layout.num_kv_heads + head];
}

// Attention by its definition (kernels/attention.h), in double.
Answer Reference(const SelfTestPlan& plan, int32_t layer, int64_t tokens) {
  const KvLayout& layout = plan.layout;
  Answer answer;
  for (int32_t h = 0; h < layout.num_query_heads; ++h) {
    const int32_t g = h / layout.group_size();
    const double scale = ScaleOf(plan.scales.k, layout, layer, g) / std::sqrt(static_cast<double>(layout.head_dim));
    double sum = 0;
    std::vector<double> o(layout.head_dim);
    for (int64_t i = 0; i < tokens; ++i) {
      double score = 0;
      for (int32_t d = 0; d < layout.head_dim; ++d) score += double{QueryValue(h, d)} * Key(i, g, d);
      const double weight = std::exp(scale * score);
      sum += weight;
      for (int32_t d = 0; d < layout.head_dim; ++d) o[d] += weight * Value(i, g, d);
    }
    answer.lse.push_back(static_cast<float>(std::log(sum)));
    for (const double element : o) {
      answer.o.push_back(static_cast<float>(element / sum) * ScaleOf(plan.scales.v, layout, layer, g));
    }
  }
  return answer;
}

// The layer's k and v, as a caller would send them.
struct Tokens {
  std::vector<float> k;
  std::vector<float> v;
};
Tokens MakeTokens(const SelfTestPlan& plan, int32_t layer, int64_t count) {
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) {
    for (int32_t g = 0; g < plan.layout.num_kv_heads; ++g) {
      for (int32_t d = 0; d < plan.layout.head_dim; ++d) {
        tokens.k.push_back(ScaleOf(plan.scales.k, plan.layout, layer, g) * Key(i, g, d));
        tokens.v.push_back(ScaleOf(plan.scales.v, plan.layout, layer, g) * Value(i, g, d));
      }
    }
  }
  return tokens;
}

absl::Status Run(Engine* engine, Step* step) {
  absl::Notification done;
  step->tenant = kTenant;
  step->done = [&done] { done.Notify(); };
  if (absl::Status status = engine->SubmitBackground(step); !status.ok()) return status;
  done.WaitForNotification();
  return step->items.front().status;
}

absl::Status Compare(const Answer& answer, const Answer& expected, Method method, int32_t layer, int32_t head_dim) {
  // Sampling moves an answer by a few per cent here; wrong rows or weights do by far more, as a bad page may hold
  // anything. Exactly, what is left is the rounding of weights to 16 bits.
  const double o_bound = method == Method::kExact ? 0.02 : 0.4;  // of the element
  const double lse_bound = method == Method::kExact ? 0.01 : 0.4;
  const auto wrong = [&](const std::string& place, float value, float truth) {
    return absl::InternalError(absl::StrCat("the self-test failed: ", std::string(Name(method)), " in layer ", layer,
                                            " gave ", place, " = ", value, " in place of ", truth));
  };
  for (size_t i = 0; i < answer.o.size(); ++i) {
    // So that a NaN fails too.
    if (std::abs(answer.o[i] - expected.o[i]) <= o_bound * std::abs(expected.o[i])) continue;
    return wrong(absl::StrCat("o[", i / head_dim, "][", i % head_dim, "]"), answer.o[i], expected.o[i]);
  }
  for (size_t h = 0; h < answer.lse.size(); ++h) {
    if (std::abs(answer.lse[h] - expected.lse[h]) <= lse_bound) continue;
    return wrong(absl::StrCat("lse[", h, "]"), answer.lse[h], expected.lse[h]);
  }
  return absl::OkStatus();
}

// Stores the layer's tokens, then attends to them with every method.
absl::Status TestLayer(const SelfTestPlan& plan, const SequenceHandle& sequence, int32_t layer, int64_t count,
                       Engine* engine) {
  const Tokens tokens = MakeTokens(plan, layer, count);
  Step append;
  append.layer = layer;
  StepItem& appended = append.items.emplace_back();
  appended.sequence = sequence;
  appended.tokens = {.position = 0, .count = count, .k = tokens.k.data(), .v = tokens.v.data()};
  if (absl::Status status = Run(engine, &append); !status.ok()) return status;

  std::vector<float> q;
  for (int32_t h = 0; h < plan.layout.num_query_heads; ++h) {
    for (int32_t d = 0; d < plan.layout.head_dim; ++d) q.push_back(QueryValue(h, d));
  }
  const Answer expected = Reference(plan, layer, count);
  for (const Method method : plan.methods) {
    Answer answer = {.o = std::vector<float>(expected.o.size()), .lse = std::vector<float>(expected.lse.size())};
    Step attend;
    attend.layer = layer;
    StepItem& item = attend.items.emplace_back();
    item.sequence = sequence;
    item.position = count - 1;
    item.options.method = method;
    item.options.sample_count = DrawsValues(method) ? static_cast<uint32_t>((count + 1) / 2) : 0;
    item.options.score_draws = method == Method::kBernoulliQk ? kScoreDraws : 0;
    item.q = q.data();
    item.o = answer.o.data();
    item.lse = answer.lse.data();
    absl::Status status = Run(engine, &attend);
    if (status.ok()) status = Compare(answer, expected, method, layer, plan.layout.head_dim);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunSelfTest(const SelfTestPlan& plan, Engine* engine, SequenceStore* store) {
  const int64_t count = std::min<int64_t>(plan.layout.page_size * 3 / 2, plan.max_tokens);
  const absl::StatusOr<SequenceInfo> sequence = store->Create(kTenant, absl::ZeroDuration(), 1, absl::Now());
  if (!sequence.ok()) return sequence.status();
  const int32_t last = plan.layout.num_layers - 1;
  absl::Status status = TestLayer(plan, sequence->handle, 0, count, engine);
  if (status.ok() && last > 0) status = TestLayer(plan, sequence->handle, last, count, engine);
  const absl::Status released = store->Release(kTenant, sequence->handle);
  return status.ok() ? released : status;
}

}  // namespace santa
