// docs/metrics.md against a running server, row by row and label by label; promtool on what the server says.
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "client/testing/run_command.h"
#include "server/metrics/metrics.h"
#include "tests/http_get.h"
#include "tests/server_fixture.h"

namespace santa {
namespace {

using Names = std::set<std::string>;

constexpr char kDocument[] = "docs/metrics.md";

struct Family {
  std::string type;
  std::string help;
  Names labels;  // but for a histogram's le
};

std::string Trim(const std::string& text) {
  const size_t first = text.find_first_not_of(' ');
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// What a cell has in backquotes.
Names Quoted(const std::string& cell) {
  Names names;
  for (size_t open = cell.find('`'); open != std::string::npos;) {
    const size_t close = cell.find('`', open + 1);
    names.insert(cell.substr(open + 1, close - open - 1));
    open = cell.find('`', close + 1);
  }
  return names;
}

// The rows of the table whose first column has this head.
std::vector<std::vector<std::string>> Table(const std::string& head) {
  std::ifstream file(kDocument);
  std::vector<std::vector<std::string>> rows;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("| ", 0) != 0) {
      inside = inside && line.rfind("|--", 0) == 0;
      continue;
    }
    std::vector<std::string> cells;
    std::istringstream words(line.substr(1));
    for (std::string cell; std::getline(words, cell, '|');) cells.push_back(Trim(cell));
    if (inside) rows.push_back(cells);
    inside = inside || cells.front() == head;
  }
  return rows;
}

std::map<std::string, Family> DocumentedFamilies() {
  std::map<std::string, Family> families;
  for (const std::vector<std::string>& row : Table("Metric")) {
    if (row.size() != 5 || Quoted(row[0]).size() != 1 || row[2].empty()) {
      ADD_FAILURE() << "a row of " << kDocument << " is not name, type, unit, labels, text: " << row.front();
      continue;
    }
    const bool added =
        families.insert({*Quoted(row[0]).begin(), {.type = row[1], .help = row[4], .labels = Quoted(row[3])}}).second;
    EXPECT_TRUE(added) << row[0] << " has two rows";
  }
  return families;
}

// By family and label; empty: any one.
std::map<std::pair<std::string, std::string>, Names> DocumentedValues() {
  std::map<std::pair<std::string, std::string>, Names> values;
  for (const std::vector<std::string>& row : Table("Label")) {
    for (const std::string& family : Quoted(row.at(1))) {
      const bool added = values.insert({{family, *Quoted(row[0]).begin()}, Quoted(row.at(2))}).second;
      EXPECT_TRUE(added) << row[0] << " of " << family << " has two rows";
    }
  }
  return values;
}

struct Exposition {
  std::map<std::string, Family> families;
  std::map<std::pair<std::string, std::string>, Names> values;
};

// name{a="b",c="d"} 1: no value of ours has a comma, a brace or a quote in it.
void ReadSample(const std::string& line, const std::string& family, Exposition* out) {
  const size_t open = line.find('{');
  if (open == std::string::npos) return;
  std::istringstream labels(line.substr(open + 1, line.find('}') - open - 1));
  for (std::string label; std::getline(labels, label, ',');) {
    const size_t equals = label.find('=');
    const std::string name = label.substr(0, equals);
    if (name == "le") continue;
    out->families[family].labels.insert(name);
    out->values[{family, name}].insert(label.substr(equals + 2, label.size() - equals - 3));
  }
}

Exposition Read(const std::string& body) {
  Exposition out;
  std::istringstream lines(body);
  std::string family;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash;
    std::string keyword;
    words >> hash >> keyword;
    if (hash != "#") {
      EXPECT_EQ(line.rfind(family, 0), 0U) << line << " is not under its family";
      ReadSample(line, family, &out);
      continue;
    }
    std::string text;
    words >> family;
    std::getline(words, text);
    (keyword == "TYPE" ? out.families[family].type : out.families[family].help) = Trim(text);
  }
  return out;
}

// What a server says after it has done a bit of everything.
std::string BusyServersMetrics() {
  const TestServer server;
  const v1::SequenceHandle handle = Create(server.stub.get()).handle();
  EXPECT_TRUE(Fill(server.stub.get(), handle, 1, 0, 20).ok());
  v1::AttendItem item = Item(handle, 1, 0, 19, false);
  EXPECT_EQ(AttendOne(server.stub.get(), 0, item).status().code(), 0);
  item.mutable_options()->set_method(static_cast<v1::Method>(99));
  EXPECT_NE(AttendOne(server.stub.get(), 0, item).status().code(), 0);
  const HttpResponse response = HttpRequest(server.server->http_port(), "GET", "/metrics");
  EXPECT_EQ(response.status, 200);
  return response.body;
}

TEST(MetricsDocumentTest, EveryMetricHasItsRowAndEveryRowItsMetric) {
  const std::map<std::string, Family> documented = DocumentedFamilies();
  const Exposition live = Read(BusyServersMetrics());
  ASSERT_FALSE(live.families.empty());
  for (const auto& [name, family] : live.families) {
    const auto row = documented.find(name);
    if (row == documented.end()) {
      ADD_FAILURE() << name << " has no row in " << kDocument;
      continue;
    }
    EXPECT_EQ(row->second.type, family.type) << name;
    EXPECT_EQ(row->second.help, family.help) << name;
    EXPECT_EQ(row->second.labels, family.labels) << name;
  }
  for (const auto& [name, family] : documented) {
    EXPECT_EQ(live.families.count(name), 1U) << name << " has a row in " << kDocument << " but the server has it not";
  }
}

TEST(MetricsDocumentTest, LabelsHaveTheValuesDocumented) {
  const auto documented = DocumentedValues();
  const Exposition live = Read(BusyServersMetrics());
  for (const auto& [label, values] : live.values) {
    const auto row = documented.find(label);
    if (row == documented.end()) {
      ADD_FAILURE() << label.second << " of " << label.first << " has no row in " << kDocument;
      continue;
    }
    for (const std::string& value : values) {
      EXPECT_TRUE(row->second.empty() || row->second.count(value) == 1)
          << value << " is not among the values of " << label.second << " of " << label.first;
    }
  }
  for (const auto& [label, values] : documented) {
    EXPECT_EQ(live.values.count(label), 1U) << label.first << " has no label " << label.second;
  }
  // Those that a server has from its start are there in full.
  for (const char* family :
       {"santa_attend_seconds", "santa_kv_bytes_read_total", "santa_dense_kv_bytes_total",
        "santa_value_rows_read_total", "santa_attend_items_total", "santa_audit_speedup_ratio",
        "santa_audit_relative_error", "santa_audit_fallback_layers", "santa_relative_standard_error"}) {
    EXPECT_EQ(live.values.at({family, "method"}), documented.at({family, "method"})) << family;
  }
  EXPECT_EQ(live.values.at({"santa_kv_pages", "state"}), documented.at({"santa_kv_pages", "state"}));
  EXPECT_EQ(live.values.at({"santa_audit_skipped_total", "reason"}),
            documented.at({"santa_audit_skipped_total", "reason"}));

  Names codes;
  for (int code = 0; code <= 16; ++code) codes.insert(CodeName(static_cast<absl::StatusCode>(code)));
  EXPECT_EQ(documented.at({"santa_attend_items_total", "code"}), codes);
  EXPECT_EQ(documented.at({"santa_grpc_requests_total", "code"}), codes);

  const google::protobuf::ServiceDescriptor* const service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("santa.attention.v1.AttentionService");
  ASSERT_NE(service, nullptr);
  Names methods;
  for (int i = 0; i < service->method_count(); ++i) methods.insert(service->method(i)->name());
  EXPECT_EQ(documented.at({"santa_grpc_requests_total", "method"}), methods);
}

// Prometheus' own tool; it says nothing where it has nothing to say.
client_testing::CommandResult CheckedByPromtool(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/metrics.txt";
  std::ofstream(path) << text;
  return client_testing::RunCommand("promtool check metrics < '" + path + "'");
}

TEST(MetricsDocumentTest, PromtoolHasNoComplaint) {
  const std::string body = BusyServersMetrics();
  const client_testing::CommandResult clean = CheckedByPromtool(body);
  EXPECT_EQ(clean.exit_code, 0) << clean.output;
  EXPECT_EQ(clean.output, "");
  const client_testing::CommandResult bad = CheckedByPromtool(body + "# TYPE santa_wrong counter\nsanta_wrong 1\n");
  EXPECT_NE(bad.exit_code, 0);
  EXPECT_NE(bad.output.find("santa_wrong"), std::string::npos) << bad.output;
}

}  // namespace
}  // namespace santa
