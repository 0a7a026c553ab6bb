#include "client/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "client/concat.h"

namespace santa {
namespace {

using client_internal::Concat;

using Json = nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::array kTypes = {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16,
                               ElementType::kInt64,   ElementType::kInt32,    ElementType::kUint8};

absl::Status SystemError(std::string_view action, const std::string& path) {
  const int error = errno;
  const std::string message = Concat(action, " ", path, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::InternalError(message);
}

std::optional<ElementType> ParseType(std::string_view name) {
  for (const ElementType type : kTypes) {
    if (Name(type) == name) return type;
  }
  return std::nullopt;
}

struct Entry {
  std::string name;
  TensorView tensor;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// One tensor's description; `data` is what follows the header.
absl::StatusOr<Entry> ParseEntry(const std::string& name, const Json& json, std::string_view data) {
  const auto error = [&name](const auto&... parts) {
    return absl::InvalidArgumentError(Concat("tensor \"", name, "\": ", parts...));
  };
  if (!json.is_object()) return error("its description is not a JSON object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return error("dtype is missing or not a string");
  if (shape == json.end() || !shape->is_array()) return error("shape is missing or not an array");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return error("data_offsets is missing or not two non-negative integers");
  }

  Entry entry;
  entry.name = name;
  const std::optional<ElementType> type = ParseType(dtype->get_ref<const std::string&>());
  if (!type)
    return error("dtype \"", dtype->get_ref<const std::string&>(), "\" is none of F32, BF16, F16, I64, I32, U8");
  entry.tensor.type = *type;
  for (const Json& extent : *shape) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > INT64_MAX) {
      return error("shape has an extent that is not an integer in [0, 2^63)");
    }
    entry.tensor.shape.push_back(extent.get<int64_t>());
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
  if (entry.begin > entry.end || entry.end > data.size()) {
    return error("data_offsets [", entry.begin, ", ", entry.end, "] are not a range of the file's ", data.size(),
                 " bytes of data");
  }
  entry.tensor.data = data.substr(entry.begin, entry.end - entry.begin);
  if (absl::Status status = Validate(entry.tensor); !status.ok()) return error(status.message());
  return entry;
}

// The format's rule that the tensors tile the data: no overlap, no gap, nothing left over.
absl::Status CheckTiling(std::vector<Entry>& entries, uint64_t data_size) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != end) {
      return absl::InvalidArgumentError(Concat("tensor \"", entry.name, "\" begins at byte ", entry.begin,
                                               " of the data, ", entry.begin < end ? "inside" : "past the end of",
                                               " the one before, which ends at ", end));
    }
    end = entry.end;
  }
  if (end != data_size) {
    return absl::InvalidArgumentError(Concat("the tensors end at byte ", end, " of the data, the file at ", data_size));
  }
  return absl::OkStatus();
}

// The header as a JSON object. The parser alone would let the last of two equal names win.
absl::StatusOr<Json> ParseHeader(std::string_view text) {
  std::set<std::string> names;
  std::string duplicate;
  const Json::parser_callback_t watch_names = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!names.insert(name).second) duplicate = name;
    }
    return true;
  };
  Json header = Json::parse(text, watch_names, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) {
    return absl::InvalidArgumentError("the header is not a JSON object");
  }
  if (!duplicate.empty()) return absl::InvalidArgumentError(Concat("two tensors are named \"", duplicate, "\""));
  return header;
}

uint64_t LoadLength(std::string_view bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  return length;
}

// Closes its file descriptor.
class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

absl::Status WriteAll(int descriptor, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return SystemError("write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> MakeHeader(const std::map<std::string, TensorView, std::less<>>& tensors,
                                       const std::map<std::string, std::string, std::less<>>& metadata) {
  Json header = Json::object();
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    absl::Status status = Validate(tensor);
    if (name == kMetadataKey) status = absl::InvalidArgumentError("the name is reserved");
    if (!status.ok()) return absl::InvalidArgumentError(Concat("tensor \"", name, "\": ", status.message()));
    header[name] = {{"dtype", std::string(Name(tensor.type))},
                    {"shape", tensor.shape},
                    {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;

  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {  // the only way in which the library reports it
    return absl::InvalidArgumentError("a tensor's name or the metadata is not UTF-8");
  }
  // Spaces so that the data begin at a multiple of 8 bytes.
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  if (text.size() > kMaxHeaderBytes) return absl::InvalidArgumentError("the header would exceed 100,000,000 bytes");
  std::string prefix(kLengthBytes, '\0');
  const uint64_t length = text.size();
  std::memcpy(prefix.data(), &length, kLengthBytes);
  return prefix + text;
}

}  // namespace

absl::StatusOr<Safetensors> Safetensors::Parse(std::string_view bytes, const std::string& name) {
  const auto error = [&name](const auto&... parts) { return absl::InvalidArgumentError(Concat(name, ": ", parts...)); };
  if (bytes.size() < kLengthBytes) return error(bytes.size(), " bytes are too few for a safetensors file");
  const uint64_t header_size = LoadLength(bytes);
  if (header_size > kMaxHeaderBytes || header_size > bytes.size() - kLengthBytes) {
    return error("a header of ", header_size, " bytes does not fit in a file of ", bytes.size(), " (and in ",
                 kMaxHeaderBytes, ")");
  }
  absl::StatusOr<Json> header = ParseHeader(bytes.substr(kLengthBytes, header_size));
  if (!header.ok()) return error(header.status().message());
  const std::string_view data = bytes.substr(kLengthBytes + header_size);

  Safetensors file;
  file.name_ = name;
  std::vector<Entry> entries;
  for (const auto& [key, value] : header->items()) {
    if (key == kMetadataKey) {
      if (!value.is_object()) return error(kMetadataKey, " is not a JSON object");
      for (const auto& [meta_key, meta_value] : value.items()) {
        if (!meta_value.is_string()) return error(kMetadataKey, " has a value that is not a string");
        file.metadata_[meta_key] = meta_value.get_ref<const std::string&>();
      }
      continue;
    }
    absl::StatusOr<Entry> entry = ParseEntry(key, value, data);
    if (!entry.ok()) return error(entry.status().message());
    entries.push_back(*std::move(entry));
  }
  if (absl::Status status = CheckTiling(entries, data.size()); !status.ok()) return error(status.message());
  for (Entry& entry : entries) file.tensors_.emplace(std::move(entry.name), std::move(entry.tensor));
  return file;
}

absl::StatusOr<Safetensors> Safetensors::Open(const std::string& path) {
  const File file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return SystemError("open", path);
  struct stat stat_buffer = {};
  if (fstat(file.get(), &stat_buffer) != 0) return SystemError("stat", path);
  if (!S_ISREG(stat_buffer.st_mode)) return absl::InvalidArgumentError(Concat(path, ": not a regular file"));
  const auto size = static_cast<size_t>(stat_buffer.st_size);
  if (size == 0) return Parse({}, path);  // an empty file cannot be mapped

  void* address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) return SystemError("map", path);
  const std::shared_ptr<const void> mapping(address,
                                            [size](const void* mapped) { munmap(const_cast<void*>(mapped), size); });
  absl::StatusOr<Safetensors> parsed = Parse({static_cast<const char*>(address), size}, path);
  if (parsed.ok()) parsed->mapping_ = mapping;
  return parsed;
}

absl::StatusOr<TensorView> Safetensors::Get(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  const std::string names = absl::StrJoin(
      tensors_, ", ", [](std::string* out, const auto& tensor) { absl::StrAppend(out, "\"", tensor.first, "\""); });
  return absl::NotFoundError(Concat(name_, ": no tensor \"", name, "\"; it has ", names.empty() ? "none" : names));
}

absl::Status WriteSafetensors(const std::string& path, const std::map<std::string, TensorView, std::less<>>& tensors,
                              const std::map<std::string, std::string, std::less<>>& metadata) {
  absl::StatusOr<std::string> header = MakeHeader(tensors, metadata);
  if (!header.ok()) return absl::InvalidArgumentError(Concat(path, ": ", header.status().message()));

  std::string temporary = Concat(path, ".XXXXXX");
  const File file(mkostemp(temporary.data(), O_CLOEXEC));
  if (file.get() < 0) return SystemError("create a temporary file for", path);
  absl::Status status = WriteAll(file.get(), *header, temporary);
  for (const auto& [name, tensor] : tensors) {
    if (status.ok()) status = WriteAll(file.get(), tensor.data, temporary);
  }
  // mkstemp makes the file private to its owner; give it what the umask would have left.
  const mode_t mask = umask(0);
  umask(mask);
  if (status.ok() && fchmod(file.get(), 0666 & ~mask) != 0) status = SystemError("chmod", temporary);
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) status = SystemError("rename to", path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

}  // namespace santa
