#include "server/rpc/trace_context.h"

#include <algorithm>

namespace santa {
namespace {

bool IsLowerHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  constexpr size_t kLength = 55;  // version-trace_id-parent_id-flags
  if (header.size() < kLength || header[2] != '-' || header[35] != '-' || header[52] != '-') return std::nullopt;
  const std::string_view version = header.substr(0, 2);
  const std::string_view trace_id = header.substr(3, 32);
  const std::string_view parent_id = header.substr(36, 16);
  const std::string_view flags = header.substr(53, 2);
  if (!IsLowerHex(version) || version == "ff" || !IsLowerHex(trace_id) || IsZero(trace_id) || !IsLowerHex(parent_id) ||
      IsZero(parent_id) || !IsLowerHex(flags)) {
    return std::nullopt;
  }
  // Version 00 ends here; a later one may go on after a dash.
  if (header.size() > kLength && (version == "00" || header[kLength] != '-')) return std::nullopt;
  return TraceContext{.trace_id = std::string(trace_id), .parent_id = std::string(parent_id)};
}

TraceContext TraceOf(const grpc::ServerContextBase& call) {
  const auto header = call.client_metadata().find("traceparent");
  if (header == call.client_metadata().end()) return {};
  return ParseTraceparent(std::string_view(header->second.data(), header->second.size())).value_or(TraceContext());
}

}  // namespace santa
