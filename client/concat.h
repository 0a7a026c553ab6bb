// absl::StrCat for std::string_view: the packaged Abseil has a string_view type of its own.
#ifndef SANTA_CLIENT_CONCAT_H_
#define SANTA_CLIENT_CONCAT_H_

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace santa::client_internal {

template <typename T>
const T& ForAbseil(const T& value) {
  return value;
}
inline absl::string_view ForAbseil(const std::string_view& text) { return {text.data(), text.size()}; }

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::string text;
  (absl::StrAppend(&text, ForAbseil(parts)), ...);
  return text;
}

}  // namespace santa::client_internal

#endif  // SANTA_CLIENT_CONCAT_H_
