// Random work on sequences against a model that keeps every token in a plain vector: what is stored, what each query
// answers, each item's status, and where every page is. Other callers fork, truncate and release in the middle of
// batches: the backend's hook does it between the stages, so that it happens at the same place in every run.
#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/engine/batch_former.h"
#include "server/engine/batch_runner.h"
#include "server/testing/fake_backend.h"
#include "server/testing/steps.h"

namespace santa {
namespace {

constexpr int32_t kLayers = 3;
constexpr int32_t kPages = 24;
constexpr int64_t kMaxTokens = 40;
constexpr StoreLimits kLimits = {.max_sequences = 8,
                                 .max_tokens_per_sequence = kMaxTokens,
                                 .default_lease = absl::Seconds(10),
                                 .max_lease = absl::Seconds(10)};

struct ModelSequence {
  SequenceHandle handle;
  std::string tenant;
  std::vector<std::vector<int>> layers;  // token ids

  int64_t complete() const {
    int64_t least = kMaxTokens;
    for (const std::vector<int>& layer : layers) least = std::min(least, static_cast<int64_t>(layer.size()));
    return least;
  }
  int64_t longest() const {
    int64_t most = 0;
    for (const std::vector<int>& layer : layers) most = std::max(most, static_cast<int64_t>(layer.size()));
    return most;
  }
};

// An item as the test made it, beside the step that carries it.
struct Expectation {
  SequenceHandle handle;
  int64_t position = 0;  // of the tokens; of the query if there are none
  std::vector<int> ids;
  bool query = false;
  absl::StatusCode before = absl::StatusCode::kOk;  // as far as the first stage can know
  absl::StatusCode after = absl::StatusCode::kOk;
  int64_t appended = 0;
  std::vector<float> o;
};
struct TestWork {
  std::unique_ptr<TestStep> step;
  std::vector<Expectation> items;
};

class Simulation {
 public:
  explicit Simulation(uint32_t seed) : random_(seed) {}

  void Play(int rounds) {
    backend_.set_hook([this](FakeBackend::Call call) {
      if (call != FakeBackend::Call::kCompare) Settle();
      while (Chance(3)) OtherCaller();
      return absl::OkStatus();
    });
    for (int round = 0; round < rounds && !testing::Test::HasFailure(); ++round) {
      while (Chance(3)) OtherCaller();
      if (Chance(2)) Create();
      RunSteps();
      CheckEverything();
    }
    backend_.set_hook(nullptr);
    store_.Expire(now_ + absl::Seconds(10));
    EXPECT_EQ(store_.size(), 0);
    EXPECT_EQ(pool_.free_pages(), kPages);
  }

  const std::map<absl::StatusCode, int>& outcomes() const { return outcomes_; }
  int changes_inside_batches() const { return changes_inside_batches_; }

 private:
  int Uniform(int64_t below) {
    return static_cast<int>(std::uniform_int_distribution<int64_t>(0, std::max<int64_t>(below, 1) - 1)(random_));
  }
  bool Chance(int one_in) { return Uniform(one_in) == 0; }
  ModelSequence* Pick() {
    return model_.empty() ? nullptr : &*std::next(model_.begin(), Uniform(model_.size()))->second;
  }
  ModelSequence* Find(const SequenceHandle& handle) {
    const auto it = model_.find(handle.id);
    return it == model_.end() ? nullptr : it->second.get();
  }

  void Create() {
    const std::string tenant = Chance(2) ? "a" : "b";
    const absl::StatusOr<SequenceInfo> info = store_.Create(tenant, absl::ZeroDuration(), 0, now_);
    if (model_.size() == 8) {
      EXPECT_EQ(info.status().code(), absl::StatusCode::kResourceExhausted);
      return;
    }
    ASSERT_TRUE(info.ok());
    Add({info->handle, tenant, std::vector<std::vector<int>>(kLayers)});
  }

  void Add(ModelSequence sequence) {
    const uint64_t id = sequence.handle.id;
    model_[id] = std::make_unique<ModelSequence>(std::move(sequence));
  }

  // A fork, a truncation or a release, any time.
  void OtherCaller() {
    ModelSequence* sequence = Pick();
    if (sequence == nullptr) return;
    if (running_) ++changes_inside_batches_;
    switch (Uniform(5)) {
      case 0:
      case 1: {
        const int64_t keep = Uniform(sequence->complete() + 2);
        const absl::StatusOr<SequenceInfo> info =
            store_.Fork(sequence->tenant, sequence->handle, keep, absl::ZeroDuration(), 0, now_);
        if (keep > sequence->complete()) {
          EXPECT_EQ(info.status().code(), absl::StatusCode::kOutOfRange);
        } else if (model_.size() == 8) {
          EXPECT_EQ(info.status().code(), absl::StatusCode::kResourceExhausted);
        } else {
          ASSERT_TRUE(info.ok());
          ModelSequence child = {info->handle, sequence->tenant, sequence->layers};
          for (std::vector<int>& layer : child.layers) layer.resize(keep);
          Add(std::move(child));
        }
        break;
      }
      case 2:
      case 3: {
        const int64_t keep = sequence->longest() + 1 - Uniform(8);
        const absl::Status status = store_.Truncate(sequence->tenant, sequence->handle, keep, now_).status();
        if (keep < 0 || keep > sequence->longest()) {
          EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
        } else {
          ASSERT_TRUE(status.ok());
          for (std::vector<int>& layer : sequence->layers) {
            if (static_cast<int64_t>(layer.size()) > keep) layer.resize(keep);
          }
        }
        break;
      }
      default:
        if (!Chance(4)) break;
        ASSERT_TRUE(store_.Release(sequence->tenant, sequence->handle).ok());
        dead_ = sequence->handle;
        model_.erase(sequence->handle.id);
    }
  }

  // One to four steps of one to three items, which may meet on a sequence.
  void RunSteps() {
    works_.clear();
    const int count = 1 + Uniform(4);
    for (int s = 0; s < count; ++s) {
      const ModelSequence* first = Pick();
      if (first == nullptr) return;
      const int32_t layer = Uniform(kLayers);
      const std::string tenant = Chance(10) ? "c" : first->tenant;
      TestWork work = {std::make_unique<TestStep>(backend_.layout(), tenant, layer), {}};
      std::set<uint64_t> used;
      const int items = 1 + Uniform(3);
      for (int i = 0; i < items; ++i) AddItem(layer, &used, &work);
      works_.push_back(std::move(work));
    }
    std::vector<Step*> queue;
    for (TestWork& work : works_) queue.push_back(&work.step->step());
    while (!queue.empty()) {
      std::vector<Step*> batch;
      std::vector<Step*> dropped;
      former_.Form(now_, &queue, &batch, &dropped);
      ASSERT_TRUE(dropped.empty());
      RunBatch(batch);
    }
  }

  void AddItem(int32_t layer, std::set<uint64_t>* used, TestWork* work) {
    const ModelSequence* sequence = Pick();
    Expectation item;
    item.handle = Chance(15) ? dead_ : sequence->handle;
    if (!used->insert(item.handle.id).second) return;
    const std::vector<int>& stored = sequence->layers[layer];
    const auto length = static_cast<int64_t>(stored.size());
    item.query = !Chance(4);
    if (item.query && Chance(4)) {
      item.position = Uniform(length + 1);
      work->step->Attend(item.handle, item.position);
    } else {
      item.position = Chance(2) ? length : Chance(8) ? length + 1 : Uniform(length + 1);
      const int64_t count = 1 + (Chance(4) ? Uniform(20) : Uniform(3));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t position = item.position + i;
        item.ids.push_back(position < length && !Chance(12) ? stored[position] : next_token_++);
      }
      if (item.query) {
        work->step->AppendAndAttend(item.handle, item.position, item.ids);
      } else {
        work->step->Append(item.handle, item.position, item.ids);
      }
    }
    work->items.push_back(std::move(item));
  }

  void RunBatch(const std::vector<Step*>& batch) {
    running_ = true;
    settled_ = false;
    batch_.clear();
    for (TestWork& work : works_) {
      if (std::find(batch.begin(), batch.end(), &work.step->step()) == batch.end()) continue;
      batch_.push_back(&work);
      for (Expectation& item : work.items) item.before = Predict(work, item, true);
    }
    BatchRunner::Run run;
    run.steps = batch;
    runner_.Begin(now_, &run);
    ASSERT_TRUE(runner_.Finish(&run).ok());
    Settle();
    running_ = false;
    for (const TestWork* work : batch_) {
      for (size_t i = 0; i < work->items.size(); ++i) CheckItem(*work, i);
    }
  }

  // The status an item should get by what the model holds now, if pages last.
  absl::StatusCode Predict(const TestWork& work, const Expectation& item, bool compare) {
    const ModelSequence* sequence = Find(item.handle);
    if (sequence == nullptr || sequence->tenant != work.step->step().tenant) return absl::StatusCode::kNotFound;
    const std::vector<int>& stored = sequence->layers[work.step->step().layer];
    const auto length = static_cast<int64_t>(stored.size());
    if (item.ids.empty()) {
      // The first stage does not look at items that only read.
      return compare || item.position < length ? absl::StatusCode::kOk : absl::StatusCode::kOutOfRange;
    }
    if (item.position > length) return absl::StatusCode::kOutOfRange;
    const auto count = static_cast<int64_t>(item.ids.size());
    if (item.position + count > kMaxTokens) return absl::StatusCode::kOutOfRange;
    const int64_t repeated = std::min(length - item.position, count);
    const bool same = std::equal(item.ids.begin(), item.ids.begin() + repeated, stored.begin() + item.position);
    return compare && !same ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kOk;
  }

  // The batch is planned: takes its appends into the model and notes what its queries must answer.
  void Settle() {
    if (settled_) return;
    settled_ = true;
    for (TestWork* work : batch_) {
      for (size_t i = 0; i < work->items.size(); ++i) {
        Expectation& item = work->items[i];
        const bool reads = item.ids.empty() && item.before == absl::StatusCode::kNotFound;
        item.after = item.before == absl::StatusCode::kOk || reads ? Predict(*work, item, false) : item.before;
        if (item.after != absl::StatusCode::kOk) continue;
        std::vector<int>& stored = Find(item.handle)->layers[work->step->step().layer];
        const auto length = static_cast<int64_t>(stored.size());
        const auto count = static_cast<int64_t>(item.ids.size());
        if (count > length - item.position && work->step->code(i) == absl::StatusCode::kResourceExhausted) {
          item.after = absl::StatusCode::kResourceExhausted;
          continue;
        }
        if (count > 0) {
          item.appended = std::max<int64_t>(item.position + count - length, 0);
          stored.insert(stored.end(), item.ids.end() - item.appended, item.ids.end());
        }
        const int64_t visible = count > 0 ? item.position + count : item.position + 1;
        if (item.query) item.o = MeanOfTokens(backend_.layout(), {stored.begin(), stored.begin() + visible});
      }
    }
  }

  void CheckItem(const TestWork& work, size_t i) {
    const Expectation& item = work.items[i];
    EXPECT_EQ(work.step->code(i), item.after) << work.step->item(i).status;
    ++outcomes_[item.after];
    EXPECT_EQ(work.step->item(i).tokens_appended, item.appended);
    if (!item.o.empty()) {
      EXPECT_EQ(work.step->o(i), item.o);
    }
  }

  // Between batches: every token of every sequence, and every page.
  void CheckEverything() {
    std::set<int32_t> used;
    SequenceStore::Batch batch(&store_, now_);
    for (const auto& [id, sequence] : model_) {
      for (int32_t layer = 0; layer < kLayers; ++layer) {
        ReadPlan plan;
        ASSERT_TRUE(batch.Read(sequence->tenant, sequence->handle, layer, &plan).ok());
        const std::vector<int>& stored = sequence->layers[layer];
        ASSERT_EQ(plan.length, static_cast<int64_t>(stored.size()));
        used.insert(plan.page_table.begin(), plan.page_table.end());
        for (size_t token = 0; token < stored.size(); ++token) {
          const int32_t page = plan.page_table[token / 4];
          const auto slot = static_cast<int32_t>(token % 4);
          ASSERT_EQ(backend_.Row(layer, page, false, 1, slot)[7], TokenValue(stored[token], false, 1, 7));
          ASSERT_EQ(backend_.Row(layer, page, true, 0, slot)[3], TokenValue(stored[token], true, 0, 3));
        }
      }
    }
    ASSERT_EQ(pool_.free_pages() + static_cast<int64_t>(used.size()), kPages);
  }

  std::mt19937 random_;
  const absl::Time now_ = absl::FromUnixSeconds(1000);
  FakeBackend backend_{TestLayout(kLayers), kPages};
  PagePool pool_{kPages};
  SequenceStore store_{kLayers, 4, kLimits, &pool_};
  BatchRunner runner_{&backend_, &store_, &pool_};
  BatchFormer former_{6};

  std::map<uint64_t, std::unique_ptr<ModelSequence>> model_;
  SequenceHandle dead_ = {.id = 12345, .generation = 1};
  int next_token_ = 1;
  std::vector<TestWork> works_;
  std::vector<TestWork*> batch_;
  bool running_ = false;
  bool settled_ = true;
  std::map<absl::StatusCode, int> outcomes_;
  int changes_inside_batches_ = 0;
};

TEST(BatchPropertyTest, BehavesAsPlainVectorsWould) {
  std::map<absl::StatusCode, int> outcomes;
  int changes_inside_batches = 0;
  for (uint32_t seed = 1; seed <= 40 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed);
    simulation.Play(200);
    for (const auto& [code, count] : simulation.outcomes()) outcomes[code] += count;
    changes_inside_batches += simulation.changes_inside_batches();
  }
  // The random work is of use only if it reaches every case often.
  for (const absl::StatusCode code : {absl::StatusCode::kOk, absl::StatusCode::kNotFound, absl::StatusCode::kOutOfRange,
                                      absl::StatusCode::kFailedPrecondition, absl::StatusCode::kResourceExhausted}) {
    EXPECT_GT(outcomes[code], 100) << absl::StatusCodeToString(code);
  }
  EXPECT_GT(changes_inside_batches, 1000);
}

}  // namespace
}  // namespace santa
