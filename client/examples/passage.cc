#include "client/examples/passage.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace santa {
namespace {

std::vector<PassKey> RandomKeys(int32_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<PassKey> keys;
  std::set<uint64_t> boxes;
  while (keys.size() < static_cast<size_t>(count)) {
    const uint64_t box = random() % 10000, key = random() % 100000;
    if (!boxes.insert(box).second) continue;
    keys.push_back({.note = absl::StrFormat("\n[The pass key of box %04d is %05d.]\n", box, key),
                    .question = absl::StrFormat("\n[What is the pass key of box %04d? It is ", box),
                    .answer = absl::StrFormat("%05d", key)});
  }
  return keys;
}

// Just after the next newline within 200 bytes, or `position` itself.
size_t LineStart(const std::string& text, size_t position) {
  const size_t newline = text.find('\n', position);
  return newline != std::string::npos && newline < position + 200 ? newline + 1 : position;
}

}  // namespace

absl::StatusOr<Passage> MakePassage(const std::string& name, const std::string& text, const PassageOptions& options) {
  if (options.num_keys < 0 || options.num_keys > 1000 || options.continuation < 2) {
    return absl::InvalidArgumentError("a passage has 0 to 1000 keys and a continuation of at least 2 bytes");
  }
  Passage passage = {
      .name = name, .prompt = "", .continuation = "", .keys = RandomKeys(options.num_keys, options.seed)};
  int64_t notes = 0;
  for (const PassKey& key : passage.keys) notes += static_cast<int64_t>(key.note.size());
  const int64_t prompt = options.context - options.continuation;
  const int64_t body = prompt - notes;
  if (body < notes || body < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a context of ", options.context, " bytes is too short for ",
                                                   options.num_keys, " pass keys and ", options.continuation,
                                                   " bytes to follow"));
  }
  if (body + options.continuation > static_cast<int64_t>(text.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", text.size(), " bytes; this context needs ", body + options.continuation));
  }
  size_t read = 0;
  for (size_t i = 0; i < passage.keys.size(); ++i) {
    const size_t depth = (2 * i + 1) * body / (2 * passage.keys.size());
    const size_t place = std::clamp<size_t>(LineStart(text, depth), read, body);
    absl::StrAppend(&passage.prompt, text.substr(read, place - read), passage.keys[i].note);
    read = place;
  }
  absl::StrAppend(&passage.prompt, text.substr(read, body - read));
  passage.continuation = text.substr(body, options.continuation);
  return passage;
}

absl::StatusOr<std::vector<std::string>> ListTexts(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".txt") paths.push_back(entry.path().string());
  }
  if (paths.empty()) return absl::NotFoundError(absl::StrCat("no .txt files in ", folder));
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!(text << file.rdbuf())) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return text.str();
}

}  // namespace santa
