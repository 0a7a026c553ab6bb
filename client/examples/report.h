// The results of an evaluation for people (a table), for documents (Markdown) and for programs (JSON).
#ifndef SANTA_CLIENT_EXAMPLES_REPORT_H_
#define SANTA_CLIENT_EXAMPLES_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "client/examples/evaluation.h"

namespace santa {

// Rows of cells, columns as wide as their widest cell (in code points): the first column flush left, others right.
std::string AlignedTable(const std::vector<std::vector<std::string>>& rows);
std::string MarkdownTable(const std::vector<std::vector<std::string>>& rows);

// A heading, local attention, then each method.
std::vector<std::vector<std::string>> ScoreRows(const Evaluation& evaluation, bool with_speed);

// A line of JSON for local attention and for each method.
std::string ScoreJson(const Evaluation& evaluation, int64_t context);

// The server's own counters and gauges out of the text of /metrics: those of the santa_ prefix that are not zero,
// without histogram buckets, names and values aligned.
std::string InterestingMetrics(const std::string& exposition);

// `text` without line breaks and control characters, cut to `width` bytes.
std::string OneLine(const std::string& text, size_t width);

}  // namespace santa

#endif  // SANTA_CLIENT_EXAMPLES_REPORT_H_
