#include "server/logging/log.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace santa {
namespace {

constexpr struct {
  LogLevel level;
  const char* name;
  spdlog::level::level_enum spdlog_level;
} kLevels[] = {
    {LogLevel::kDebug, "debug", spdlog::level::debug},
    {LogLevel::kInfo, "info", spdlog::level::info},
    {LogLevel::kWarning, "warning", spdlog::level::warn},
    {LogLevel::kError, "error", spdlog::level::err},
};

const auto& Entry(LogLevel level) { return kLevels[static_cast<int>(level)]; }

spdlog::logger& Logger() {
  // Never destroyed: threads may log until the process ends.
  static spdlog::logger* const logger = [] {
    auto* made = new spdlog::logger("santa", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

}  // namespace

bool ParseLogLevel(std::string_view name, LogLevel* level) {
  for (const auto& entry : kLevels) {
    if (name == entry.name) {
      *level = entry.level;
      return true;
    }
  }
  return false;
}

void SetLogLevel(LogLevel level) { Logger().set_level(Entry(level).spdlog_level); }

std::string FormatLogLine(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  nlohmann::ordered_json line;
  line["time"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  line["level"] = Entry(level).name;
  line["message"] = std::string(message);
  for (const LogField& field : fields) {
    std::visit([&](const auto& value) { line[std::string(field.key)] = value; }, field.value);
  }
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = Logger();
  const spdlog::level::level_enum spdlog_level = Entry(level).spdlog_level;
  if (!logger.should_log(spdlog_level)) return;
  const std::string line = FormatLogLine(level, message, fields);
  logger.log(spdlog_level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace santa
