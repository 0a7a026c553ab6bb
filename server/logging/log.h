// Structured logs: one JSON object a line on stderr, {"time", "level", "message", ...fields}.
#ifndef SANTA_SERVER_LOGGING_LOG_H_
#define SANTA_SERVER_LOGGING_LOG_H_

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace santa {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };

// "debug", "info", "warning", "error"; false for anything else.
bool ParseLogLevel(std::string_view name, LogLevel* level);

struct LogField {
  template <std::integral T>
  requires(!std::same_as<T, bool>) LogField(std::string_view field, T number)
      : key(field), value(static_cast<int64_t>(number)) {}
  LogField(std::string_view field, bool truth) : key(field), value(truth) {}
  LogField(std::string_view field, double number) : key(field), value(number) {}
  LogField(std::string_view field, std::string_view text) : key(field), value(std::string(text)) {}
  LogField(std::string_view field, const std::string& text) : key(field), value(text) {}
  LogField(std::string_view field, const char* text) : key(field), value(std::string(text)) {}

  std::string_view key;
  std::variant<bool, int64_t, double, std::string> value;
};

// All thread safe. The level is kInfo at first.
void SetLogLevel(LogLevel level);
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

// The line that Log writes, without its end. Bytes that are not UTF-8 become U+FFFD.
std::string FormatLogLine(LogLevel level, std::string_view message, std::initializer_list<LogField> fields);

}  // namespace santa

#endif  // SANTA_SERVER_LOGGING_LOG_H_
