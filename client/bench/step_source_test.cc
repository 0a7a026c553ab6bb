#include "client/bench/step_source.h"

#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

namespace santa::bench {
namespace {

v1::KvLayout Layout() {
  v1::KvLayout layout;
  layout.set_num_layers(2);
  layout.set_num_query_heads(4);
  layout.set_num_kv_heads(2);
  layout.set_head_dim(8);
  return layout;
}

std::vector<v1::SequenceHandle> Handles(int count) {
  std::vector<v1::SequenceHandle> handles(count);
  for (int i = 0; i < count; ++i) handles[i].set_id(i + 1);
  return handles;
}

TEST(StepSourceTest, AttendsInEverySequenceLayerAfterLayer) {
  StepSource source({.layers = 2, .method = v1::METHOD_SANTA, .samples = 3, .score_draws = 2}, Layout(), Handles(3),
                    {10, 20, 30}, 1);
  for (const uint32_t layer : {0, 1, 0, 1}) {
    const LoadStep step = source.Next();
    EXPECT_EQ(step.request.layer(), layer);
    ASSERT_EQ(step.request.items_size(), 3);
    for (int i = 0; i < 3; ++i) {
      const v1::AttendItem& item = step.request.items(i);
      EXPECT_EQ(item.handle().id(), i + 1);
      EXPECT_EQ(item.position(), 10 * i + 9);
      EXPECT_EQ(item.q().data().size(), 4 * 8 * 2);
      EXPECT_FALSE(item.has_k());
      EXPECT_EQ(item.options().method(), v1::METHOD_SANTA);
      EXPECT_EQ(item.options().sample_count(), 3);
      EXPECT_EQ(item.options().score_draws(), 2);
      EXPECT_EQ(item.options().want_statistics(), i == 0);
    }
    EXPECT_NE(step.request.items(0).q().data(), step.request.items(1).q().data());
  }
}

TEST(StepSourceTest, AFormLacksTheDataThatIsThenWritten) {
  StepSource source({.append = true}, Layout(), Handles(2), {10, 20}, 1);
  const LoadStep whole = source.Next(), form = source.NextForm();
  std::vector<std::string> memory(6, std::string(4 * 8 * 2, 0));
  std::vector<TensorRooms> rooms(2);
  for (int i = 0; i < 2; ++i) {
    rooms[i] = {memory[3 * i], std::span(memory[3 * i + 1]).first(32), std::span(memory[3 * i + 2]).first(32)};
  }
  source.Write(rooms);
  for (int i = 0; i < 2; ++i) {
    const v1::AttendItem& has = whole.request.items(i);
    const v1::AttendItem& lacks = form.request.items(i);
    EXPECT_EQ(lacks.position(), has.position() + 1);
    for (const v1::Tensor* tensor : {&lacks.q(), &lacks.k(), &lacks.v()}) {
      EXPECT_TRUE(tensor->data().empty());
      EXPECT_EQ(tensor->shape_size(), 3);
    }
    EXPECT_EQ(memory[3 * i], has.q().data());
    EXPECT_EQ(memory[3 * i + 1].substr(0, 32), has.k().data());
    EXPECT_EQ(memory[3 * i + 2].substr(0, 32), has.v().data());
  }
}

TEST(StepSourceTest, AppendsInOrderAndGoesBackToWhatWasRefused) {
  StepSource source({.layers = 2, .append = true}, Layout(), Handles(1), {10}, 1);
  const auto next = [&source] {
    const LoadStep step = source.Next();
    EXPECT_EQ(step.request.items(0).position(), 10 + step.appended);
    EXPECT_EQ(step.request.items(0).v().data().size(), 2 * 8 * 2);
    return std::pair<uint32_t, int64_t>(step.layer, step.appended);
  };
  using Pair = std::pair<uint32_t, int64_t>;
  EXPECT_EQ(next(), Pair(0, 0));
  EXPECT_EQ(next(), Pair(1, 0));
  EXPECT_EQ(next(), Pair(0, 1));
  EXPECT_EQ(next(), Pair(1, 1));
  source.Refused(0, 0);  // and so the one that followed it
  source.Refused(0, 1);
  EXPECT_EQ(next(), Pair(0, 0));
  EXPECT_EQ(next(), Pair(1, 2));
  EXPECT_EQ(next(), Pair(0, 1));
}

TEST(StepSourceTest, TheSeedDecidesTheTensors) {
  const LoadOptions options;
  const auto q = [&](uint64_t seed) {
    StepSource source(options, Layout(), Handles(1), {10}, seed);
    return source.Next().request.items(0).q().data();
  };
  EXPECT_EQ(q(1), q(1));
  EXPECT_NE(q(1), q(2));
}

}  // namespace
}  // namespace santa::bench
