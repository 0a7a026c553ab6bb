#include "client/examples/passage.h"

#include <gtest/gtest.h>

#include <set>

namespace santa {
namespace {

std::string Lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "line " + std::to_string(i) + " of a text that nobody wrote\n";
  return text;
}

TEST(MakePassage, HidesEveryKeyOnceAndKeepsTheText) {
  const std::string text = Lines(200);
  const auto passage = MakePassage("lines", text, {.context = 2048, .continuation = 101, .num_keys = 5, .seed = 3});
  ASSERT_TRUE(passage.ok()) << passage.status();
  EXPECT_EQ(passage->prompt.size() + passage->continuation.size(), 2048);
  EXPECT_EQ(passage->continuation.size(), 101);
  std::string rest = passage->prompt;
  std::set<std::string> questions;
  size_t last = 0;
  for (const PassKey& key : passage->keys) {
    const size_t place = rest.find(key.note);
    ASSERT_NE(place, std::string::npos);
    EXPECT_GE(place, last);  // at ascending depths
    last = place;
    rest.erase(place, key.note.size());
    EXPECT_EQ(rest.find(key.answer + ".]"), std::string::npos);
    questions.insert(key.question);
    // What the model was trained on; see model/README.md.
    const std::string box = key.question.substr(30, 4);
    EXPECT_EQ(key.note, "\n[The pass key of box " + box + " is " + key.answer + ".]\n");
    EXPECT_EQ(key.question, "\n[What is the pass key of box " + box + "? It is ");
  }
  EXPECT_EQ(questions.size(), 5);
  EXPECT_EQ(rest + passage->continuation, text.substr(0, rest.size() + 101));
}

TEST(MakePassage, IsAFunctionOfItsSeed) {
  const PassageOptions options = {.context = 1024, .continuation = 65, .num_keys = 3, .seed = 9};
  PassageOptions other = options;
  other.seed = 10;
  const auto a = MakePassage("a", Lines(100), options), b = MakePassage("a", Lines(100), options);
  const auto c = MakePassage("a", Lines(100), other);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ(a->prompt, b->prompt);
  EXPECT_NE(a->prompt, c->prompt);
}

TEST(MakePassage, RefusesWhatDoesNotFit) {
  const std::string text = Lines(100);
  const auto code = [&](const PassageOptions& options) { return MakePassage("a", text, options).status().code(); };
  EXPECT_EQ(code({.context = 1 << 20}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.context = 300, .continuation = 257}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.context = 1024, .continuation = 1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.context = 1024, .num_keys = -1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.context = 1024, .num_keys = 500}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ListTexts("no/such/folder").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadText("no/such/file").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace santa
