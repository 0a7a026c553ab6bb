#include "client/cli.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "client/safetensors.h"
#include "client/tensor.h"
#include "client/testing/fake_attention_server.h"
#include "client/testing/run_command.h"

namespace santa {
namespace {

using client_testing::FakeAttentionServer;
using client_testing::Faults;
using client_testing::RunCommand;

constexpr int kQueryHeads = 4;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 8;
constexpr int kTokens = 40;

Tensor Waves(std::vector<int64_t> shape, ElementType type = ElementType::kFloat32) {
  int64_t size = 1;
  for (const int64_t extent : shape) size *= extent;
  std::vector<float> values(size);
  for (int64_t i = 0; i < size; ++i) values[i] = std::sin(static_cast<float>(i) * 0.37f);
  return FromFloats(values, std::move(shape), type);
}

struct Outcome {
  int exit_code;
  std::string out;
  std::string err;
};

class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    options_.server = server_.target();
    options_.file = Path("input");
    options_.out = Path("output");
    tensors_ = {{"q", Waves({kQueryHeads, kHeadDim})},
                {"k", Waves({kTokens, kKvHeads, kHeadDim})},
                {"v", Waves({kTokens, kKvHeads, kHeadDim})}};
  }

  static std::string Path(const std::string& name) {
    const char* test = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    return ::testing::TempDir() + "/" + test + "_" + name + ".safetensors";
  }

  void WriteInput() {
    std::map<std::string, TensorView, std::less<>> views;
    for (const auto& [name, tensor] : tensors_) views.emplace(name, tensor.view());
    const absl::Status status = WriteSafetensors(options_.file, views);
    ASSERT_TRUE(status.ok()) << status;
  }

  Outcome Run(const std::vector<std::string>& arguments) {
    std::ostringstream out;
    std::ostringstream err;
    const int exit_code = RunCli(options_, arguments, out, err);
    return {exit_code, out.str(), err.str()};
  }

  // What must be refused with `message` before the server holds a sequence.
  void ExpectUsageError(const std::vector<std::string>& arguments, const std::string& message) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.exit_code, kCliUsageError) << outcome.out;
    EXPECT_NE(outcome.err.find(message), std::string::npos) << outcome.err;
    EXPECT_EQ(server_.append_messages(), 0);
  }

  FakeAttentionServer server_;
  CliOptions options_;
  std::map<std::string, Tensor> tensors_;
};

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_F(CliTest, TellsAboutTheServer) {
  const Outcome outcome = Run({"info"});
  EXPECT_EQ(outcome.exit_code, kCliOk) << outcome.err;
  EXPECT_TRUE(Contains(outcome.out, "2 layers, 4 query heads, 2 KV heads, head dimension 8")) << outcome.out;
  EXPECT_TRUE(Contains(outcome.out, "EXACT, S2ANTA_FLASH")) << outcome.out;
}

TEST_F(CliTest, ListsSequences) {
  const Outcome outcome = Run({"sequences"});
  EXPECT_EQ(outcome.exit_code, kCliOk) << outcome.err;
  EXPECT_TRUE(Contains(outcome.out, "generation")) << outcome.out;
}

TEST_F(CliTest, AttendsAndWritesTheAnswer) {
  WriteInput();
  const Outcome outcome = Run({"attend"});
  ASSERT_EQ(outcome.exit_code, kCliOk) << outcome.err;
  EXPECT_TRUE(Contains(outcome.out, "layer 0: 40 tokens, EXACT")) << outcome.out;
  EXPECT_TRUE(Contains(outcome.out, "80 of 80 (100.00 %)")) << outcome.out;
  EXPECT_EQ(server_.num_sequences(), 0);

  // Against attention computed here: head 3 reads KV head 1.
  const absl::StatusOr<Safetensors> answer = Safetensors::Open(options_.out);
  ASSERT_TRUE(answer.ok()) << answer.status();
  const std::vector<float> q = *ToFloats(tensors_["q"].view());
  const std::vector<float> kv = *ToFloats(tensors_["k"].view());  // v is the same
  double sum = 0;
  double weighted = 0;
  for (int token = 0; token < kTokens; ++token) {
    const float* row = kv.data() + (token * kKvHeads + 1) * kHeadDim;
    double score = 0;
    for (int d = 0; d < kHeadDim; ++d) score += double{q[3 * kHeadDim + d]} * row[d];
    sum += std::exp(score / std::sqrt(8.0));
    weighted += std::exp(score / std::sqrt(8.0)) * row[5];
  }
  EXPECT_EQ(answer->Get("o")->shape, (std::vector<int64_t>{1, kQueryHeads, kHeadDim}));
  EXPECT_NEAR((*ToFloats(*answer->Get("o")))[3 * kHeadDim + 5], weighted / sum, 1e-5);
  EXPECT_NEAR((*ToFloats(*answer->Get("lse")))[3], std::log(sum), 1e-5);
}

TEST_F(CliTest, ComparesWithTheExactAnswer) {
  WriteInput();
  options_.method = "s2anta_flash";
  options_.compare = true;
  const Outcome outcome = Run({"attend"});
  ASSERT_EQ(outcome.exit_code, kCliOk) << outcome.err;
  EXPECT_TRUE(Contains(outcome.out, "S2ANTA_FLASH, 3 samples a query head, seed 0")) << outcome.out;
  EXPECT_TRUE(Contains(outcome.out, "relative error    3.906e-03")) << outcome.out;  // the fake's 1/256
  EXPECT_EQ(server_.attend_requests(), 2);
}

TEST_F(CliTest, AttendsLayerByLayer) {
  std::map<std::string, Tensor> layered;
  for (const auto& [name, tensor] : tensors_) {
    layered["layer.0." + name] = tensor;
    layered["layer.1." + name] = tensor;
  }
  layered["layer.1.q"] = Waves({1, kQueryHeads, kHeadDim}, ElementType::kBFloat16);
  tensors_ = layered;
  WriteInput();
  const Outcome outcome = Run({"attend"});
  ASSERT_EQ(outcome.exit_code, kCliOk) << outcome.err;
  EXPECT_TRUE(Contains(outcome.out, "layer 1: 40 tokens")) << outcome.out;
  const absl::StatusOr<Safetensors> answer = Safetensors::Open(options_.out);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->tensors().size(), 4);
  EXPECT_EQ(answer->Get("layer.0.o")->type, ElementType::kFloat32);
  EXPECT_EQ(answer->Get("layer.1.o")->type, ElementType::kBFloat16);
}

TEST_F(CliTest, RefusesWrongCommandsAndFlags) {
  ExpectUsageError({}, "info, sequences or attend");
  ExpectUsageError({"attend", "more"}, "one command");
  ExpectUsageError({"atend"}, "\"atend\" is none of");
  options_.method = "BEST";
  ExpectUsageError({"attend"}, "S2ANTA_PROP");
  options_.method = "EXACT";
  options_.samples = 3;
  ExpectUsageError({"attend"}, "--samples");
  options_.method = "BERNOULLI_QK";
  ExpectUsageError({"attend"}, "--samples: BERNOULLI_QK draws none");
  options_.samples = 0;
  options_.method = "EXACT";
  options_.score_draws = 2;
  ExpectUsageError({"attend"}, "--score_draws");
  options_.score_draws = 0;
  options_.file.clear();
  ExpectUsageError({"attend"}, "--file");
  options_.file = "/no/such/file";
  ExpectUsageError({"attend"}, "/no/such/file");
  options_.token_file = "/no/such/token";
  ExpectUsageError({"info"}, "/no/such/token");
}

TEST_F(CliTest, RefusesFilesThatItCannotUse) {
  const std::map<std::string, Tensor> good = tensors_;
  const auto expect = [&](const std::string& name, const Tensor& tensor, const std::string& message) {
    tensors_ = good;
    tensors_[name] = tensor;
    WriteInput();
    ExpectUsageError({"attend"}, message);
  };
  expect("q", Waves({2, kQueryHeads, kHeadDim}), "one query token");
  expect("q", {.type = ElementType::kInt32, .shape = {1}, .data = "abcd"}, "I32");
  expect("k", Waves({kTokens, kHeadDim}), "must both be");
  expect("v", Waves({kTokens - 1, kKvHeads, kHeadDim}), "must both be");
  expect("v", Waves({kTokens, kKvHeads, kHeadDim}, ElementType::kFloat16), "must both be");
  tensors_ = good;
  tensors_.erase("v");
  WriteInput();
  ExpectUsageError({"attend"}, "no tensor \"v\"");
  std::ofstream(options_.file, std::ios::trunc) << "not a safetensors file";
  ExpectUsageError({"attend"}, "does not fit");
}

TEST_F(CliTest, ReportsTheServersErrors) {
  WriteInput();
  options_.layer = 9;
  Outcome outcome = Run({"attend"});
  EXPECT_EQ(outcome.exit_code, kCliServerError);
  EXPECT_TRUE(Contains(outcome.err, "INVALID_ARGUMENT")) << outcome.err;
  EXPECT_EQ(server_.num_sequences(), 0);

  Faults faults;
  faults.required_bearer_token = "secret";
  server_.set_faults(faults);
  EXPECT_EQ(Run({"info"}).exit_code, kCliServerError);
  options_.token_file = Path("token");
  std::ofstream(options_.token_file) << "secret\n";
  outcome = Run({"info"});
  EXPECT_EQ(outcome.exit_code, kCliOk) << outcome.err;
}

TEST_F(CliTest, TheProgramReadsItsFlags) {
  WriteInput();
  const std::string program = "client/attention_cli --server=" + server_.target();
  const auto attended =
      RunCommand(program + " attend --method S2ANTA_FLASH --samples=5 --compare --file=" + options_.file);
  EXPECT_EQ(attended.exit_code, kCliOk) << attended.output;
  EXPECT_TRUE(Contains(attended.output, "5 samples")) << attended.output;
  EXPECT_TRUE(Contains(attended.output, "relative error")) << attended.output;

  const auto help = RunCommand("client/attention_cli --help");
  EXPECT_EQ(help.exit_code, kCliOk);
  EXPECT_TRUE(Contains(help.output, "--soft_cap")) << help.output;
  EXPECT_TRUE(Contains(help.output, "Exit codes")) << help.output;
  for (const char* wrong : {" --sampels=3 info", " --samples=many info", " info --samples", " --nothing info", ""}) {
    const auto result = RunCommand(program + wrong);
    EXPECT_EQ(result.exit_code, kCliUsageError) << wrong << ": " << result.output;
  }
}

}  // namespace
}  // namespace santa
