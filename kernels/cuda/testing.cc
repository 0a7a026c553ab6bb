#include "kernels/cuda/testing.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/decode_launch.h"
#include "kernels/cuda/decode_plan.h"
#include "kernels/cuda/decode_scratch.h"
#include "kernels/cuda/exact.h"
#include "kernels/cuda/group_draw.h"
#include "kernels/cuda/s2anta_flash.h"
#include "kernels/cuda/s2anta_prop.h"
#include "kernels/cuda/sketch_build.h"
#include "kernels/cuda/stored_scores.h"
#include "kernels/reference/number_format.h"
#include "kernels/sampling/pilot.h"
#include "kernels/sampling/score.h"

namespace santa::cuda {
namespace {

constexpr uint64_t kSamplingKey = 5;

std::vector<double> Normal(DType dtype, size_t count, double deviation, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return reference::RoundAll(dtype, values);
}

int64_t BeginOf(const reference::Step& step) { return sampling::VisibleBegin(step.num_tokens, step.options.window); }

// A problem on the device.
struct DeviceProblem {
  explicit DeviceProblem(const Problem& problem)
      : pool(PoolOf(problem, BeginOf(problem.step))),
        q(reference::EncodeAll(problem.shape.query_type(), problem.step.q)),
        page_table(problem.page_table),
        sinks(std::vector<float>(problem.step.sink_logits.begin(), problem.step.sink_logits.end())),
        scales(problem.scales),
        sketch(std::vector<uint8_t>(problem.page_table.size() * problem.shape.layout().sketch_page_bytes(), 0xff)) {
    if (problem.shape.sketch == Sketch::kNone) return;
    const int64_t full = problem.step.num_tokens / problem.shape.page_size;
    const DeviceVector<int64_t> pages(
        std::vector<int64_t>(problem.page_table.begin(), problem.page_table.begin() + full));
    Check(LaunchSketchBuild({.pool = pool.get(),
                             .sketch = sketch.get(),
                             .pages = pages.get(),
                             .num_pages = static_cast<int32_t>(full),
                             .num_kv_heads = problem.shape.num_kv_heads,
                             .head_dim = problem.shape.head_dim,
                             .page_size = problem.shape.page_size,
                             .key_bits = KeyBits(problem.shape.sketch),
                             .value_bits = ValueBits(problem.shape.sketch),
                             .stored = problem.shape.dtype},
                            nullptr));
    Check(cudaDeviceSynchronize());
  }

  DeviceVector<uint8_t> pool, q;
  DeviceVector<int32_t> page_table;
  DeviceVector<float> sinks, scales;
  DeviceVector<uint8_t> sketch;
};

// A batch, cut into work.
struct Batch {
  std::vector<ItemPlan> plans;
  std::vector<WorkUnit> work;
  std::array<WorkRange, kNumKernels> ranges;
  int32_t splits = 0;
};

// As far as plans go.
DecodeItem DecodeItemOf(const reference::Step& step) {
  return {.num_tokens = step.num_tokens, .options = step.options};
}

Batch Cut(const std::vector<Item>& items) {
  Batch batch;
  for (const Item& item : items) {
    const reference::Step& step = item.problem->step;
    batch.plans.push_back(PlanItem(DecodeItemOf(step), item.problem->shape.layout(),
                                   sampling::kMostWithoutPilot + 1));  // so that short sequences are enough for a test
    batch.splits += batch.plans.back().splits.count;
    batch.work.resize(batch.work.size() + batch.plans.back().num_units());
  }
  std::vector<int32_t> order;
  OrderWork(batch.plans, order, batch.work.data(), batch.ranges);
  return batch;
}

// What the methods that store scores need beside the launch; filled with bytes that mean nothing.
struct StoredParts {
  StoredParts(const std::vector<Item>& items, const Batch& batch)
      : scratch(Place(items, batch)), stored(Filled()), arrays(Arrays(items, batch)) {}

  std::vector<int64_t> places;
  std::vector<StoredItem> host;
  std::vector<int32_t> numbers;
  bool long_lines = false;
  int32_t most_prop_splits = 0;
  int32_t longest_split = 0, most_rows = 0;
  DeviceVector<uint8_t> scratch;
  DeviceVector<StoredItem> stored;
  DeviceVector<GroupArrays> arrays;
  DeviceVector<int32_t> device_numbers{numbers};

 private:
  std::vector<uint8_t> Place(const std::vector<Item>& items, const Batch& batch) {
    int64_t bytes = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      const reference::Step& step = items[i].problem->step;
      const ItemPlan& plan = batch.plans[i];
      host.push_back({.method = step.options.method, .budget_rounding = step.options.budget_rounding});
      places.push_back(bytes);
      bytes += StoredBytes(plan, DecodeItemOf(step), items[i].problem->shape.layout());
      longest_split = std::max(longest_split, plan.splits.tokens);
      most_rows = std::max(most_rows, static_cast<int32_t>(plan.sample_count) + items[i].problem->shape.page_size);
      if (plan.kernel == Kernel::kS2antaProp) most_prop_splits = std::max(most_prop_splits, plan.splits.count);
      if (plan.kernel != Kernel::kStoredScores) continue;
      numbers.push_back(static_cast<int32_t>(i));
      long_lines |= NeedsLongLines(step.options.method, plan.begin, plan.end, plan.sample_count);
    }
    return std::vector<uint8_t>(bytes, 0xff);
  }
  std::vector<GroupArrays> Arrays(const std::vector<Item>& items, const Batch& batch) {
    std::vector<GroupArrays> all;
    for (size_t i = 0; i < items.size(); ++i) {
      const Problem& problem = *items[i].problem;
      all.push_back(
          ArraysOf(scratch.get() + places[i], problem.step.options.method, problem.shape.layout(), batch.plans[i]));
    }
    return all;
  }
  std::vector<StoredItem> Filled() {
    for (size_t i = 0; i < host.size(); ++i) host[i].scratch = scratch.get() + places[i];
    return host;
  }
};

void Launch(DecodeLaunch launch, const std::vector<Item>& items, const Batch& batch, const StoredParts& parts,
            const WorkUnit* work, int run) {
  const auto of = [&](Kernel kernel) {
    const WorkRange range = batch.ranges[static_cast<size_t>(kernel)];
    launch.work = work + range.first;
    launch.num_work = range.count;
    return range.count > 0;
  };
  if (of(Kernel::kExact)) Check(LaunchExact(launch, nullptr));
  if (of(Kernel::kS2antaFlash)) Check(LaunchS2antaFlash(launch, nullptr));
  for (const Kernel kernel : kGroupKernels) {
    if (!of(kernel)) continue;
    std::vector<int32_t> pilots;
    const WorkRange range = batch.ranges[static_cast<size_t>(kernel)];
    for (const WorkUnit& unit : std::span(batch.work).subspan(range.first, range.count)) {
      if (HasPilot(kernel) && unit.split == 0) pilots.push_back(unit.item);
    }
    const DeviceVector<int32_t> device_pilots(pilots);
    const GroupLaunch group = {.decode = launch,
                               .arrays = parts.arrays.get(),
                               .method = GroupMethod(kernel),
                               .sketch = items[0].problem->shape.sketch,
                               .longest_split = parts.longest_split,
                               .most_rows = parts.most_rows,
                               .pilots = pilots.empty() ? nullptr : device_pilots.get(),
                               .num_pilots = static_cast<int32_t>(pilots.size())};
    if (run == 1 && HasPilot(kernel) && SupportsWarpPass(group)) {  // as in a call of many splits
      Check(LaunchPilotThreshold(group, nullptr));
      Check(LaunchWarpPass(group, nullptr));
    } else {
      Check(LaunchGroupDraw(group, nullptr));
    }
    Check(cudaDeviceSynchronize());  // before the pilots' memory goes
  }
  if (of(Kernel::kS2antaProp)) {
    Check(LaunchS2antaProp({.decode = launch, .stored = parts.stored.get(), .most_splits = parts.most_prop_splits},
                           nullptr));
  }
  if (of(Kernel::kStoredScores)) {
    Check(LaunchStoredScores({.decode = launch,
                              .stored = parts.stored.get(),
                              .numbers = parts.device_numbers.get(),
                              .num_items = static_cast<int32_t>(parts.numbers.size()),
                              .long_lines = parts.long_lines},
                             nullptr));
  }
  Check(cudaDeviceSynchronize());
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

void GpuTest::SetUp() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU on this machine";
}

void Check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

KvLayout Shape::layout() const {
  return {.num_layers = 1,
          .num_query_heads = group_size * num_kv_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .page_size = page_size,
          .dtype = dtype,
          .sketch = sketch};
}

std::string Describe(const Shape& shape) {
  return std::string(Name(shape.dtype)) + (shape.scaled ? " scaled" : "") + " G " + std::to_string(shape.group_size) +
         " H_kv " + std::to_string(shape.num_kv_heads) + " D " + std::to_string(shape.head_dim) + " page " +
         std::to_string(shape.page_size) + " " + std::string(Name(shape.sketch));
}

Problem MakeProblem(const Shape& shape, int64_t num_tokens) {
  std::mt19937_64 random(shape.group_size * 1000 + shape.head_dim + num_tokens);
  Problem problem{.shape = shape, .step = {}, .page_table = {}, .scales = {}};
  reference::Step& step = problem.step;
  step.num_query_heads = shape.group_size * shape.num_kv_heads;
  step.num_kv_heads = shape.num_kv_heads;
  step.head_dim = shape.head_dim;
  step.num_tokens = num_tokens;
  step.page_size = shape.page_size;
  step.sketch = shape.layout().sketch;
  const size_t numbers = static_cast<size_t>(num_tokens) * shape.num_kv_heads * shape.head_dim;
  step.q = Normal(shape.query_type(), static_cast<size_t>(step.num_query_heads) * shape.head_dim, 2, random);
  step.k = Normal(shape.dtype, numbers, 1, random);
  step.v = Normal(shape.dtype, numbers, 1, random);
  if (shape.scaled) {
    for (int i = 0; i < 2 * shape.num_kv_heads; ++i) problem.scales.push_back(i % 2 == 0 ? 0.5f : 2.0f);
    for (size_t i = 0; i < numbers; ++i) {
      const size_t head = i / shape.head_dim % shape.num_kv_heads;
      step.k[i] *= problem.scales[head];
      step.v[i] *= problem.scales[shape.num_kv_heads + head];
    }
  }
  const auto pages = static_cast<int32_t>((num_tokens + shape.page_size - 1) / shape.page_size) + 3;
  problem.page_table.resize(pages);
  std::iota(problem.page_table.begin(), problem.page_table.end(), 0);
  std::shuffle(problem.page_table.begin(), problem.page_table.end(), random);
  return problem;
}

std::vector<uint8_t> PoolOf(const Problem& problem, int64_t first_token) {
  const Shape& shape = problem.shape;
  const KvLayout layout = shape.layout();
  // 0xff.. is a NaN in every type.
  std::vector<uint8_t> pool(problem.page_table.size() * layout.layer_page_bytes(), 0xff);
  for (int64_t token = first_token; token < problem.step.num_tokens; ++token) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      for (int which = 0; which < 2; ++which) {
        const size_t page = static_cast<size_t>(problem.page_table[token / shape.page_size]) * 2 + which;
        uint8_t* to = pool.data() + (page * shape.num_kv_heads + head) * layout.head_page_bytes() +
                      token % shape.page_size * layout.row_bytes();
        const std::vector<double>& all = which == 0 ? problem.step.k : problem.step.v;
        const double scale = problem.scales.empty() ? 1 : problem.scales[which * shape.num_kv_heads + head];
        const double* from = &all[(token * shape.num_kv_heads + head) * shape.head_dim];
        for (int d = 0; d < shape.head_dim; ++d) {
          const uint32_t bits = reference::Encode(shape.dtype, from[d] / scale);
          for (size_t byte = 0; byte < SizeOf(shape.dtype); ++byte) *to++ = static_cast<uint8_t>(bits >> 8 * byte);
        }
      }
    }
  }
  return pool;
}

std::vector<Answer> DecodeOnGpu(const std::vector<Item>& items) {
  const Shape& shape = items[0].problem->shape;
  const size_t heads = items[0].problem->step.num_query_heads, outputs = heads * shape.head_dim;
  const Batch batch = Cut(items);
  std::map<const Problem*, std::unique_ptr<DeviceProblem>> problems;
  for (const Item& item : items) {
    std::unique_ptr<DeviceProblem>& problem = problems[item.problem];
    if (problem == nullptr) problem = std::make_unique<DeviceProblem>(*item.problem);
  }
  const DeviceVector<float> o(std::vector<float>(items.size() * outputs, NAN));
  const DeviceVector<float> lse(std::vector<float>(items.size() * heads, NAN));
  const DeviceVector<float> errors(std::vector<float>(items.size() * heads, NAN));
  const DeviceVector<unsigned long long> rows_read(std::vector<unsigned long long>(items.size(), 0));
  const DeviceVector<float> partial_o(std::vector<float>(batch.splits * outputs, NAN));
  const DeviceVector<float2> partial_max_sum(std::vector<float2>(batch.splits * heads, float2{NAN, NAN}));
  const DeviceVector<sampling::StepSums> partial_errors(
      std::vector<sampling::StepSums>(batch.splits * heads, {NAN, NAN, NAN}));
  const size_t num_tickets = 2 * items.size() * shape.num_kv_heads;
  const DeviceVector<unsigned> tickets(std::vector<unsigned>(num_tickets + 1, 0));  // and next_unit
  std::vector<DeviceItem> host_items;
  int32_t first_split = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const reference::Step& step = items[i].problem->step;
    const DeviceProblem& on_device = *problems[items[i].problem];
    const ItemPlan& plan = batch.plans[i];
    host_items.push_back({.layer = on_device.pool.get(),
                          .sketch = on_device.sketch.get(),
                          .page_table = on_device.page_table.get(),
                          .q = on_device.q.get(),
                          .o = o.get() + i * outputs,
                          .lse = lse.get() + i * heads,
                          .sinks = step.sink_logits.empty() ? nullptr : on_device.sinks.get(),
                          .kv_scales = items[i].problem->scales.empty() ? nullptr : on_device.scales.get(),
                          .relative_standard_error = errors.get() + i * heads,
                          .rows_read = plan.kernel == Kernel::kExact ? nullptr : rows_read.get() + i,
                          .seed = items[i].seed,
                          .sampling_key = kSamplingKey,
                          .position = plan.end - 1,
                          .begin = plan.begin,
                          .end = plan.end,
                          .first_split = first_split,
                          .num_splits = plan.splits.count,
                          .layer_index = 0,
                          .sample_count = plan.sample_count,
                          .scale = sampling::EffectiveScale(step.options.scale, shape.head_dim),
                          .soft_cap = step.options.soft_cap,
                          .io_dtype = DType::kFloat32});
    first_split += plan.splits.count;
  }
  const DeviceVector<DeviceItem> device_items(host_items);
  const DeviceVector<WorkUnit> work(batch.work);
  const DecodeLaunch launch = {.items = device_items.get(),
                               .partial_o = partial_o.get(),
                               .partial_max_sum = partial_max_sum.get(),
                               .partial_errors = partial_errors.get(),
                               .tickets = tickets.get(),
                               .next_unit = tickets.get() + num_tickets,
                               .num_kv_heads = shape.num_kv_heads,
                               .group_size = shape.group_size,
                               .head_dim = shape.head_dim,
                               .page_shift = std::countr_zero(static_cast<uint32_t>(shape.page_size)),
                               .dtype = shape.dtype};
  const StoredParts parts(items, batch);
  std::vector<float> all_o, all_lse, all_errors;
  // Twice: the second run must find in order what the first one left, and say the same.
  for (int run = 0; run < 2; ++run) {
    Launch(launch, items, batch, parts, work.get(), run);
    const std::vector<float> first_o = std::exchange(all_o, o.Read()), first_lse = std::exchange(all_lse, lse.Read());
    const std::vector<float> first_errors = std::exchange(all_errors, errors.Read());
    if (run == 0) continue;
    EXPECT_TRUE(SameBits(all_o, first_o) && SameBits(all_lse, first_lse) && SameBits(all_errors, first_errors));
  }
  const std::vector<unsigned long long> all_rows = rows_read.Read();
  for (const unsigned ticket : tickets.Read()) EXPECT_EQ(ticket, 0u);
  std::vector<Answer> answers(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    answers[i].o.assign(all_o.begin() + i * outputs, all_o.begin() + (i + 1) * outputs);
    answers[i].lse.assign(all_lse.begin() + i * heads, all_lse.begin() + (i + 1) * heads);
    answers[i].relative_standard_error.assign(all_errors.begin() + i * heads, all_errors.begin() + (i + 1) * heads);
    EXPECT_EQ(all_rows[i] % 2, 0u);
    answers[i].rows_read = all_rows[i] / 2;  // of the two runs
  }
  return answers;
}

std::vector<Answer> DecodeOnCpu(const std::vector<Item>& items) {
  std::vector<Answer> answers(items.size());
  std::map<const Problem*, std::vector<size_t>> of_problem;
  for (size_t i = 0; i < items.size(); ++i) of_problem[items[i].problem].push_back(i);
  for (const auto& [problem, indices] : of_problem) {
    const reference::Step& step = problem->step;
    KvLayout layout = problem->shape.layout();
    layout.dtype = problem->shape.query_type();  // fp16 holds what fp8 does
    const auto pages = static_cast<int32_t>(problem->page_table.size());
    const absl::StatusOr<std::unique_ptr<Backend>> backend =
        MakeCpuBackend({.layout = layout, .num_pages = pages, .num_threads = 0});
    EXPECT_TRUE(backend.ok()) << backend.status();
    if (!backend.ok()) return answers;
    const std::vector<uint8_t> k = reference::EncodeAll(layout.dtype, step.k);
    const std::vector<uint8_t> v = reference::EncodeAll(layout.dtype, step.v);
    const KvAppend append = {.page_table = problem->page_table.data(),
                             .num_tokens = step.num_tokens,
                             .dtype = layout.dtype,
                             .k = k.data(),
                             .v = v.data()};
    EXPECT_TRUE((*backend)->Append({&append, 1}).ok());
    const std::vector<float> q(step.q.begin(), step.q.end());
    const std::vector<float> sinks(step.sink_logits.begin(), step.sink_logits.end());
    std::vector<DecodeItem> decode;
    std::vector<DecodeStatistics> statistics(indices.size());
    for (size_t j = 0; j < indices.size(); ++j) {
      Answer& answer = answers[indices[j]];
      answer.o.resize(q.size());
      answer.lse.resize(step.num_query_heads);
      AttentionOptions options = step.options;
      options.seed = items[indices[j]].seed;
      decode.push_back({.page_table = problem->page_table.data(),
                        .num_tokens = step.num_tokens,
                        .sampling_key = kSamplingKey,
                        .options = options,
                        .sink_logits = sinks.empty() ? nullptr : sinks.data(),
                        .q = q.data(),
                        .o = answer.o.data(),
                        .lse = answer.lse.data(),
                        .statistics = &statistics[j]});
    }
    EXPECT_TRUE((*backend)->Decode(decode).ok());
    for (size_t j = 0; j < indices.size(); ++j) {
      answers[indices[j]].rows_read = static_cast<uint64_t>(statistics[j].value_rows_read);
    }
  }
  return answers;
}

double RelativeError(const float* found, const float* expected, size_t count) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    difference += std::pow(double{found[i]} - double{expected[i]}, 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  const double error = std::sqrt(difference / norm);
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

double RelativeError(const std::vector<float>& found, const std::vector<double>& expected) {
  const std::vector<float> narrow(expected.begin(), expected.end());
  return RelativeError(found.data(), narrow.data(), narrow.size());
}

namespace {

int FewerSeeds() {
  const char* divisor = std::getenv("SANTA_FEWER_SEEDS");
  return divisor == nullptr ? 1 : std::clamp(std::atoi(divisor), 1, 100);
}

}  // namespace

int SeedCount(int full) { return full / FewerSeeds(); }

double Widened(double deviation) { return deviation * std::sqrt(FewerSeeds()); }

Fit FitMoments(const Problem& problem, const std::vector<Answer>& answers) {
  const reference::Moments moments = reference::MomentsOf(problem.step);
  const auto count = static_cast<double>(answers.size());
  Fit fit;
  double squared_error = 0, variance = 0;
  const std::vector<double> lse = reference::Exact(problem.step).lse;
  for (size_t i = 0; i < moments.mean.size(); ++i) {
    const size_t head = i / problem.step.head_dim;
    double mean = 0;
    for (const Answer& answer : answers) {
      // Where lse is exact, the answer itself.
      const double o = answer.o[i] * std::exp(answer.lse[head] - lse[head]);
      mean += o / count;
      squared_error += std::pow(o - moments.mean[i], 2) / count;
    }
    variance += moments.variance[i];
    // Beside the standard error, what fp32 rounds: some components of some estimators hardly vary.
    const double allowed = std::sqrt(moments.variance[i] / count) + 1e-6;
    fit.worst_z = std::max(fit.worst_z, std::abs(mean - moments.mean[i]) / allowed);
  }
  fit.variance_ratio = squared_error / variance;
  return fit;
}

Comparison CompareToCpu(const std::vector<Item>& items, const std::vector<Answer>& found) {
  const std::vector<Answer> expected = DecodeOnCpu(items);
  Comparison comparison;
  for (size_t i = 0; i < items.size(); ++i) {
    const reference::Step& step = items[i].problem->step;
    const std::string what = Describe(items[i].problem->shape) + ", n " + std::to_string(step.num_tokens) + ", " +
                             std::string(Name(step.options.method)) + ", S " +
                             std::to_string(step.options.sample_count) + ", seed " + std::to_string(items[i].seed);
    int moved = 0;
    for (int head = 0; head < step.num_query_heads; ++head) {
      EXPECT_NEAR(found[i].lse[head], expected[i].lse[head], 1e-5 * (1 + std::abs(expected[i].lse[head])))
          << what << ", head " << head;
      const size_t at = static_cast<size_t>(head) * step.head_dim;
      const double error = RelativeError(&found[i].o[at], &expected[i].o[at], step.head_dim);
      EXPECT_LT(error, 4) << what << ", head " << head;
      moved += error > kRounding ? 1 : 0;
    }
    if (moved == 0) {
      EXPECT_EQ(found[i].rows_read, expected[i].rows_read) << what;
    }
    comparison.moved += moved;
    comparison.heads += step.num_query_heads;
  }
  return comparison;
}

}  // namespace santa::cuda
