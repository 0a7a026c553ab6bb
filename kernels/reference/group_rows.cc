#include "kernels/reference/group_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "kernels/sampling/inclusion.h"

namespace santa::reference {
namespace {

constexpr float kLog2E = std::numbers::log2e_v<float>;

// p~ of every row of one head, by way of codes.
template <typename Code>
std::vector<float> CodedProbabilities(const std::vector<float>& scores, int64_t first) {
  const double lse = LogSumExp(scores);
  std::vector<float> p(scores.size(), 0.0f);
  if (!std::isfinite(lse)) return p;  // a head that is not a number has no say in what the group reads
  for (size_t begin = 0; begin < scores.size();) {
    const int64_t position = first + static_cast<int64_t>(begin);
    const size_t end = std::min(scores.size(), begin + sampling::kCodeBlock - position % sampling::kCodeBlock);
    const float largest = *std::max_element(scores.begin() + begin, scores.begin() + end);
    const float base = static_cast<float>(largest - lse) * kLog2E;
    for (; begin < end; ++begin) {
      const Code code = sampling::EncodeScore<Code>(0, (scores[begin] - largest) * kLog2E);
      if (code != sampling::kNoWeight<Code>) p[begin] = std::exp2(base - sampling::CodeOctaves(code));
    }
  }
  return p;
}

}  // namespace

double LogSumExp(const std::vector<float>& scores) {
  if (std::any_of(scores.begin(), scores.end(), [](float s) { return std::isnan(s); })) return std::nan("");
  const float largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const float score : scores) sum += std::exp(static_cast<double>(score) - largest);
  return largest + std::log(sum);
}

std::vector<uint32_t> Inclusions(const GroupScores& scores, const AttentionOptions& options) {
  const bool sketched = options.method == Method::kSketched;
  std::vector<float> squares(scores.candidate.size(), 0.0f);
  for (const std::vector<float>& of_head : scores.scored) {
    const std::vector<float> p = sketched ? CodedProbabilities<uint8_t>(of_head, scores.first)
                                          : CodedProbabilities<uint16_t>(of_head, scores.first);
    for (size_t i = 0; i < p.size(); ++i) squares[i] += p[i] * p[i];
  }
  std::vector<uint32_t> counts(sampling::kInclusionBins, 0);
  int64_t rows = 0;
  for (size_t i = 0; i < squares.size(); ++i) {
    if (!scores.candidate[i] || (squares[i] == 0 && !sketched)) continue;
    ++counts[sampling::InclusionBin(squares[i])];
    ++rows;
  }
  std::vector<uint32_t> inclusions(squares.size(), sampling::kCertain);
  if (rows == 0) {
    // Without a candidate; or without a head that is a number, and then any row will do.
    for (size_t i = 0; i < squares.size(); ++i) {
      if (scores.candidate[i]) inclusions[i] = 0;
    }
    return inclusions;
  }
  const double floor = sketched ? sampling::kEvenShare * options.sample_count / static_cast<double>(rows) : 0;
  const sampling::InclusionThreshold threshold =
      sampling::SolveThreshold(counts.data(), rows, sampling::InclusionBudget(options.sample_count, rows), floor);
  for (size_t i = 0; i < squares.size(); ++i) {
    if (scores.candidate[i]) inclusions[i] = sampling::Inclusion(threshold, squares[i]);
  }
  return inclusions;
}

std::vector<bool> RowsRead(const GroupScores& scores, const std::vector<uint32_t>& inclusions,
                           const sampling::RandomStream& stream) {
  const uint32_t offset = sampling::InclusionOffset(stream);
  std::vector<bool> read(inclusions.size());
  uint64_t before = 0;
  for (size_t i = 0; i < inclusions.size(); ++i) {
    read[i] = !scores.candidate[i] || sampling::IsIncluded(before, inclusions[i], offset);
    if (scores.candidate[i]) before += inclusions[i];
  }
  return read;
}

}  // namespace santa::reference
