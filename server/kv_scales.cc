#include "server/kv_scales.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace santa {
namespace {

using Json = nlohmann::json;

// [num_layers][num_kv_heads] numbers.
absl::StatusOr<std::vector<float>> ParseTable(const Json& json, const char* field, const KvLayout& layout) {
  const std::string shape =
      absl::StrCat(layout.num_layers, " lists (the layers) of ", layout.num_kv_heads, " numbers (the key/value heads)");
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", what, "; allowed is a list of ", shape));
  };
  const auto found = json.find(field);
  if (found == json.end()) return wrong("absent");
  if (!found->is_array() || found->size() != static_cast<size_t>(layout.num_layers)) {
    return wrong(found->is_array() ? absl::StrCat("a list of ", found->size()) : "no list");
  }
  std::vector<float> table;
  for (const Json& row : *found) {
    if (!row.is_array() || row.size() != static_cast<size_t>(layout.num_kv_heads)) {
      return wrong(row.is_array() ? absl::StrCat("one that has a list of ", row.size()) : "a list without lists");
    }
    for (const Json& number : row) {
      if (!number.is_number()) return wrong("a list of lists with something else than numbers");
      table.push_back(static_cast<float>(number.get<double>()));
    }
  }
  return table;
}

}  // namespace

absl::StatusOr<KvScales> ParseKvScales(const std::string& json, const KvLayout& layout) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object())
    return absl::InvalidArgumentError("it is no JSON object; allowed is one with k_scale, v_scale");
  KvScales scales;
  absl::StatusOr<std::vector<float>> table = ParseTable(parsed, "k_scale", layout);
  if (!table.ok()) return table.status();
  scales.k = *std::move(table);
  table = ParseTable(parsed, "v_scale", layout);
  if (!table.ok()) return table.status();
  scales.v = *std::move(table);
  if (absl::Status status = Validate(scales, layout); !status.ok()) return status;
  return scales;
}

}  // namespace santa
