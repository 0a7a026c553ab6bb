#include "client/examples/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace santa {
namespace {

using Row = std::vector<std::string>;

size_t Width(const std::string& cell) {  // UTF-8: continuation bytes take no room
  return std::count_if(cell.begin(), cell.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

Row ScoreRow(const MethodScore& score, const MethodScore& local, bool with_speed) {
  const bool is_local = &score == &local;
  const auto share = [&](double value) { return is_local ? std::string("-") : absl::StrFormat("%.1f%%", 100 * value); };
  Row row = {
      score.name,
      score.samples == 0 ? "-" : absl::StrCat(score.samples),
      absl::StrFormat("%.4f", score.bits_per_byte()),
      is_local ? "-" : absl::StrFormat("%+.3f%%", 100 * score.relative_to(local)),
      is_local ? "-" : absl::StrFormat("%.3f%%", 100 * score.relative_standard_error(local)),
      absl::StrCat(score.keys_right, "/", score.keys_asked),
      is_local ? "-" : absl::StrCat(score.answers_as_local, "/", score.keys_asked),
      is_local ? "-" : absl::StrFormat("%.3g", score.largest_logit_difference),
      share(score.value_row_share()),
      share(score.kv_byte_share()),
  };
  if (with_speed) {
    row.push_back(absl::StrFormat("%.0f", score.tokens_per_second()));
    row.push_back(score.generate_seconds > 0 ? absl::StrFormat("%.0f", score.generated_per_second()) : "-");
  }
  return row;
}

nlohmann::ordered_json ScoreObject(const MethodScore& score, const MethodScore& local, int64_t context) {
  nlohmann::ordered_json json = {
      {"method", score.name},
      {"samples", score.samples},
      {"context", context},
      {"bits_per_byte", score.bits_per_byte()},
      {"relative_to_local", score.relative_to(local)},
      {"relative_standard_error", score.relative_standard_error(local)},
      {"scored_bytes", score.scored_bytes},
      {"pass_keys_right", score.keys_right},
      {"pass_keys_asked", score.keys_asked},
      {"answers_as_local", score.answers_as_local},
      {"largest_logit_difference", score.largest_logit_difference},
      {"tokens_per_second", score.tokens_per_second()},
  };
  if (score.generate_seconds > 0) {
    json["single_tokens_per_second"] = score.generated_per_second();
    json["generated"] = OneLine(score.generated, score.generated.size());
  }
  if (&score != &local) {
    json["value_row_share"] = score.value_row_share();
    json["kv_byte_share"] = score.kv_byte_share();
  }
  return json;
}

}  // namespace

std::string AlignedTable(const std::vector<Row>& rows) {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      absl::StrAppend(&line, i == 0 ? "" : "  ", i == 0 ? row[i] : padding, i == 0 ? padding : row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string MarkdownTable(const std::vector<Row>& rows) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    Row escaped;
    escaped.reserve(rows[i].size());
    for (const std::string& cell : rows[i]) escaped.push_back(absl::StrReplaceAll(cell, {{"|", "\\|"}}));
    absl::StrAppend(&text, "| ", absl::StrJoin(escaped, " | "), " |\n");
    if (i > 0) continue;
    text += "|---|";
    for (size_t c = 1; c < rows[i].size(); ++c) text += "---:|";
    text += "\n";
  }
  return text;
}

std::vector<Row> ScoreRows(const Evaluation& evaluation, bool with_speed) {
  std::vector<Row> rows = {{"method", "S", "bits/byte", "vs local", "+/-", "pass keys", "same answer", "max |dlogit|",
                            "V rows", "KV bytes"}};
  if (with_speed) rows[0].insert(rows[0].end(), {"tok/s", "tok/s alone"});
  rows.push_back(ScoreRow(evaluation.local(), evaluation.local(), with_speed));
  for (const MethodScore& score : evaluation.methods()) {
    rows.push_back(ScoreRow(score, evaluation.local(), with_speed));
  }
  return rows;
}

std::string ScoreJson(const Evaluation& evaluation, int64_t context) {
  std::string text = ScoreObject(evaluation.local(), evaluation.local(), context).dump() + "\n";
  for (const MethodScore& score : evaluation.methods()) {
    absl::StrAppend(&text, ScoreObject(score, evaluation.local(), context).dump(), "\n");
  }
  return text;
}

std::string InterestingMetrics(const std::string& exposition) {
  std::vector<Row> rows;
  for (const absl::string_view line : absl::StrSplit(exposition, '\n', absl::SkipEmpty())) {
    const size_t space = line.rfind(' ');
    if (!absl::StartsWith(line, "santa_") || space == absl::string_view::npos) continue;
    const absl::string_view series = line.substr(0, space);
    double value = 0;
    if (absl::StrContains(series, "_bucket{") || !absl::SimpleAtod(line.substr(space + 1), &value) || value == 0) {
      continue;
    }
    const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
    rows.push_back({std::string(series), whole ? absl::StrFormat("%.0f", value) : absl::StrFormat("%.4g", value)});
  }
  return AlignedTable(rows);
}

std::string OneLine(const std::string& text, size_t width) {
  std::string line = text.substr(0, width);
  for (char& c : line) {
    if (c == '\n') c = ' ';
    if (static_cast<uint8_t>(c) < 0x20 || static_cast<uint8_t>(c) > 0x7E) c = c == ' ' ? ' ' : '?';
  }
  return line;
}

}  // namespace santa
